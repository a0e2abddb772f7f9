# An append-only file, which is rewritten, and what is there after a kill.
redis() { redis-cli -s "$PWD/socket" "$@"; }
start() {
    redis-server --port 0 --unixsocket "$PWD/socket" --dir "$PWD" --appendonly yes \
        --appendfsync always --daemonize yes --pidfile "$PWD/pid" --logfile "$PWD/log" \
        --save '' >/dev/null
    until [ "$(redis ping 2>/dev/null)" = PONG ]; do sleep 0.05; done
}
rewritten() {
    until redis info persistence | grep -q 'aof_rewrite_in_progress:0'; do sleep 0.05; done
}
start
seq 500 | sed 's/.*/set key-& value-&/' | redis >/dev/null
redis incrby counter 41
redis incr counter
redis bgrewriteaof
rewritten
redis set last one
kill -9 "$(cat pid)"
rm socket
start
redis dbsize
redis get counter
redis get last
redis save
redis config get appendonly
redis shutdown nosave || true
ls appendonlydir | sed 's/[0-9]*\.\(base\|incr\)/N.\1/'
redis-check-aof appendonlydir/*.manifest | tail -n 1
