"""One operation at a time on a container, across processes.

The lock is a flock(2) that plugins inherit with its descriptor. So it is held as long as any of
them runs, even when the process that took it was killed in between: a DEL that follows waits for
the ADD that nobody watches any more, and then finds all that it made.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tapwright.cni.errors import CniError

_PAUSE = 0.02


@contextlib.contextmanager
def container(directory: str, container_id: str, timeout: float) -> Iterator[int]:
    """Hold the container's lock; gives the descriptor to hand on. Raises CniError when it stays
    taken for `timeout` seconds."""
    path = Path(directory, "locks", container_id)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = _acquire(path, time.monotonic() + timeout)
    try:
        yield fd
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _acquire(path: Path, deadline: float) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd  # else whoever had it removed the file, and we hold a dead one
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise CniError(
                    f"another operation on container {path.name!r} is still running"
                ) from None
            time.sleep(_PAUSE)  # flock(2) can wait, but not for a bounded time
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
