"""The control socket: what a running sandbox can be asked.

A connection begins with one JSON object on a line, the request: `op`, and its arguments. The
answer is a REPLY or ERROR in frames of `agent.protocol`, session 0 and stream 0. What has begun is
done to its end, also when the client hangs up. Descriptors that come with the request's line
(SCM_RIGHTS) are handed to the operation as `fds`, and closed when it is done.

For `exec` (fields as in the agent's request) frames go both ways until then; credit flows from end
to end, so the supervisor never holds more than a window. A client that hangs up ends its command.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame
from tapwright.errors import TapwrightError
from tapwright.sandbox.client import address

_log = logging.getLogger(__name__)

Operations = Mapping[str, Callable[..., Awaitable[Any]]]

_FROM_CLIENT = (protocol.STDIN, protocol.SIGNAL, protocol.CREDIT)
_BACKLOG_BYTES = 4 * protocol.WINDOW
_READ_BYTES = 64 * 1024
_WAITING, _PAUSE = 100, 1.0

MAX_FDS = 253
"""The most descriptors that can come with a request (SCM_MAX_FD: include/net/scm.h)."""


@contextlib.asynccontextmanager
async def serving(
    directory: Path, agent: AgentClient, operations: Operations
) -> AsyncIterator[None]:
    """Answer on the directory's socket for the length of the block; only root may connect.

    `operations` are the requests but for `exec`, by name; each takes its arguments by keyword.
    """
    answering: set[asyncio.Task[None]] = set()

    async def accept(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:
                _log.warning("nobody can connect: %s", error.strerror)
                await asyncio.sleep(_PAUSE)
                continue
            connection.setblocking(False)
            task = asyncio.create_task(_answer(agent, operations, connection))
            answering.add(task)
            task.add_done_callback(answering.discard)

    with _listener(directory) as listener:
        accepting = asyncio.create_task(accept(listener))
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)


@contextlib.contextmanager
def _listener(directory: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with address(directory) as path:
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
        listener.listen(_WAITING)
        listener.setblocking(False)
        yield listener


class _Received(NamedTuple):
    """A request's line, what had come after it, and the descriptors that came with either."""

    line: bytes
    rest: bytes
    fds: list[int]


async def _receive(connection: socket.socket) -> _Received:
    """Raises OSError. Descriptors above the most there may be are for `_serve` to refuse."""
    data = bytearray()
    fds: list[int] = []
    try:
        while b"\n" not in data and len(data) <= protocol.MAX_MESSAGE and len(fds) <= MAX_FDS:
            await _readable(connection)
            with contextlib.suppress(BlockingIOError):
                part, new, _, _ = socket.recv_fds(
                    connection, _READ_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC
                )
                fds += new
                if not part:
                    break
                data += part
    except BaseException:
        _close_all(fds)
        raise
    line, _, rest = data.partition(b"\n")
    return _Received(bytes(line), bytes(rest), fds)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


async def _answer(agent: AgentClient, operations: Operations, connection: socket.socket) -> None:
    with connection, contextlib.suppress(ConnectionError):
        received = await _receive(connection)
        try:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(protocol.MAX_MESSAGE)
            reader.feed_data(received.rest)
            ours = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_accepted_socket(lambda: ours, connection)
            writer = asyncio.StreamWriter(transport, ours, reader, loop)
            try:
                await _serve(agent, operations, received, reader, writer)
            finally:
                writer.close()
        finally:
            _close_all(received.fds)


async def _serve(
    agent: AgentClient,
    operations: Operations,
    received: _Received,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    try:
        request = protocol.read_json(received.line)
        op = request.pop("op", None)
        if len(received.fds) > MAX_FDS or "fds" in request:
            raise protocol.ProtocolError(f"more than {MAX_FDS} descriptors, or not as descriptors")
        if op == "exec":
            await _relay(agent, {"op": op, **request}, reader, writer)
        elif operation := operations.get(op):
            arguments = {**request, "fds": received.fds} if received.fds else request
            answer = {"result": await operation(**arguments)}
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
