"""Follows a directory of networks, by inotify(7)."""

import contextlib
import ctypes
import errno
import os
import select
from types import TracebackType

from tapwright.cni.directory import load_networks
from tapwright.cni.errors import CniError, ConfigurationError
from tapwright.cni.network import Network

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_CHANGES = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_CLOEXEC, _NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_BUFFER = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class NetworkWatcher:
    """The `networks` and `problems` of a directory (see `load_networks`), always up to date.

    The directory, and folders of plugins in it, may come and go. Use it in a `with` statement, and
    call `wait`; or wait for `fileno()` to become readable (an event loop's add_reader), and then
    call `wait(0)`. Raises CniError when the kernel gives no more watches.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = os.path.abspath(directory)
        self.networks: list[Network] = []
        self.problems: list[ConfigurationError] = []
        self._fd: int = _libc.inotify_init1(_CLOEXEC | _NONBLOCK)
        if self._fd < 0:
            raise _failure("inotify can't be used")
        self._watches: set[int] = set()
        try:
            self._load()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> "NetworkWatcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until something changes, `timeout` seconds at most, and load again; return whether
        anything changed."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            return False
        self._load()
        return True

    def _load(self) -> None:
        """Watch first, then read, so that the next `wait` reports changes in between."""
        for watch in self._watches:
            _libc.inotify_rm_watch(self._fd, watch)  # fails for a directory that is gone
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _BUFFER):
                pass  # it does not matter which file has changed
        paths: list[str] = []
        while paths != (now := self._paths()):  # directories may appear meanwhile
            paths = now
            self._watches = {self._watch(path) for path in paths}
        self.networks, self.problems = load_networks(self.directory)

    def _paths(self) -> list[str]:
        """The directory and its folders; if it is missing, the nearest directory above it."""
        path = self.directory
        while not os.path.isdir(path) and path != "/":
            path = os.path.dirname(path)
        if path != self.directory:
            return [path]
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            return [path, *(entry.path for entry in entries if entry.is_dir())]
        return [path]

    def _watch(self, path: str) -> int:
        watch: int = _libc.inotify_add_watch(self._fd, os.fsencode(path), _CHANGES)
        if watch < 0 and ctypes.get_errno() not in (errno.ENOENT, errno.ENOTDIR):
            raise _failure(f"{path} can't be watched")
        return watch


def _failure(what: str) -> CniError:
    return CniError(f"{what}: {os.strerror(ctypes.get_errno())}")
