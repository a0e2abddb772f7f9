"""Which operations may run at the same time, across processes (section 3, "Lifecycle &
Ordering"): one on a container, any number on different ones, and GC only on its own.

Each lock is a flock(2) that plugins inherit with its descriptor. So it is held as long as any of
them runs, even when the process that took it was killed in between: a DEL that follows waits for
the ADD that nobody watches any more, and then finds all that it made.

Three locks in the cache directory, taken in this order only, so that nothing can wait in a circle:
the directory "locks", which a GC that waits keeps for itself and others pass through, so that they
can't keep it waiting for ever; the directory "results", shared by all operations on containers and
exclusive to GC; and a file a container, which is gone when nobody uses it.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from tapwright.cni.errors import CniError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02


@contextlib.contextmanager
def container(directory: str, container_id: str, timeout: float) -> Iterator[tuple[int, ...]]:
    """Be the only one to work on this container, with no GC going on; gives the descriptors that
    plugins are to inherit. Raises CniError when that can't be had within `timeout` seconds."""
    gate, results = _directories(directory)
    deadline = time.monotonic() + timeout
    with _held(gate, fcntl.LOCK_SH, deadline, "GC"):
        shared = _acquire(results, fcntl.LOCK_SH, deadline, "GC")
    path = os.path.join(gate, f"container-{container_id}")
    try:
        own = _acquire(path, fcntl.LOCK_EX, deadline, f"another operation on {container_id!r}")
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
    """For GC: no operation on any container goes on. Raises CniError like `container`."""
    gate, results = _directories(directory)
    deadline = time.monotonic() + timeout
    with (
        _held(gate, fcntl.LOCK_EX, deadline, "another GC"),
        _held(results, fcntl.LOCK_EX, deadline, "an ADD, DEL or CHECK") as fd,
    ):
        yield (fd,)


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
def _held(path: str, kind: int, deadline: float, holder: str) -> Iterator[int]:
    fd = _acquire(path, kind, deadline, holder)
    try:
        yield fd
    finally:
        _release(fd)


def _acquire(path: str, kind: int, deadline: float, holder: str) -> int:
    pause = _FIRST_PAUSE
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd  # else whoever had it removed the file, and we hold a dead one
        except BlockingIOError:
            if time.monotonic() > deadline:
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
        raise CniError(f"the lock {path} can't be opened: {error.strerror}") from None


def _release(fd: int) -> None:
    # Not only close: a daemon that a plugin left behind holds a copy of the descriptor.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
