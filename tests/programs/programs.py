"""The programs that are run by runc and in a sandbox; each is a script beside this module."""

from typing import NamedTuple

from tests.programs.box import Done


class Program(NamedTuple):
    """`name` is its script's; it is given up after so many seconds."""

    name: str
    title: str
    seconds: float = 300


# Those that the suite runs, with a root filesystem of `root.USUAL`.
USUAL = (
    Program("true", "`true`, in a container that is there"),
    Program("python", "python3 started, twice"),
    Program("python-import", "python3 with asyncio, json, http.client, sqlite3; compileall"),
    Program("multiprocessing", "multiprocessing, by fork and by spawn"),
    Program("sqlite", "sqlite, both journal modes, one and three processes"),
    Program("git", "git init, commit, merge, worktree, gc, clone, push"),
    Program("archives", "tar, rsync, cp -a with owners, ACLs, attributes"),
    Program("dpkg", "dpkg: install, upgrade, verify, purge"),
    Program("apt", "apt-get install from a local repository"),
)
# Those that take longer, with one of `root.ALL`.
LONG = (
    Program("venv", "venv, and pip install of a wheel"),
    Program("gcc", "gcc and make"),
    Program("node", "npm install of a tarball, fs.watch"),
    Program("java", "javac, jar, java.nio"),
    Program("postgres", "postgres: initdb, pgbench, crash, vacuum"),
    Program("redis", "redis with an append-only file, and a kill"),
    Program("nginx", "nginx with sendfile"),
    Program("sshd", "sshd: ssh, scp, a terminal"),
)
ALL = (*USUAL, *LONG)


def difference(runc: Done, tapwright: Done) -> str:
    """How the two differ, beginning with the status; nothing when they are the same."""
    if runc.status != tapwright.status:
        ends = [_end(done) for done in (runc, tapwright)]
        return f"runc: {ends[0]}; Tapwright: {ends[1]}"
    lines = [done.output.splitlines() for done in (runc, tapwright)]
    for number in range(max(map(len, lines))):
        ours, theirs = (each[number] if number < len(each) else "nothing" for each in lines)
        if ours != theirs:
            return f"line {number + 1}: runc {ours!r}, Tapwright {theirs!r}"
    return ""


def _end(done: Done) -> str:
    how = "did not end" if done.status is None else f"status {done.status}"
    return f"{how} ({' / '.join(done.output.splitlines()[-3:])})"
