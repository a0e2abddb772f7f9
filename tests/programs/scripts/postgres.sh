# A cluster from its beginning, a benchmark, a crash and what is there after it.
bin=$(dirname "$(find /usr/lib/postgresql -name initdb)")
chmod 711 /root
mkdir -m 777 sockets
install -d -o postgres -g postgres data
as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
sql() { as psql -h "$PWD/sockets" -d postgres -At -c "$1"; }
start() {
    as "$bin/pg_ctl" -D data -l data/log -w -t 120 -s -o "-k $PWD/sockets -h ''" start
}
as "$bin/initdb" -D data --no-locale -E UTF8 -A trust -k >/dev/null
start
as "$bin/pgbench" -h "$PWD/sockets" -i -s 1 -q postgres >/dev/null 2>&1
as "$bin/pgbench" -h "$PWD/sockets" -t 20 -c 2 -n postgres 2>/dev/null |
    grep -E 'processed|failed'
sql 'select count(*) from pgbench_history'
sql 'select sum(abalance) = (select sum(bbalance) from pgbench_branches) from pgbench_accounts'
sql 'create table t as select n, md5(n::text) from generate_series(1, 20000) n'
sql 'create index on t (md5)'
sql 'vacuum analyze t'
sql "create tablespace other location '$PWD/data/../sockets'" 2>&1 | grep -c -v '^$'
as "$bin/pg_ctl" -D data -w -s -m immediate stop
start
sql 'select count(*), max(n) from t'
sql 'select count(*) from pgbench_history'
as "$bin/pg_ctl" -D data -w -s -m fast stop
as "$bin/pg_checksums" -D data --check 2>&1 | tail -n 1
