"""Reports writes to files (inotify(7)), including those of /proc/sys."""

import os

from tapwright.linux import libc

_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_MODIFY, _ONLY_DIRECTORIES = 0x2, 0x01000000
_READ_BYTES = 64 * 1024


class Writes:
    """Reports writes to the files in some directories. Raises OSError."""

    def __init__(self) -> None:
        self._fd = libc.inotify_init(_NONBLOCK | _CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is a report."""
        return self._fd

    def add(self, directory: str) -> None:
        """Report writes in a directory from now on. Adding it twice changes nothing. Raises
        OSError."""
        libc.inotify_add_watch(self._fd, directory, _MODIFY | _ONLY_DIRECTORIES)

    def drain(self) -> bool:
        """Discard the reports so far; return whether there were any."""
        found = False
        try:
            while os.read(self._fd, _READ_BYTES):
                found = True
        except BlockingIOError:
            pass
        return found
