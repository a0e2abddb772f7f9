# Databases in both journal modes, written by one process and by three at once.
cat >program.py <<'END'
import os
import sqlite3
import sys

path, mode = sys.argv[1:]


def connect():
    connection = sqlite3.connect(path, timeout=100)
    connection.execute(f"pragma journal_mode={mode}")
    return connection


connection = connect()
connection.execute("create table numbers(number integer, text text)")
for number in range(40):
    connection.execute("insert into numbers values (?, ?)", (number, "one"))
    connection.commit()
connection.close()
pids = []
for child in range(3):
    if not (pid := os.fork()):
        connection = connect()
        for number in range(20):
            connection.execute("insert into numbers values (?, ?)", (number, "many"))
            connection.commit()
        os._exit(0)
    pids.append(pid)
print([os.waitpid(pid, 0)[1] for pid in pids])
connection = connect()
print(connection.execute("select text, count(*), sum(number) from numbers group by text").fetchall())
connection.executemany(
    "insert into numbers values (?, ?)", ((n * 7919 % 20011, "x" * 100) for n in range(5000))
)
connection.commit()
connection.execute("begin")
connection.execute("delete from numbers")
connection.rollback()
print(connection.execute("select count(*) from numbers").fetchone())
connection.execute("create index by_number on numbers(number, text)")
if mode == "wal":
    print(connection.execute("pragma wal_checkpoint(truncate)").fetchone())
connection.execute("vacuum")
print(connection.execute("pragma integrity_check").fetchone())
connection.close()
END
for mode in delete wal; do
    python3 program.py "$mode.db" "$mode"
    ls | grep "$mode"
done
