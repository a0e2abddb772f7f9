"""Starts the shim of a process in a container: `shim.sh`, in a process of its own."""

import contextlib
import os

from tapwright.errors import ContainerStateError
from tapwright.linux import files
from tapwright.oci import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Any

_SHELL = "/bin/sh"
_SCRIPT = os.path.join(os.path.dirname(__file__), "shim.sh")
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"  # platforms may give none
_CONNECTION, _TERMINAL = 3, 4
_SIGNALS = range(1, 32)


def start(
    connection: "socket.socket",
    name: str,
    terminal: int | None = None,
    own: bool = False,
    netns: str = "",
    view: int | None = None,
) -> int:
    """Start a shim on the connection that `Supervisor.converse` returned; return its pid.

    The shim has only the connection and the `terminal` open. With `own`, the terminal becomes the
    shim's controlling terminal, so that the shim gets SIGWINCH; no other process may have it then.
    The shim runs in the network namespace at `netns` and the mount namespace `view` (`oci.view`),
    if given. `name` is what ps(1) shows. Raises ContainerStateError.
    """
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
        (os.POSIX_SPAWN_DUP2, connection.fileno(), _CONNECTION),
    ]
    keep = [0, 1, 2, _CONNECTION]
    if terminal is not None:
        # A session leader without a terminal gets the one it opens (tty_open_proc_set_tty).
        flags = os.O_RDWR | (0 if own else os.O_NOCTTY)
        actions.append((os.POSIX_SPAWN_OPEN, _TERMINAL, os.ttyname(terminal), flags, 0))
        keep.append(_TERMINAL)
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited() if fd not in keep]
    kind = "none" if terminal is None else "terminal"

    def spawn() -> int:
        return os.posix_spawn(
            _SHELL,
            [_SHELL, _SCRIPT, kind, name],
            {"PATH": _PATH},
            file_actions=actions,
            setsid=True,
            setsigdef=_SIGNALS,
            setsigmask=[],
        )

    try:
        with _within(netns):
            if view is None:
                return spawn()
            from tapwright.linux import mounts

            return mounts.joined(view, spawn)
    except OSError as error:
        raise ContainerStateError(f"the shim can't be started: {error}") from None


def _inherited() -> list[int]:
    """Descriptors that a new program would inherit: those that this process got from its caller."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very list
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found


@contextlib.contextmanager
def _within(netns: str) -> "Iterator[None]":
    """Enter the network namespace, if one is given, for the length of the block."""
    if not netns:
        yield
        return
    from tapwright.linux import netns as namespaces

    with namespaces.entered(netns):
        yield


def write_pid_file(path: str, pid: int) -> None:
    """Write a complete file, or none. Raises ContainerStateError."""
    try:
        files.replace(os.path.abspath(path), str(pid), synced=False, mode=0o666)
    except OSError as error:
        raise ContainerStateError(f"{path} can't be written: {error.strerror}") from None


def pids_of(name: str) -> list[int]:
    """The shims of that name."""
    pids = map(int, filter(str.isdecimal, os.listdir("/proc")))
    return sorted(pid for pid in pids if state.command_of(pid)[1:4:2] == [_SCRIPT, name])
