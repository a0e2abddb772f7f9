"""The control socket of a sandbox's supervisor, from here: requests with descriptors, and the
conversation that a container's process is. `sandbox.client` is the same for all other requests;
this one imports less, for each call of the runtime is a new process.
"""

import json
import os
import socket

from tapwright import errors
from tapwright.errors import AgentError, SandboxStateError
from tapwright.sandbox import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from tapwright.oci.log import Log

    Json = dict[str, Any]

_LINE_BYTES = 64 * 1024


class Sandbox:
    """A sandbox, by its id in a root; its supervisor may take so many `seconds` to answer."""

    def __init__(self, root: str, sandbox_id: str, seconds: float = 120.0) -> None:
        self.id = sandbox_id
        self.directory = os.path.join(root, "sandboxes", sandbox_id)
        self._seconds = seconds

    def call(self, op: str, descriptors: "Sequence[int]" = (), **arguments: "Any") -> "Any":
        """Have the supervisor do something; return its answer.

        Raises SandboxStateError when it does not run or answer, and what it raised.
        """
        from tapwright.agent import protocol

        with self._connected() as connection:
            try:
                wire.send(connection, {"op": op, **arguments}, descriptors)
                answer = wire.answer(connection)
            except OSError as error:
                raise SandboxStateError(f"sandbox {self.id!r} did not answer: {error}") from None
        if answer is None:
            raise SandboxStateError(f"sandbox {self.id!r} ended before it answered to {op}")
        kind, content = answer
        if kind == protocol.REPLY:
            return content["result"]
        raise _failure(content["message"], content)

    def call_if_known(self, op: str, log: "Log", **arguments: "Any") -> None:
        """Have done what a sandbox that an older version started can do without."""
        try:
            self.call(op, **arguments)
        except errors.UnknownRequestError as error:
            log.warn(str(error))

    def converse(
        self, op: str, descriptors: "Sequence[int]", **arguments: "Any"
    ) -> "tuple[socket.socket, Json]":
        """Begin a process in a container; return the connection, from which nothing but the first
        line has been read, and that line. Raises as `call` does."""
        connection = self._connected()
        try:
            wire.send(connection, {"op": op, **arguments}, descriptors)
            first = _refused(connection) or _line(connection)
        except (OSError, ValueError) as error:
            connection.close()
            raise SandboxStateError(f"sandbox {self.id!r} did not answer: {error}") from None
        except BaseException:
            connection.close()
            raise
        if "failed" in first:
            connection.close()
            process = arguments.get("process") or arguments["config"]["process"]
            message = _as_runc(first["failed"], process["args"][0])
            raise _failure(message, first)
        if first.keys().isdisjoint(("created", "started")):
            connection.close()
            raise AgentError(f"the guest's answer to {op} makes no sense")
        connection.settimeout(None)
        return connection, first

    def _connected(self) -> socket.socket:
        try:
            return wire.connected(self.directory, self._seconds)
        except OSError as error:
            raise SandboxStateError(f"sandbox {self.id!r} does not run: {error.strerror}") from None


def _refused(connection: socket.socket) -> "Json | None":
    """What the supervisor says when it can't take the request, which it does in frames; None when
    something else comes. Raises OSError."""
    if connection.recv(1, socket.MSG_PEEK) in (b"", b"{"):
        return None
    answer = wire.answer(connection)
    if answer is None:
        raise ConnectionError("it hung up")
    return {"failed": answer[1]["message"], "kind": answer[1].get("kind")}


def _line(connection: socket.socket) -> "Json":
    """The next line, and no byte more: what follows is for the shim. Raises OSError, ValueError."""
    line = b""
    while not line.endswith(b"\n"):
        ahead = connection.recv(_LINE_BYTES, socket.MSG_PEEK)
        if not ahead:
            raise ConnectionError("it hung up")
        line += connection.recv(ahead.find(b"\n") + 1 or len(ahead))
        if len(line) > _LINE_BYTES:
            raise ValueError("a line without end")
    content: Json = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("an answer that is no object")
    return content


def _failure(message: str, content: "Json") -> errors.TapwrightError:
    return errors.named(wire.kind_of(content), AgentError)(message)


def _as_runc(message: str, program: str) -> str:
    """What crun says of a program that it can't execute, in runc's words: docker's exit status
    follows from these, to the letter (daemon/start_unix.go and errors.go, of moby 20.10)."""
    if "/" not in program and message.endswith("not found in $PATH: No such file or directory"):
        return f'exec: "{program}": executable file not found in $PATH'
    for reason in ("No such file or directory", "Permission denied"):
        if message.endswith(reason) and "executable" in message:
            return f'exec: "{program}": {reason.lower()}'
    return message
