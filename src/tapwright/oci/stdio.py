"""The stdin, stdout and stderr of a container's process, or its terminal."""

import fcntl
import os
import stat

from tapwright.errors import ContainerStateError
from tapwright.oci import console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_NULL = os.makedev(1, 3)  # admin-guide/devices.txt


class Stdio:
    """`descriptors` go to the supervisor: stdin, stdout, stderr, or only a terminal. The `terminal`
    is the container's `own`, or the caller's, whose mode `close` restores. Without input,
    `null_stdin`, the process has its own null device: programs look at what stdin is (ripgrep
    searches a pipe in place of files)."""

    def __init__(
        self,
        descriptors: list[int],
        terminal: int | None = None,
        mode: "list[Any] | None" = None,
        null_stdin: bool = False,
    ) -> None:
        self.descriptors = descriptors
        self.terminal = terminal
        self._mode = mode
        self.own = terminal is not None and mode is None
        self.null_stdin = null_stdin

    def close(self) -> None:
        if self._mode is not None and self.terminal is not None:
            console.restore(self.terminal, self._mode)
        for fd in self.descriptors:
            os.close(fd)


def of_process(process: "dict[str, Any]", console_socket: str, detached: bool) -> Stdio:
    """The Stdio for a process. If the process gets the caller's terminal, its consoleSize becomes
    that of the terminal. Raises ContainerStateError, in runc's words, for options that contradict
    the process."""
    if not process.get("terminal"):
        if console_socket:
            raise ContainerStateError(
                "cannot use console socket if the container has no terminal (process.terminal)"
            )
        stdin = _usable(0, os.O_RDONLY)
        descriptors = [stdin, _usable(1, os.O_WRONLY), _usable(2, os.O_WRONLY)]
        # runc makes pipes for a process for which it waits.
        return Stdio(descriptors, null_stdin=detached and _is_null(os.fstat(stdin)))
    if console_socket:
        slave = console.opened_for(console_socket, process.get("consoleSize"))
        return Stdio([slave], slave)
    if detached:
        raise ContainerStateError("cannot allocate tty if detached without setting console socket")
    tty = _of_the_caller()
    size = os.get_terminal_size(tty)
    process["consoleSize"] = {"height": size.lines, "width": size.columns}
    return Stdio([tty], tty, console.make_raw(tty))


def _is_null(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL


def _usable(fd: int, access: int) -> int:
    """A copy of this process's descriptor; as with runc, the null device if that is closed, or
    can't be read or written as needed."""
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if flags & os.O_ACCMODE in (access, os.O_RDWR):
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        pass
    return os.open(os.devnull, access | os.O_CLOEXEC)


def _of_the_caller() -> int:
    for fd in (0, 1, 2):
        if os.isatty(fd):
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        raise ContainerStateError(
            "the container needs a terminal, and this command has none: give a --console-socket"
        ) from None
