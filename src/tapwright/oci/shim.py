"""Starts the shim of a process in a container: `shim.sh`, in a process of its own."""

import contextlib
import os
import re

from tapwright.errors import ContainerStateError, TapwrightError
from tapwright.linux import files
from tapwright.oci import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from typing import Any

    from tapwright.sandbox.client import Supervisor

_SHELL = "/bin/sh"
_SCRIPT = os.path.join(os.path.dirname(__file__), "shim.sh")
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"  # platforms may give none
_CONNECTION, _TERMINAL = 3, 4
_SIGNALS = range(1, 32)
_OF_PROGRAM = re.compile(
    r"(?:open executable|(?:executable file|the path|open) `(?P<path>[^`]*)`[^`]*)"
    r": (?P<reason>[^:]+)$"
)
_UNFIT = "Operation not permitted"  # what crun says of a directory, and newer ones of a plain file
_UNREACHABLE = (
    "No such file or directory",
    "Not a directory",
    "Too many levels of symbolic links",
)


def begin(
    supervisor: "Supervisor", op: str, descriptors: "Sequence[int]", **arguments: "Any"
) -> "tuple[socket.socket, dict[str, Any]]":
    """Begin a process in a container, as `Supervisor.converse` does; failures get runc's words."""
    try:
        return supervisor.converse(op, descriptors, **arguments)
    except TapwrightError as error:
        process = arguments.get("process") or arguments["config"]["process"]
        error.args = (program_error_in_runcs_words(str(error), process["args"][0]),)
        raise


def start(
    connection: "socket.socket",
    name: str,
    terminal: int | None = None,
    own: bool = False,
    netns: str = "",
    view: int | None = None,
) -> int:
    """Start a shim on the connection that `begin` returned; return its pid.

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


def program_error_in_runcs_words(message: str, program: str) -> str:
    """Translate crun's error about a program that it can't execute into runc's words: docker
    derives its exit status from them (daemon/start_unix.go and errors.go, of moby 20.10). crun
    before 1.9 looks for a program in src/libcrun/container.c, later ones do in src/libcrun/utils.c:
    find_executable."""
    found = _OF_PROGRAM.search(message)
    if not found or (found["path"] and not found["path"].endswith(program)):
        return message
    reason = found["reason"]
    if "/" not in program and reason in ("No such file or directory", _UNFIT):
        return f'exec: "{program}": executable file not found in $PATH'
    if reason in (_UNFIT, "Permission denied"):
        return f'exec: "{program}": permission denied'
    if reason in _UNREACHABLE:
        return f'exec: "{program}": stat {program}: {reason.lower()}'
    return message


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
