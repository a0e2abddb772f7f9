"""The messages between a sandbox's supervisor and its caller over their socket pair.

The caller gives the supervisor a sandbox (`launching.Waiting.tell`). The supervisor answers with
one JSON object a line: `progress` and `warning`, and at the end `running` or `failed`. The module
imports little, because the supervisor reads its order before it loads the rest.
"""

import contextlib
import json
import select
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tapwright import errors
from tapwright.errors import TapwrightError
from tapwright.linux import unixsocket
from tapwright.progress import Progress
from tapwright.sandbox import environment

_MESSAGE_BYTES = 16 * 1024


class Silence(Exception):  # noqa: N818 - leads to another start, or to an error of its own
    """The supervisor ended without `running` or `failed`."""


def follow(connection: socket.socket, progress: Progress, warn: Progress) -> None:
    """Pass on the supervisor's messages until the sandbox runs. Raises the errors of the start, or
    Silence."""
    try:
        for message in _messages(connection):
            if "progress" in message:
                progress(message["progress"])
            elif "warning" in message:
                warn(message["warning"])
            elif "running" in message:
                return
            else:
                raise _failure(message)
    except KeyboardInterrupt:
        give_up(connection)
        for _ in _messages(connection):
            pass
        raise
    raise Silence


def give_up(connection: socket.socket) -> None:
    """Make the supervisor take everything back, as when its caller ends. Raises OSError."""
    connection.shutdown(socket.SHUT_WR)


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    with connection.makefile() as lines:
        for line in lines:
            yield json.loads(line)


def _failure(message: dict[str, Any]) -> TapwrightError:
    text = message["failed"]
    if message["left"]:
        text += (
            f". Not everything could be taken back ({'; '.join(message['left'])}): delete the "
            "sandbox to try again"
        )
    return errors.named(message["kind"])(text)


class Order(NamedTuple):
    """The sandbox for a supervisor: its directory, the descriptor of its `alive` lock, and the log
    level and priority of its caller."""

    directory: Path
    alive_fd: int
    log_level: str
    nice: int


class Caller:
    """The process that waits for the sandbox, as the supervisor sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def fileno(self) -> int:
        return self._socket.fileno()

    def has_spoken(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def order(self) -> Order | None:
        """Wait for the order; None when the caller goes away without one."""
        # Not inheritable: a plugin that outlived this process with the lock would look like it.
        data, fds, _ = unixsocket.received(self._socket, _MESSAGE_BYTES, 2)
        if not data or not fds:
            return None
        for fd in fds[1:]:
            environment.take(fd)  # for plugins
        said = json.loads(data)
        return Order(Path(said["directory"]), fds[0], said["log_level"], said.get("nice", 0))

    def progress(self, text: str) -> None:
        self._tell(progress=text)

    def warn(self, text: str) -> None:
        """Report a difference from the request that does not stop the sandbox."""
        self._tell(warning=text)

    def running(self) -> None:
        self._tell(running=True)
        self._socket.close()

    def failed(self, error: BaseException, left: Sequence[str]) -> None:
        """Report the failure; `left` says in words what could not be taken back."""
        self._tell(failed=str(error), kind=type(error).__name__, left=list(left))

    def is_gone(self) -> bool:
        """Whether the caller has hung up. The caller sends nothing more, so a readable socket is at
        its end."""
        try:
            return not self._socket.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _tell(self, **content: Any) -> None:
        with contextlib.suppress(OSError):  # the caller has gone, and no other process waits
            self._socket.sendall(json.dumps(content).encode() + b"\n")
