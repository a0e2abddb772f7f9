"""The control socket: what a running sandbox can be asked.

A connection begins with one JSON object on a line, the request. For `exec` (fields as in the
agent's request) it goes on with frames of `agent.protocol`, session 0 and stream 0, both ways
until REPLY or ERROR; credit flows from end to end, so the supervisor never holds more than a
window. A client that hangs up ends its command.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame
from tapwright.errors import AgentError

SOCKET = "control.sock"
_FROM_CLIENT = (protocol.STDIN, protocol.SIGNAL, protocol.CREDIT)
_BACKLOG_BYTES = 4 * protocol.WINDOW


@contextlib.asynccontextmanager
async def serving(directory: Path, agent: AgentClient) -> AsyncIterator[None]:
    """Answer on the directory's socket for the length of the block; only root may connect."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await _serve(agent, reader, writer)
        writer.close()

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with address(directory) as path:
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
    server = await asyncio.start_unix_server(serve, sock=listener, limit=protocol.MAX_MESSAGE)
    async with server:
        yield


@contextlib.contextmanager
def address(directory: Path) -> Iterator[str]:
    """The socket's address, short enough for any depth of the directory (unix(7): 107 bytes)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


async def _serve(
    agent: AgentClient, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        request = protocol.read_json(await reader.readline())
        if request.get("op") != "exec":
            raise protocol.ProtocolError(f"unknown request {request.get('op')!r}")
        await _relay(agent, request, reader, writer)
    except (protocol.ProtocolError, AgentError, ValueError) as error:
        writer.write(protocol.message(protocol.ERROR, 0, 0, {"message": str(error)}))
    await writer.drain()


async def _relay(
    agent: AgentClient,
    request: dict[str, Any],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    over = asyncio.Event()

    def pass_on(frame: Frame) -> None:
        if writer.transport.get_write_buffer_size() > _BACKLOG_BYTES:
            over.set()  # more than the windows allow: a guest that breaks the rules
        if over.is_set():
            return
        writer.write(protocol.encode(frame._replace(session=0, stream=0)))
        if frame.kind in (protocol.REPLY, protocol.ERROR) and not frame.flags & protocol.MORE:
            over.set()

    async def listen() -> None:
        decoder = protocol.Decoder()
        while data := await reader.read(protocol.WINDOW):
            for frame in decoder.feed(data):
                if frame.kind in _FROM_CLIENT:
                    await agent.send(stream, frame.kind, frame.payload)

    stream = await agent.open(request, pass_on)
    listening = asyncio.create_task(listen())
    ending = asyncio.create_task(over.wait())
    try:
        await asyncio.wait((listening, ending), return_when=asyncio.FIRST_COMPLETED)
    finally:
        # The agent ignores the end of what has ended.
        agent.close_stream(stream, cancel=True)
        for task in (listening, ending):
            task.cancel()
        await asyncio.gather(listening, ending, return_exceptions=True)
