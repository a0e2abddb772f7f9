"""The control socket: it takes requests to a running sandbox.

A connection begins with one JSON object on a line, the request: `op`, and its arguments.
Descriptors may come with the line (unix(7), SCM_RIGHTS). The line has at most `wire.MAX_REQUEST`
bytes, and must come within a minute. The answer is a REPLY or ERROR in frames of `agent.protocol`,
session 0 and stream 0, also to a request that breaks a rule. The supervisor carries out a request
to its end, even when the client hangs up. It does not keep a request that it has sent to the guest.

For `exec` and `probe` (fields as in the agent's request) frames go both ways before the answer;
credit flows from end to end, so the supervisor never holds more than a window. A client that hangs
up ends its command. `control.processes` describes the messages on the connections of containers.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tapwright.agent import protocol, requests
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame
from tapwright.control.stdio import ready
from tapwright.errors import TapwrightError, UnknownRequestError
from tapwright.linux import unixsocket
from tapwright.sandbox.wire import MAX_REQUEST, SOCKET, VERSION

_log = logging.getLogger(__name__)

Operations = Mapping[str, Callable[..., Awaitable[Any]]]

_FROM_CLIENT = (protocol.STDIN, protocol.SIGNAL, protocol.CREDIT, protocol.RESIZE)
_BACKLOG_BYTES = 4 * protocol.WINDOW
_READ_BYTES = 64 * 1024
_REASON_CHARACTERS = 10_000
_PAUSE = 1.0
_REQUEST_SECONDS = 60.0
_LINGER_SECONDS = 5.0
_MOST_DESCRIPTORS = 253  # net/core/scm.c: SCM_MAX_FD
_ANOTHER_VERSION = (
    "this sandbox was started by another version of Tapwright, which does not know it; make it anew"
)


class ControlRequest(NamedTuple):
    """A request, and its connection. The server closes the descriptors that no operation takes out
    of the list."""

    op: str
    arguments: dict[str, Any]
    descriptors: list[int]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


Conversations = Mapping[str, Callable[[ControlRequest], Awaitable[None]]]


@contextlib.asynccontextmanager
async def serving(
    directory: Path,
    agent: AgentClient,
    operations: Operations,
    conversations: Conversations,
) -> AsyncIterator[None]:
    """Answer on the directory's socket for the length of the block; only root may connect.

    `operations` are the requests that get one answer, by name, beside `version`; each takes its
    arguments by keyword, and `fds` if descriptors came. `conversations`, beside `exec` and `probe`,
    use the connection as they like; the end of the block cancels them.
    """

    async def relay(request: ControlRequest) -> None:
        await _relay(agent, request)

    relayed = dict.fromkeys(("exec", "probe"), relay)
    serve = _Server({"version": _version, **operations}, {**relayed, **conversations})
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        with unixsocket.address(directory / SOCKET) as path:
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
        listener.listen(socket.SOMAXCONN)
        listener.setblocking(False)
        tasks = {asyncio.create_task(serve.accept(listener))}
        try:
            yield
        finally:
            tasks |= serve.tasks
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Server:
    def __init__(self, operations: Operations, conversations: Conversations) -> None:
        self._operations = operations
        self._conversations = conversations
        self.tasks: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                _log.error("no connection can be taken at present: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            task = asyncio.create_task(self._serve(connection))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        writer: asyncio.StreamWriter | None = None
        connection.setblocking(False)
        try:
            arguments, rest = await _receive(connection, descriptors)
            reader, writer = await _streams(connection, rest)
            await self._answer(arguments, descriptors, reader, writer)
        except protocol.ProtocolError as error:
            await _refuse(connection, error)
        except ConnectionError as error:
            _log.warning("a connection broke: %s", error)
        finally:
            for fd in descriptors:
                os.close(fd)
            if writer:
                writer.close()
            else:
                connection.close()

    async def _answer(
        self,
        arguments: dict[str, Any],
        descriptors: list[int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            op = arguments.pop("op", None)
            if not isinstance(op, str):
                raise protocol.ProtocolError("op must be the name of a request")
            if "fds" in arguments:
                raise protocol.ProtocolError("descriptors come beside the request, not in it")
            if conversation := self._conversations.get(op):
                await conversation(ControlRequest(op, arguments, descriptors, reader, writer))
            elif operation := self._operations.get(op):
                if descriptors:
                    arguments["fds"] = descriptors
                _check_arguments(op, operation, arguments)
                answer = {"result": await operation(**arguments)}
                writer.write(protocol.message(protocol.REPLY, 0, 0, answer))
            else:
                raise UnknownRequestError(f"unknown request {op!r}: {_ANOTHER_VERSION}")
        except (protocol.ProtocolError, TapwrightError) as error:
            writer.write(_refusal(error))
        except Exception as error:
            _log.exception("unexpected")
            text = f"unexpected {type(error).__name__}: {error}; the sandbox's log has more"
            writer.write(protocol.message(protocol.ERROR, 0, 0, {"message": text}))
        await writer.drain()


async def _version() -> dict[str, int]:
    return {"version": VERSION}


def _check_arguments(
    op: str, operation: Callable[..., Awaitable[Any]], arguments: Mapping[str, Any]
) -> None:
    """Raises UnknownRequestError, and ProtocolError where one is missing."""
    signature = inspect.signature(operation)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = sorted(arguments.keys() - signature.parameters.keys())
    if unknown and not takes_all:
        raise UnknownRequestError(f"{op}: unknown argument {unknown[0]!r}: {_ANOTHER_VERSION}")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise protocol.ProtocolError(f"{op}: {error}") from None


def _refusal(error: Exception) -> bytes:
    refusal = {
        "message": str(error)[:_REASON_CHARACTERS],
        "kind": type(error).__name__,
        "result": getattr(error, "result", None),
    }
    return protocol.message(protocol.ERROR, 0, 0, refusal)


async def _receive(
    connection: socket.socket, descriptors: list[int]
) -> tuple[dict[str, Any], bytes]:
    """The request at the beginning of a connection, and the bytes after it. Raises ProtocolError
    for a client that breaks the rules, ConnectionError for one that has gone."""
    received = bytearray()
    end = -1
    try:
        async with asyncio.timeout(_REQUEST_SECONDS):
            while end < 0:
                await ready(connection.fileno())
                data, some, are_lost = unixsocket.received(
                    connection, _READ_BYTES, _MOST_DESCRIPTORS
                )
                descriptors += some
                if are_lost:
                    raise protocol.ProtocolError(
                        "descriptors were lost: the supervisor has too many open files"
                    )
                if len(descriptors) > _MOST_DESCRIPTORS:
                    raise protocol.ProtocolError(
                        f"{len(descriptors)} descriptors came with a request, and it may have "
                        f"{_MOST_DESCRIPTORS}"
                    )
                found = data.find(b"\n") if data else 0
                end = found if found < 0 else len(received) + found
                received += data
                if (end if end >= 0 else len(received)) >= MAX_REQUEST:
                    raise protocol.ProtocolError(
                        f"a request has {MAX_REQUEST} bytes at most, and this one has more"
                    )
    except TimeoutError:
        raise protocol.ProtocolError(
            f"a request did not come whole within {_REQUEST_SECONDS:g} s"
        ) from None
    rest = bytes(received[end + 1 :])
    del received[end:]
    return protocol.read_json(received), rest


async def _refuse(connection: socket.socket, error: protocol.ProtocolError) -> None:
    """Answer a client that may still be sending. A socket that closes with unread data resets its
    other end, so this reads and discards what comes, for a while."""
    _log.warning("a request was refused: %s", error)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(_LINGER_SECONDS):
            await loop.sock_sendall(connection, _refusal(error))
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, _READ_BYTES):
                pass


async def _streams(
    connection: socket.socket, rest: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection as a pair of streams, when `rest` was read from it already."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=protocol.MAX_MESSAGE)
    reader.feed_data(rest)
    transport, flow = await loop.connect_accepted_socket(
        lambda: asyncio.StreamReaderProtocol(reader), connection
    )
    return reader, asyncio.StreamWriter(transport, flow, reader, loop)


async def _relay(agent: AgentClient, request: ControlRequest) -> None:
    reader, writer = request.reader, request.writer
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
                    await agent.send(await asyncio.shield(opening), frame.kind, frame.payload)

    opening = asyncio.create_task(agent.open(requests.of(request.op, **request.arguments), pass_on))
    request.arguments.clear()
    tasks = (opening, asyncio.create_task(listen()), asyncio.create_task(over.wait()))
    try:
        # A guest may take nothing in, not even the request.
        await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not opening.cancelled() and not opening.exception():
            # The agent ignores the end of what has ended.
            agent.close_stream(opening.result(), cancel=True)
