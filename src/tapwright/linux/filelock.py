"""Locks on files and directories (flock(2)). The kernel frees a lock with its last holder."""

import fcntl
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Path = str | os.PathLike[Any]

_PAUSE = 0.01


def is_held(path: "Path") -> bool:
    """Whether a process has locked the file exclusively. Never waits. False if the file does not
    exist."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def locked_within(fd: int, seconds: float) -> bool:
    """Lock a file; return False if other processes hold the lock for longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)  # flock(2) can't wait for a bounded time
        else:
            return True


def is_still(fd: int, path: "Path") -> bool:
    """Whether the open file is still the one at the path. After a wait, the lock may be that of a
    file that was removed."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
