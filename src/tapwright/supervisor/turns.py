"""Turns: at most so many processes do something at once, first come, first served.

Each process that wants a turn locks one byte of a file: the one at the offset that the monotonic
clock shows, in nanoseconds. It has its turn as soon as fewer bytes before its own are locked than
the limit allows. The kernel frees a lock with its process, however that ended (fcntl(2), "Open file
description locks"), so that nothing is left to tidy up, and no process has to give out the turns.
"""

import errno
import fcntl
import os
import struct
import time

from tapwright.linux.files import closing

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | os.PathLike[str]

_FLOCK = struct.Struct("hhqqi4x")  # struct flock (include/uapi/asm-generic/fcntl.h)
_END = (1 << 63) - 1


class Turn:
    """A turn that this process wants, from now on until `end`. Others that name the same file may
    have other limits: each counts those before itself. Raises OSError."""

    def __init__(self, path: "Path", limit: int) -> None:
        self._limit = limit
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._offset = time.monotonic_ns()
        try:
            while not _lock(self._fd, self._offset):
                self._offset += 1
        except BaseException:
            self.end()
            raise

    def has_come(self) -> bool:
        """Whether the process may begin. No event says when, and it stays true then."""
        return _locked(self._fd, self._offset, self._limit) < self._limit

    def end(self) -> None:
        """Let another process have its turn. Doing it twice changes nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def are_wanted(path: "Path") -> bool:
    """Whether any process has, or waits for, a turn. Raises OSError, but not for want of a file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with closing(fd):
        return _locked(fd, _END, 1) > 0


def _lock(fd: int, offset: int) -> bool:
    """Lock a byte; return False if another process has done so."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, offset, offset + 1))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def _locked(fd: int, end: int, most: int) -> int:
    """Count the bytes before `end` that others have locked, up to `most`."""
    found, spans = 0, [(0, end)]
    while spans and found < most:
        start, end = spans.pop()
        # The kernel names one of the locks in a span, not the first.
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, start, end))
        kind, _, offset, _, _ = _FLOCK.unpack(answer)
        if kind != fcntl.F_UNLCK:
            found += 1
            spans += [span for span in ((start, offset), (offset + 1, end)) if span[0] < span[1]]
    return found


def _flock(kind: int, start: int, end: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, end - start, 0)
