"""Spares, as callers see them: guests that were restored ahead and wait for a sandbox
(`supervisor.spare`).

Each spare has a directory beside those of the sandboxes, with the lock `alive`, a file that
describes it, and a socket when it is ready. The first caller that connects owns the spare. A
directory whose lock is free belongs to a killed spare, and the next caller removes it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tapwright
from tapwright.dataclass import dataclass, replace
from tapwright.linux import claims, ending, filelock, starving, unixsocket
from tapwright.linux.files import closing
from tapwright.sandbox.launching import SPARES, Waiting, in_background
from tapwright.state import supervisors
from tapwright.state.record import Journal, Spec, written_machine, written_spec

ALIVE, FILE, SOCKET = "alive", "spare.json", "socket"
YOURS = b"yours\n"
"""The greeting of a spare to its owner."""

_FAILED = ".failed"
_NAMESPACES = "cgroup", "ipc", "mnt", "net", "pid", "user", "uts"
_RIGHTS = "Uid:", "Gid:", "CapBnd:", "CapEff:", "NoNewPrivs:", "Seccomp:"  # proc(5)
_ANSWER_SECONDS = 1.0
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Spare:
    """A spare on this host. `is_ready` says whether a sandbox can take it already; `since` is in
    seconds since the epoch."""

    name: str
    directory: Path
    pid: int
    is_ready: bool
    memory_mib: int
    vcpus: int
    share: bool
    since: float


def directory_of(root: str | Path) -> Path:
    return Path(root, SPARES)


def take(root: str | Path, spec: Spec) -> Waiting | None:
    """A spare that fits the specification, which from now on is the caller's alone; None if there
    is none. This skips spares that hang or die."""
    if not _is_possible(spec):
        return None
    directory, key = directory_of(root), key_of(spec)
    for name in claims.names(directory):
        if name.startswith(f"{key}-"):
            if taken := _asked(directory / name):
                return taken
            _sweep(directory / name)
    return None


def refill(journal: Journal) -> None:
    """Start a process that makes a spare, unless there are enough."""
    spec, root = journal.record.spec, journal.directory.parent.parent
    if (
        not _is_possible(spec)
        or len(list(_living(directory_of(root), key_of(spec)))) >= spec.spares
    ):
        return
    with contextlib.suppress(OSError):  # the next sandbox tries again
        begin(root, spec)


def begin(root: str | Path, spec: Spec, at_once: bool = False) -> None:
    """Start a process that makes a spare for such sandboxes, unless there are enough. It waits
    until the host is idle, except with `at_once`. Raises OSError."""
    written = written_spec(_plain(spec))
    in_background("spare", spec=written, root=str(root), at_once=at_once)


def listing(root: str | Path) -> list[Spare]:
    """All spares, including those that are still being made."""
    found = []
    for name in claims.names(directory_of(root)):
        directory = directory_of(root) / name
        if not filelock.is_held(directory / ALIVE):
            _sweep(directory)
            continue
        pid = supervisors.pid_of(directory)
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = json.loads((directory / FILE).read_text())
            found.append(Spare(name, directory, pid or 0, (directory / SOCKET).exists(), **known))
    return found


def held_mib(spare: Spare) -> int:
    """MiB of memory that the spare's processes hold, with their part of shared pages (proc(5),
    Pss)."""
    found, pids = 0, [spare.pid]
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found >> 10


def sweep(root: str | Path) -> list[str]:
    """Remove the directories of killed spares; return their names."""
    directory = directory_of(root)
    dead = [
        name for name in claims.names(directory) if not filelock.is_held(directory / name / ALIVE)
    ]
    for name in dead:
        _sweep(directory / name)
    with contextlib.suppress(OSError):
        claims.sweep(directory)
    return [name for name in dead if not (directory / name).exists()]


def note_failure(root: str | Path, reason: str) -> None:
    with contextlib.suppress(OSError):
        (directory_of(root) / _FAILED).write_text(reason)


def last_failure(root: str | Path) -> str:
    """Why the last spare that failed did; empty where none has failed."""
    try:
        return (directory_of(root) / _FAILED).read_text(errors="replace")
    except OSError:
        return ""


def drop(root: str | Path) -> list[str]:
    """End all spares; return their names. If a sandbox takes a spare at this moment, the sandbox
    starts without it."""
    dropped = []
    for spare in listing(root):
        _end(spare)
        _sweep(spare.directory)
        dropped.append(spare.name)
    return dropped


def key_of(spec: Spec) -> str:
    """A name for all sandboxes that one spare can serve: those with the same guest, the same
    program as supervisor, and the same rights of the process that starts the supervisor."""
    guest = [written_machine(spec.machine), spec.template]
    program = [tapwright.__version__, tapwright.__file__]
    content = json.dumps([program, _inherited(), guest], sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _inherited() -> list[Any]:
    """Namespaces, rights, and processors, which a process inherits from its parent."""
    with open("/proc/self/status") as file:
        rights = [line.strip() for line in file if line.startswith(_RIGHTS)]
    namespaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in _NAMESPACES]
    return [namespaces, rights, sorted(os.sched_getaffinity(0))]


def enter(root: str | Path, spec: Spec) -> tuple[Path, int] | None:
    """Make the directory of a new spare, which is this process; return the directory and the
    descriptor of its lock. None where there are enough. Raises OSError."""
    directory, key = directory_of(root), key_of(spec)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in claims.names(directory):
            _sweep(directory / name)
        if len(list(_living(directory, key))) >= spec.spares:
            return None
        name = f"{key}-{os.urandom(4).hex()}"
        draft = Path(claims.draft(directory, name))
        alive = os.open(draft / ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)
        supervisors.note(alive)
        (draft / FILE).write_text(json.dumps(_described(spec)))
        claims.take(draft, directory / name)
        return directory / name, alive


def leave(directory: Path, alive: int) -> None:
    """Remove the directory of this process, which is no spare any more."""
    with contextlib.suppress(OSError):
        claims.discard(directory)
    os.close(alive)


def _is_possible(spec: Spec) -> bool:
    """Whether such a sandbox may have spares. Spares with huge pages would take them from other
    sandboxes."""
    return bool(
        spec.spares
        and spec.template
        and not (spec.in_host_netns or spec.machine.hugepages or spec.taps)
        and spec.model == "tcfilter"
    )


def _plain(spec: Spec) -> Spec:
    """The parts of a specification that matter to a spare."""
    return replace(spec, netns="", networks=[], cgroup="", dns=None, netmon=[])


def _described(spec: Spec) -> dict[str, Any]:
    return {
        "memory_mib": spec.machine.memory_mib,
        "vcpus": spec.machine.vcpus,
        "share": spec.machine.share is not None,
        "since": time.time(),
    }


def _asked(directory: Path) -> Waiting | None:
    """Connect to a spare; None unless it becomes this caller's."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    allowance = starving.Allowance(supervisors.pid_of(directory), _ANSWER_SECONDS)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        with unixsocket.address(directory / SOCKET) as path:
            connection.connect(path)
        if _heard(connection, allowance) == YOURS:
            connection.settimeout(None)
            return Waiting(connection)
    except OSError:
        pass  # another caller was first, or the spare is not ready, or dead
    connection.close()
    return None


def _heard(connection: socket.socket, allowance: starving.Allowance) -> bytes:
    """The greeting of a spare that answers in time; nothing when it closes the connection. A spare
    that has no processor is waited for: the start of a sandbox without it would take longer."""
    while (left := allowance.left()) > 0:
        connection.settimeout(max(left, starving.STEP_SECONDS))
        with contextlib.suppress(TimeoutError):
            return connection.recv(len(YOURS))
    raise TimeoutError


def _living(directory: Path, key: str) -> Iterator[str]:
    for name in claims.names(directory):
        if name.startswith(f"{key}-") and filelock.is_held(directory / name / ALIVE):
            yield name


def _sweep(directory: Path) -> None:
    """Remove the directory of a spare, if it was killed."""
    if not filelock.is_held(directory / ALIVE):
        with contextlib.suppress(OSError):  # another process removes it
            claims.discard(directory)


def _end(spare: Spare) -> None:
    """End a spare, unless a sandbox has taken it, or another process has its pid."""
    is_it = partial(supervisors.is_it, spare.directory, spare.pid)
    with contextlib.suppress(OSError):
        ending.end(spare.pid, _END_SECONDS, is_it, (signal.SIGTERM, signal.SIGKILL))
