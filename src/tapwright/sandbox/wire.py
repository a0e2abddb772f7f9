"""Requests to a supervisor on the wire: the client's side of `control.server`. Imports little,
because each call of the OCI runtime is a new process.
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
"""The version of the requests, which `version` returns; version 0 did not have that request.
Requests and arguments are only added, so that older and newer versions can talk to a running
sandbox: an argument that may be missing has a default, and a new request may be refused as
unknown."""
MAX_REQUEST = 16 << 20
"""Bytes of a request: those of `agent.protocol`, for most of it goes on to the guest."""


def connected(directory: "str | os.PathLike[str]", seconds: float | None = None) -> socket.socket:
    """A connection with the supervisor of the sandbox in a directory, which may take so many
    seconds to do each thing. Raises OSError."""
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
    """Begin a connection with a request and its descriptors. One that the supervisor refuses
    before it has read all is no failure: the answer is there. Raises OSError, and UsageError for a
    request that is too large."""
    # As `agent.protocol` has it.
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
    """The kind of error of a refusal; of a request that is not known, UnknownRequestError."""
    kind, said = refusal.get("kind"), str(refusal.get("message"))
    # As version 0 said it.
    if kind == "ProtocolError" and said.startswith("unknown request "):
        return UnknownRequestError.__name__
    if kind == "TypeError" and "got an unexpected keyword argument" in said:
        return UnknownRequestError.__name__
    return kind


def answer(connection: socket.socket) -> "tuple[int, Json] | None":
    """(REPLY or ERROR, content) of a request that is answered once; None when the supervisor has
    hung up. Raises OSError, ProtocolError."""
    from tapwright.agent import protocol

    decoder, assembler = protocol.Decoder(), protocol.Assembler()
    while data := connection.recv(protocol.WINDOW):
        for frame in decoder.feed(data):
            content = assembler.add(frame)
            if content is not None:
                return frame.kind, protocol.read_json(content)
    return None
