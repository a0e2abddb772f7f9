"""Requests to a supervisor as bytes on its socket: the client's side of `control.server`. Imports
little, because each call of the OCI runtime is a new process.
"""

import contextlib
import json
import os
import socket

from tapwright.errors import UnknownRequestError, UsageError
from tapwright.linux import unixsocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Json = dict[str, Any]

SOCKET = "control.sock"
VERSION = 1
"""The version of the requests, which the request `version` returns; version 0 lacked that request.
New versions only add requests and arguments, so older and newer clients can talk to a running
sandbox: each new argument has a default, and a supervisor refuses a request that it does not
know."""
MAX_REQUEST = 16 << 20
"""Bytes; the same as in `agent.protocol`, because most of a request goes on to the guest."""


def connected(directory: "str | os.PathLike[str]", seconds: float | None = None) -> socket.socket:
    """A connection with the supervisor of the sandbox in a directory; each step on it may take so
    many seconds. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        with unixsocket.address(os.path.join(directory, SOCKET)) as path:
            connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def send(connection: socket.socket, request: "Json", descriptors: "Sequence[int]" = ()) -> None:
    """Send a request with its descriptors, which begins the connection. It is no failure when the
    supervisor refuses the request before it has read all: its answer can be read. Raises OSError,
    and UsageError for a request that is too large."""
    # The same form as in `agent.protocol`.
    text = json.dumps(request, ensure_ascii=False, separators=(",", ":")) + "\n"
    line = text.encode(errors="surrogatepass")
    if len(line) > MAX_REQUEST:
        raise UsageError(
            f"{request['op']} is a request of {len(line)} bytes, and a sandbox takes {MAX_REQUEST}"
        )
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sent = socket.send_fds(connection, [line], list(descriptors)) if descriptors else 0
        connection.sendall(memoryview(line)[sent:])


def kind_of(refusal: "Json") -> "Any":
    """The name of a refusal's error; for an unknown request, UnknownRequestError."""
    kind, said = refusal.get("kind"), str(refusal.get("message"))
    # The words of version 0.
    if kind == "ProtocolError" and said.startswith("unknown request "):
        return UnknownRequestError.__name__
    if kind == "TypeError" and "got an unexpected keyword argument" in said:
        return UnknownRequestError.__name__
    return kind


def answer(connection: socket.socket) -> "tuple[int, Json] | None":
    """(REPLY or ERROR, content): the answer to a request that has one; None when the supervisor has
    hung up. Raises OSError, ProtocolError."""
    from tapwright.agent import protocol

    decoder, assembler = protocol.Decoder(), protocol.Assembler()
    while data := connection.recv(protocol.WINDOW):
        for frame in decoder.feed(data):
            content = assembler.add(frame)
            if content is not None:
                return frame.kind, protocol.read_json(content)
    return None
