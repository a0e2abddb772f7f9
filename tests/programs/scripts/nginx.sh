# Files that are sent by sendfile, ranges, logs that are opened again.
mkdir -p www temporary
head -c 5000000 /dev/zero | tr '\0' x >www/large
echo small >www/small
cat >configuration <<END
pid $PWD/pid;
error_log $PWD/error.log;
user root;
worker_processes 2;
events {}
http {
    access_log $PWD/access.log;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=100;
    client_body_temp_path $PWD/temporary/body;
    proxy_temp_path $PWD/temporary/proxy;
    fastcgi_temp_path $PWD/temporary/fastcgi;
    uwsgi_temp_path $PWD/temporary/uwsgi;
    scgi_temp_path $PWD/temporary/scgi;
    server { listen 127.0.0.1:8081; listen unix:$PWD/socket; root $PWD/www; }
}
END
nginx -c "$PWD/configuration"
get() { curl --silent --show-error --noproxy '*' "$@"; }
until [ -e pid ]; do sleep 0.05; done
get http://127.0.0.1:8081/large | sha256sum
get http://127.0.0.1:8081/small
get --range 4999990-4999999 http://127.0.0.1:8081/large && echo
get --unix-socket socket http://localhost/small
get --output /dev/null --write-out '%{http_code}\n' http://127.0.0.1:8081/nothing
mv access.log access.old
kill -USR1 "$(cat pid)"
until [ -e access.log ]; do sleep 0.05; done
until get http://127.0.0.1:8081/small >/dev/null && [ -s access.log ]; do sleep 0.05; done
wc -l <access.old
kill -QUIT "$(cat pid)"
while [ -e pid ]; do sleep 0.05; done
ls
