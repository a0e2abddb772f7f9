"""Connections to the loopback interface of the sandbox's network namespace, made in the guest.

`kubectl port-forward`, health checks and others enter the namespace of a container, connect to
127.0.0.1 or ::1, and expect the program there; but the program is in the guest. So the supervisor
listens in the namespace on each port that the guest's loopback interface can reach, as long as a
program in the guest listens; otherwise a connection is refused. A port that a program in the
namespace has stays that program's. The supervisor listens only on loopback addresses: all else goes
through the NICs.

Runs in the supervisor. The guest is hostile: it has as many ports and connections as the bounds
say.
"""

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
import struct
import time
from collections.abc import AsyncIterator

from tapwright.agent import protocol, requests
from tapwright.agent.client import AgentClient
from tapwright.agent.connections import Connection, Endings
from tapwright.agent.protocol import Frame, ProtocolError
from tapwright.errors import AgentError
from tapwright.linux import netns

Listener = tuple[int, int]
"""(version of IP, port)"""

_ADDRESSES = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}
_MOST_CONNECTIONS = 128
"""At once; more connections wait. They use the agent's streams, which others need, too."""
_BACKLOG = 128
_PAUSE_SECONDS, _AGAIN_SECONDS, _LONGEST_SECONDS = 0.02, 1.0, 30.0
_NO_ADDRESS_SECONDS = 30.0
"""Until the next look for ::1, which many engines take from the namespaces that they make."""
_RESET = struct.pack("ii", 1, 0)  # struct linger: close(2) resets the connection (socket(7))

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def forwarded(path: str, agent: AgentClient) -> AsyncIterator[None]:
    """Forward the guest's ports in the namespace at `path` for the length of the block. Do nothing
    where a sandbox has no namespace, or the host's, whose loopback is the host's own."""
    if not path or netns.is_own(path) or netns.is_hosts(path):
        yield
        return
    try:
        # Kept open, for its path may go before it does.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        _log.warning("no ports are forwarded: %s", error)
        yield
        return
    forwarding = Forwarding(f"/proc/self/fd/{fd}", agent)
    following = asyncio.create_task(forwarding.follow())
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await forwarding.aclose()
        os.close(fd)


class Forwarding:
    """From the namespace at `path` to the guest of an agent."""

    def __init__(self, path: str, agent: AgentClient) -> None:
        self._path = path
        self._agent = agent
        self._listening: dict[Listener, socket.socket] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._resets = Endings(select.EPOLLERR)
        self._is_paused = False
        self._left_out = 0

    async def follow(self) -> None:
        """Listen where the guest does, until this is cancelled."""
        pause = _AGAIN_SECONDS
        while True:
            started = time.monotonic()
            try:
                await self._follow()
            except (AgentError, ProtocolError, OSError) as error:
                if time.monotonic() - started > _LONGEST_SECONDS:
                    pause = _AGAIN_SECONDS
                _log.warning("no ports are forwarded for %g s: %s", pause, error)
            finally:
                # What listens is unknown when the agent has gone.
                self._listen_on(set())
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_SECONDS)

    async def aclose(self) -> None:
        """End all connections."""
        for connection in (connections := list(self._connections)):
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        self._listen_on(set())
        self._resets.close()

    async def _follow(self) -> None:
        """Until the agent ends. Raises AgentError, ProtocolError, OSError: the namespace can't be
        entered."""
        news = _News()
        await self._agent.connect(_LONGEST_SECONDS)
        stream = await self._agent.open(requests.follow_listeners(), news.take)
        try:
            again: float | None = None
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(again):
                        await news.there.wait()
                wanted, length = news.fetch()
                self._note_left_out(news.left_out)
                again = self._listen_on(wanted)
                if length:
                    credit = protocol.credit(protocol.STDOUT, length)
                    await self._agent.send(stream, protocol.CREDIT, credit)
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            self._agent.close_stream(stream, cancel=True)

    def _note_left_out(self, count: int) -> None:
        if count and not self._left_out:
            _log.warning(
                "the guest listens on %d ports more than the %d that are forwarded",
                *(count, protocol.MAX_LISTENERS),
            )
        self._left_out = count

    def _listen_on(self, wanted: set[Listener]) -> float | None:
        """Listen there and nowhere else; return when to try again, where that was not possible.
        Raises OSError."""
        for place in self._listening.keys() - wanted:
            gone = self._listening.pop(place)
            asyncio.get_running_loop().remove_reader(gone.fileno())
            gone.close()
        new = wanted - self._listening.keys()
        if not new:
            return None
        pauses = []
        with netns.entered(self._path):
            for place in new:
                try:
                    self._listening[place] = _bound(place)
                except OSError as error:
                    is_taken = error.errno == errno.EADDRINUSE
                    pauses.append(_AGAIN_SECONDS if is_taken else _NO_ADDRESS_SECONDS)
        if not self._is_paused:
            for place in new & self._listening.keys():
                self._accept_from(place)
        return min(pauses, default=None)

    def _accept_from(self, place: Listener) -> None:
        listener = self._listening[place]
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, place, listener)

    def _accept(self, place: Listener, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                _log.error("no connection can be forwarded at present: %s", error)
                self._pause()
                loop.call_later(_AGAIN_SECONDS, self._go_on)
            return
        connection = asyncio.create_task(
            _Connection(accepted, place, self._agent).run(self._resets)
        )
        self._connections.add(connection)
        connection.add_done_callback(self._ended)
        if len(self._connections) >= _MOST_CONNECTIONS:
            self._pause()

    def _ended(self, connection: asyncio.Task[None]) -> None:
        self._connections.discard(connection)
        self._go_on()

    def _pause(self) -> None:
        """Leave connections in the kernel's backlogs."""
        self._is_paused = True
        for listener in self._listening.values():
            asyncio.get_running_loop().remove_reader(listener.fileno())

    def _go_on(self) -> None:
        if self._is_paused and len(self._connections) < _MOST_CONNECTIONS:
            self._is_paused = False
            for place in self._listening:
                self._accept_from(place)


class _News:
    """The agent's lists of listeners: only the latest is kept."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.left_out = 0
        self._payload = b'{"listeners": [], "left_out": 0}'
        self._length = 0
        self._error: AgentError | None = None

    def take(self, frame: Frame) -> None:
        if frame.kind == protocol.STDOUT:
            self._payload = frame.payload
            self._length += len(frame.payload)
        elif frame.kind in (protocol.REPLY, protocol.ERROR):
            self._error = AgentError(f"the agent lists no more ports: {frame.payload[:200]!r}")
        self.there.set()

    def fetch(self) -> tuple[set[Listener], int]:
        """Where the guest listens by the latest news, and how many bytes have come. Raises
        AgentError when there are no more, ProtocolError for what is no list."""
        self.there.clear()
        if self._error:
            raise self._error
        length, self._length = self._length, 0
        content = protocol.read_json(self._payload)
        found, left_out = content.get("listeners"), content.get("left_out")
        if (
            not isinstance(found, list)
            or len(found) > protocol.MAX_LISTENERS
            or not all(_is_listener(entry) for entry in found)
            or type(left_out) is not int
        ):
            raise ProtocolError("a list of listeners that is none")
        self.left_out = left_out
        return {(version, port) for version, port in found}, length


class _Connection(Connection):
    """A connection that was accepted in the namespace, and its counterpart in the guest."""

    def __init__(self, accepted: socket.socket, place: Listener, agent: AgentClient) -> None:
        super().__init__(agent)
        accepted.setblocking(False)
        self._socket = accepted
        self._place = place
        self._opened = asyncio.Event()

    async def run(self, resets: Endings) -> None:
        """Until it has ended."""
        is_whole = False
        try:
            with resets.watched(self._socket, lambda: self._end(False)):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._begin(self._open_and_feed())
                writing = self._begin(self._write())
                if await self._over:
                    await writing
                    is_whole = self._over.result()
        except OSError:
            pass
        finally:
            await self._close()
            if not is_whole:
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.close()

    async def _open_and_feed(self) -> None:
        await self._open(requests.forward(*self._place))
        self._opened.set()
        await self._feed()

    async def _write(self) -> None:
        await self._opened.wait()
        await super()._write()


def _bound(place: Listener) -> socket.socket:
    """A listening socket. Raises OSError: a program in the namespace has the port, or lo has no
    such address."""
    version, port = place
    family, address = _ADDRESSES[version]
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Connections that have ended do not prevent listening again.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_listener(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and all(type(number) is int for number in entry)
        and entry[0] in _ADDRESSES
        and 0 < entry[1] < 1 << 16
    )
