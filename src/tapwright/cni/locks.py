"""Locks between operations of all processes (section 3, "Lifecycle & Ordering"): one operation on a
container at a time, any number on different containers, and GC alone.

Each lock is a flock(2) on a descriptor that plugins inherit. So it is held as long as any of them
runs, even when the process that took it was killed: a later DEL waits for the orphaned ADD, and
then finds all that the ADD has made. The process that waits kills a plugin that runs for too long,
because no other process would.

Three locks in the cache directory are always taken in this order, so that no processes wait for
each other. The directory "locks": a GC keeps it while it waits, so that other operations can't
delay the GC for ever; these release it at once. The directory "results": shared by operations on
containers, exclusive for GC. And a file for each container, which is removed when no process uses
it. On a disk without room for that file, an operation takes "results" exclusively instead; so a DEL
that makes room stays possible.
"""

import contextlib
import errno
import fcntl
import os
import re
import signal
import time
from collections.abc import Iterator

from tapwright.cni.errors import CniError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02
_LOOK_SECONDS = 0.5
PLUGIN_SECONDS = 240.0
"""How long a plugin may run: the default `timeout` of `Runtime`, and the limit of a plugin without
a watcher. The reference plugin dhcp asks for 208 s by default (plugins/ipam/dhcp/lease.go), and
the kubelet gives a pod's sandbox 240 s."""


_TAKER = re.compile(r"(?m)^lock:.*\bFLOCK +ADVISORY +\w+ +(\d+) ")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _NoRoomError(CniError):
    """A lock's file can't be made for want of room."""


@contextlib.contextmanager
def container(directory: str, container_id: str, timeout: float) -> Iterator[tuple[int, ...]]:
    """Keep other operations on this container, and GC, out for the length of the block; yield the
    descriptors that plugins must inherit. Raises CniError when that takes longer than `timeout`
    seconds."""
    gate, results = _directories(directory)
    deadline = _Deadline(timeout)
    with _held(gate, fcntl.LOCK_SH, deadline, "GC"):
        shared = _acquire(results, fcntl.LOCK_SH, deadline, "GC")
    path = os.path.join(gate, f"container-{container_id}")
    try:
        try:
            own = _acquire(path, fcntl.LOCK_EX, deadline, f"another operation on {container_id!r}")
        except _NoRoomError:
            # Released first: two processes that both want it exclusively would wait for each other.
            fcntl.flock(shared, fcntl.LOCK_UN)
            with _held(
                results, fcntl.LOCK_EX, deadline, "an operation on a container"
            ) as all_of_it:
                yield (all_of_it,)
            return
        try:
            yield shared, own
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            _release(own)
    finally:
        _release(shared)


@contextlib.contextmanager
def everything(directory: str, timeout: float) -> Iterator[tuple[int, ...]]:
    """For GC: keep operations on all containers out. Raises CniError like `container`."""
    gate, results = _directories(directory)
    deadline = _Deadline(timeout)
    with (
        _held(gate, fcntl.LOCK_EX, deadline, "another GC"),
        _held(results, fcntl.LOCK_EX, deadline, "an ADD, DEL or CHECK") as fd,
    ):
        yield (fd,)


class _Deadline:
    """The time until which to wait for locks."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        if seconds >= PLUGIN_SECONDS:
            # When a runtime is killed now, its plugin may be as old as this wait.
            self._end += 2 * _LOOK_SECONDS
        self._next_look = 0.0

    def is_over(self, path: str) -> bool:
        """Whether the time is over; also looks for plugins to kill."""
        if time.monotonic() >= self._next_look:
            _end_overdue(path)
            self._next_look = time.monotonic() + _LOOK_SECONDS
        return time.monotonic() > self._end


def _end_overdue(path: str) -> None:
    """Kill plugins that have held a lock for too long, if the runtime that took it is gone."""
    try:
        lock = os.stat(path)
    except FileNotFoundError:
        return
    pids = map(int, filter(str.isdecimal, os.listdir("/proc")))
    holders = {pid: takers for pid in pids if (takers := _takers(pid, lock))}
    for pid, takers in holders.items():
        if takers & holders.keys():
            continue  # a runtime that works, or its plugin
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                if _age(pid) > PLUGIN_SECONDS and _takers(pid, lock) == takers:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def _takers(pid: int, lock: os.stat_result) -> set[int]:
    """The processes that took a lock, by the descriptors of a process (proc(5), /proc/PID/fdinfo);
    empty if that process does not have the lock."""
    found: set[int] = set()
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for entry in descriptors:
                if _is(entry.path, lock):
                    with open(f"/proc/{pid}/fdinfo/{entry.name}") as file:
                        found |= {int(taker) for taker in _TAKER.findall(file.read())}
    except OSError:
        pass  # the process has ended, or belongs to another user
    return found


def _is(path: str, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), file)
    except OSError:
        return False


def _age(pid: int) -> float:
    """How many seconds a process has run (proc(5), /proc/PID/stat). Raises OSError."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _directories(directory: str) -> tuple[str, str]:
    paths = os.path.join(directory, "locks"), os.path.join(directory, "results")
    for path in paths:
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise CniError(
                f"{path} can't be made: {error.strerror}. Run as root, or choose another cache "
                "directory"
            ) from None
    return paths


@contextlib.contextmanager
def _held(path: str, kind: int, deadline: _Deadline, holder: str) -> Iterator[int]:
    fd = _acquire(path, kind, deadline, holder)
    try:
        yield fd
    finally:
        _release(fd)


def _acquire(path: str, kind: int, deadline: _Deadline, holder: str) -> int:
    pause = _FIRST_PAUSE
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                # Otherwise the last holder removed the file, and this lock is on a removed one.
                return fd
        except BlockingIOError:
            if deadline.is_over(path):
                os.close(fd)
                raise CniError(
                    f"{holder} is still running, and holds the lock {path}; try again later"
                ) from None
            time.sleep(pause)  # flock(2) can wait, but not for a bounded time
            pause = min(2 * pause, _LONGEST_PAUSE)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _open(path: str) -> int:
    kind = os.O_RDONLY | os.O_DIRECTORY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
    try:
        return os.open(path, kind | os.O_CLOEXEC, 0o600)
    except OSError as error:
        kind_of_error = _NoRoomError if error.errno in _NO_ROOM else CniError
        raise kind_of_error(f"the lock {path} can't be opened: {error.strerror}") from None


def _release(fd: int) -> None:
    # Not only close: a daemon that a plugin left behind holds a copy of the descriptor.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
