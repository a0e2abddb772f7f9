"""The control socket: what a running sandbox can be asked.

A connection begins with one JSON object on a line, the request: `op`, and its arguments. The
answer is a REPLY or ERROR in frames of `agent.protocol`, session 0 and stream 0. What has begun is
done to its end, also when the client hangs up.

For `exec` (fields as in the agent's request) frames go both ways until then; credit flows from end
to end, so the supervisor never holds more than a window. A client that hangs up ends its command.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame
from tapwright.errors import TapwrightError
from tapwright.sandbox.client import address

_log = logging.getLogger(__name__)

Operations = Mapping[str, Callable[..., Awaitable[Any]]]

_FROM_CLIENT = (protocol.STDIN, protocol.SIGNAL, protocol.CREDIT)
_BACKLOG_BYTES = 4 * protocol.WINDOW


@contextlib.asynccontextmanager
async def serving(
    directory: Path, agent: AgentClient, operations: Operations
) -> AsyncIterator[None]:
    """Answer on the directory's socket for the length of the block; only root may connect.

    `operations` are the requests but for `exec`, by name; each takes its arguments by keyword.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await _serve(agent, operations, reader, writer)
        finally:
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


async def _serve(
    agent: AgentClient,
    operations: Operations,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    try:
        request = protocol.read_json(await reader.readline())
        op = request.pop("op", None)
        if op == "exec":
            await _relay(agent, {"op": op, **request}, reader, writer)
        elif operation := operations.get(op):
            answer = {"result": await operation(**request)}
            writer.write(protocol.message(protocol.REPLY, 0, 0, answer))
        else:
            raise protocol.ProtocolError(f"unknown request {op!r}")
    except (protocol.ProtocolError, TapwrightError, TypeError, ValueError) as error:
        refusal = {
            "message": str(error),
            "kind": type(error).__name__,
            "result": getattr(error, "result", None),
        }
        writer.write(protocol.message(protocol.ERROR, 0, 0, refusal))
    except Exception as error:
        _log.exception("unexpected")
        text = f"unexpected {type(error).__name__}: {error}; the sandbox's log has more"
        writer.write(protocol.message(protocol.ERROR, 0, 0, {"message": text}))
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
