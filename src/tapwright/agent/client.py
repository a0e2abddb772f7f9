"""The supervisor's end of the conversation with the agent in the guest.

The guest is hostile: whatever comes is checked and bounded, frames of unknown streams are
dropped, and a command that sends more than its window is ended.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from tapwright.agent import protocol, requests
from tapwright.agent.patience import Patience
from tapwright.agent.protocol import Frame
from tapwright.agent.requests import Request
from tapwright.errors import (
    AgentError,
    AgentRefusedError,
    ContainerError,
    ContainerExistsError,
    ContainerNotFoundError,
    ContainerStateError,
)
from tapwright.linux.starving import granted

_log = logging.getLogger(__name__)
_READ_BYTES = 64 * 1024
_FRAME_COST = 4096
_LONGEST_PAUSE = 1.0
_LAST_WORD_SECONDS = 1.0

# What must be in an answer of the guest, and of which type.
_SHAPES: dict[str, dict[str, Any]] = {
    "interfaces": {
        **dict.fromkeys(("name", "mac", "permanent"), str),
        "mtu": int,
        "addresses": list,
    },
    "routes": {
        "destination": str,
        "device": str,
        "gateway": str | None,
        "source": str | None,
        "scope": int,
        "metric": int,
        "table": int,
        "protocol": int,
    },
}
_ADDRESS: dict[str, Any] = {"address": str, "prefix_length": int}

# The errors of containers by the codes of `guest.refusal`.
_OF_CONTAINERS = {
    "failed": ContainerError,
    "not_found": ContainerNotFoundError,
    "exists": ContainerExistsError,
    "state": ContainerStateError,
}

OnFrame = Callable[[Frame], None]


class AgentClient:
    """Speaks to the agent over a connected socket, which is unused if it `is_new`, or on which a
    `session` was opened. Time in which the guest's `process` waits for a processor does not count
    against the agent (`linux.starving`). Use it from one event loop."""

    def __init__(
        self,
        connection: socket.socket,
        is_new: bool = False,
        session: int = 0,
        process: int | None = None,
    ) -> None:
        connection.setblocking(False)
        self._process = process
        self._socket = connection
        self._decoder = protocol.Decoder()
        self._assembler = protocol.Assembler()
        self._session = session
        self._last_stream = 0
        self._streams: dict[int, OnFrame] = {}
        self._open_windows: dict[tuple[int, int], int] = {}
        self._ready = asyncio.Event()
        self._sending = asyncio.Lock()
        self._requesting = asyncio.Lock()
        self._torn = False
        self._after_whole = is_new
        self._hello_due = False
        self._background: set[asyncio.Task[None]] = set()
        self.facts: dict[str, Any] = {}
        # A port and an agent that die leave half a frame, and frames of streams that are over.
        self._unasked = Patience(at_once=32 << 20, a_second=4 << 20)
        self._unsound = Patience(at_once=100, a_second=1)
        self.has_broken_rules = asyncio.Event()
        """Set when the guest sends what no agent does: it has been taken over, and is to end."""
        self._reader = asyncio.create_task(self._read())
        if not session:
            self._greet()

    async def connect(self, timeout: float) -> dict[str, Any]:
        """Wait until the agent answers; return what it says of itself. Raises AgentError."""
        try:
            await granted(self._process, timeout, self._ready.wait())
        except TimeoutError:
            raise AgentError(f"the agent did not answer within {timeout:g} s") from None
        if self._reader.done():
            raise AgentError("the agent's port was closed")
        return self.facts

    async def renew(self, timeout: float) -> dict[str, Any]:
        """Open another session, with which the guest gets entropy, and nothing goes on that was
        before; return what the agent says of itself. Raises AgentError."""
        self._check()
        self._fail_streams("another session begins")
        self._ready.clear()
        self.facts = {}
        self._after_whole = not self._torn
        self._greet()
        return await self.connect(timeout)

    async def call(self, request: Request, timeout: float = 15.0) -> dict[str, Any]:
        """Send a request; return the agent's reply. An agent that waits for a device then says for
        which, when the request is cancelled at the end of its time. Raises AgentError,
        AgentRefusedError."""
        op = request["op"]
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        def take(frame: Frame) -> None:
            if answer.done():
                return
            try:
                content = self._assembler.add(frame)
                reply = None if content is None else protocol.read_json(content)
            except protocol.ProtocolError as error:
                answer.set_exception(AgentError(f"the agent answered {op} with {error}"))
                return
            if reply is None:
                return
            if frame.kind == protocol.REPLY:
                answer.set_result(reply)
            else:
                answer.set_exception(failure(op, reply))

        stream = None
        is_cancelled = False

        async def ask() -> dict[str, Any]:
            nonlocal stream
            stream = await self.open(request, take)
            return await asyncio.shield(answer)

        async def ask_for_last_word(stream: int) -> dict[str, Any]:
            nonlocal is_cancelled
            await self.send(stream, protocol.CANCEL, b"")
            is_cancelled = True
            return await asyncio.shield(answer)

        try:
            with contextlib.suppress(TimeoutError):
                return await granted(self._process, timeout, ask())
            if stream is not None:
                seconds = min(timeout, _LAST_WORD_SECONDS)
                with contextlib.suppress(TimeoutError):
                    return await granted(self._process, seconds, ask_for_last_word(stream))
            raise AgentError(f"the agent did not answer {op} within {timeout:g} s")
        finally:
            if stream is not None:
                self.close_stream(stream, cancel=not answer.done() and not is_cancelled)
            answer.cancel()

    async def listing(self, what: str) -> list[dict[str, Any]]:
        """The guest's `interfaces` or `routes`. Raises AgentError."""
        found = (await self.call(requests.list_network())).get(what)
        if not isinstance(found, list) or not all(_has(entry, _SHAPES[what]) for entry in found):
            raise AgentError(f"the agent's answer has no proper list of {what}")
        return found

    async def open(self, request: Request, on_frame: OnFrame) -> int:
        """Begin a request and return its stream. `on_frame` gets every frame of it; an agent
        that restarts or goes away ends it by an ERROR. Raises AgentError."""
        self._check()
        try:
            data = protocol.written(protocol.REQUEST, request)
        except protocol.ProtocolError as error:
            raise AgentError(f"the request is too large: {error}") from None
        self._last_stream += 1
        stream = self._last_stream
        self._streams[stream] = on_frame
        try:
            async with self._requesting:
                # Frames of other streams go in between. A stream that has ended needs no more
                # frames.
                for frame in protocol.frames(protocol.REQUEST, self._session, stream, data):
                    if stream not in self._streams:
                        break
                    await self._send(frame)
        except BaseException:
            # The agent may have the beginning of it.
            self.close_stream(stream, cancel=True)
            raise
        return stream

    async def send(self, stream: int, kind: int, payload: bytes) -> None:
        """Send a frame of an open stream (STDIN, SIGNAL, CREDIT). Raises AgentError."""
        if kind == protocol.CREDIT:
            channel, count = protocol.read_credit(payload)
            key = stream, channel
            self._open_windows[key] = max(0, self._open_windows.get(key, 0) - count)
        await self._send(protocol.encode(Frame(kind, self._session, stream, payload)))

    def close_stream(self, stream: int, cancel: bool = False) -> None:
        """Forget a stream; with `cancel` the agent ends what still runs for it."""
        if self._streams.pop(stream, None) is None:
            return
        self._assembler.forget(stream)
        for channel in (protocol.STDOUT, protocol.STDERR):
            self._open_windows.pop((stream, channel), None)
        if cancel and not self._reader.done():
            data = protocol.encode(Frame(protocol.CANCEL, self._session, stream))
            self._in_background(lambda: self._send(data))

    async def close(self) -> None:
        tasks = [self._reader, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check(self) -> None:
        if self._reader.done():
            raise AgentError("the agent's port is closed")
        if not self._ready.is_set():
            raise AgentError("the agent has not answered yet")

    def _greet(self) -> None:
        """Open a session anew. However often a guest asks for it, one HELLO waits at most."""
        self._session = 0
        if not self._hello_due:
            self._hello_due = True
            self._in_background(self._open_session)

    async def _open_session(self) -> None:
        async with self._sending:
            self._hello_due = False
            self._session, hello = protocol.opening(self._after_whole)
            # An agent that starts anew may have read half of what was sent.
            self._after_whole = False
            await self._send_whole(hello)

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            await self._send_whole(data)

    async def _send_whole(self, data: bytes) -> None:
        """Send, or if it is given up half way, end the half frame before the next one."""
        if self._torn:
            data = protocol.PREAMBLE + data
        self._torn = True
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except OSError as error:
            raise AgentError(f"the agent's port is closed: {error}") from None
        self._torn = False

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        reason = "the agent's port was closed"
        decoder = self._decoder
        try:
            while data := await loop.sock_recv(self._socket, _READ_BYTES):
                garbage, unsound = decoder.garbage, decoder.unsound
                unasked = sum(
                    0 if self._take(frame) else _cost(frame) for frame in decoder.feed(data)
                )
                if self._unsound.spend(decoder.unsound - unsound):
                    reason = "the guest sends frames with checksums that are wrong, on and on"
                    _log.error("%s: it is ended", reason)
                    self.has_broken_rules.set()
                    break
                # A guest that never stops sending is not to keep the supervisor from all else.
                pause = self._unasked.spend(decoder.garbage - garbage + unasked)
                await asyncio.sleep(min(pause, _LONGEST_PAUSE))
        except OSError:
            pass
        finally:
            self._fail_streams(reason)
            self._ready.set()

    def _take(self, frame: Frame) -> bool:
        """Take a frame; return whether a request waits for it."""
        if frame.kind == protocol.HELLO:
            self._greeted(frame)
            return False
        on_frame = self._streams.get(frame.stream)
        if frame.session != self._session or not on_frame:
            return False
        if self._within_window(frame):
            on_frame(frame)
        else:
            self._break_stream(frame.stream, "the agent sent more than its window allows")
        return True

    def _greeted(self, frame: Frame) -> None:
        if frame.session == 0:
            # It has just started, maybe again: what it knew of us is gone.
            self._fail_streams("the agent in the guest restarted")
            self._ready.clear()
            self._greet()
        elif frame.session == self._session:
            with contextlib.suppress(protocol.ProtocolError):
                self.facts = protocol.read_json(frame.payload)
            self._ready.set()

    def _within_window(self, frame: Frame) -> bool:
        if frame.kind not in (protocol.STDOUT, protocol.STDERR):
            return True
        key = frame.stream, frame.kind
        held = self._open_windows[key] = self._open_windows.get(key, 0) + len(frame.payload)
        return held <= protocol.WINDOW

    def _fail_streams(self, reason: str) -> None:
        for stream in list(self._streams):
            self._break_stream(stream, reason)

    def _break_stream(self, stream: int, reason: str) -> None:
        _log.warning("stream %d: %s", stream, reason)
        on_frame = self._streams[stream]
        self.close_stream(stream, cancel=True)
        (payload,) = protocol.Decoder().feed(
            protocol.message(protocol.ERROR, 0, stream, {"message": reason, "broken": True})
        )
        on_frame(payload)

    def _in_background(self, work: Callable[[], Awaitable[None]]) -> None:
        async def quietly() -> None:
            with contextlib.suppress(AgentError):
                await work()

        task = asyncio.create_task(quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _cost(frame: Frame) -> int:
    """The cost in bytes of a frame for which no request waits: a small one takes as long as
    that."""
    return len(frame.payload) + _FRAME_COST


def failure(op: str, reply: dict[str, Any]) -> AgentError:
    """What an ERROR that ended a request says."""
    reason = str(reply.get("message", "no reason given"))[:1000]
    if reply.get("broken"):
        return AgentError(f"{op} was not done: {reason}")
    if kind := _OF_CONTAINERS.get(str(reply.get("code"))):
        return kind(reason)
    return AgentRefusedError(f"the agent refused {op}: {reason}")


def _has(entry: object, shape: dict[str, Any]) -> bool:
    return (
        isinstance(entry, dict)
        and all(key in entry and isinstance(entry[key], kind) for key, kind in shape.items())
        and all(_has(address, _ADDRESS) for address in entry.get("addresses", ()))
    )
