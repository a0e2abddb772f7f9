"""Sockets of the host (unix(7)) that containers have mounted: who connects to one in the guest is
connected to the host's.

A file of the share is a socket of another kernel, on which nobody listens in the guest's. So the
agent makes a counterpart with the same kind, owner and mode, which the container mounts instead.
The supervisor connects to the host's socket, once for each connection in the guest, and passes on
bytes, the end of each direction, and that an end has gone. It does so in the name of the guest's
user: servers ask for whom they serve (SO_PEERCRED), and a user of a container is not to be root to
them. Datagrams go to the host only: their senders have no address there. A socket is held by a
descriptor, as a bind mount holds it: another one that takes its path later is another socket. When
the host's server has gone for good, the counterpart is closed, and who connects is refused.

Runs in the supervisor. The guest is hostile: it reaches the sockets that containers have mounted,
as whom it likes, and nothing else. So could a container's root by runc.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import select
import socket
import stat
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from tapwright import shapes
from tapwright.agent import protocol, requests
from tapwright.agent.client import AgentClient
from tapwright.agent.connections import Connection, Endings
from tapwright.agent.protocol import Frame, ProtocolError
from tapwright.control.stdio import ready
from tapwright.errors import AgentError, SandboxStateError, UsageError
from tapwright.linux import credentials, unixsocket

_MOST_SOCKETS = 32
_MOST_CONNECTIONS = 64
"""At once, of all sockets together; more wait. They use the agent's streams, as others do."""
_FULL_SECONDS = 0.02
"""Until the next try with a server that has as many connections waiting as it wants."""
_NOBODY = 65534
_NONE = (1 << 32) - 1  # setresuid(2)
_AGAIN_SECONDS, _LONGEST_SECONDS = 1.0, 30.0

_log = logging.getLogger(__name__)


class Sockets:
    """Those of a sandbox. Each has its users, containers or paths in the share, and ends with the
    last of them."""

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent
        self._carried: dict[tuple[int, ...], _Socket] = {}
        self._numbers = itertools.count(1)
        self._slots = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._hangups = Endings(select.EPOLLHUP)
        self._changing = asyncio.Lock()

    async def carry(self, user: str, kinds: Sequence[str], fds: Sequence[int]) -> list[str]:
        """Give the guest counterparts of sockets, each a kind of `protocol` and a descriptor (which
        the caller closes); return their paths in the guest. Users share the counterpart of one,
        which gets the mode that the socket has by now. Raises AgentError, UsageError, and
        SandboxStateError for too many."""
        async with self._changing:
            return [
                await self._path_for(user, kind, fd) for kind, fd in zip(kinds, fds, strict=True)
            ]

    async def release(self, user: str) -> None:
        """Close the sockets that nobody else uses. Raises AgentError."""
        async with self._changing:
            for key, carried in list(self._carried.items()):
                carried.users.discard(user)
                if not carried.users:
                    del self._carried[key]
                    await carried.aclose()
                    await self._agent.call(requests.close_socket(carried.number))

    async def aclose(self) -> None:
        """Close all of them, because the guest ends."""
        for carried in self._carried.values():
            await carried.aclose()
        self._carried.clear()
        self._hangups.close()

    async def _path_for(self, user: str, kind: str, fd: int) -> str:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode):
            raise UsageError("only a socket can be carried")
        # The owner is another one by a mount that maps users.
        key = found.st_dev, found.st_ino, found.st_uid, found.st_gid
        carried = self._carried.get(key)
        if carried is None:
            if len(self._carried) >= _MOST_SOCKETS:
                raise SandboxStateError(
                    f"containers of a sandbox can mount {_MOST_SOCKETS} sockets of the host, "
                    "and this is one more"
                )
            number = next(self._numbers)
            carried = _Socket(number, kind, fd, self._agent, self._slots, self._hangups)
            self._carried[key] = carried
        carried.users.add(user)
        await carried.open(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
        return f"{protocol.SOCKETS}/{carried.number}"


class _Socket:
    """A socket of the host, and its counterpart of this number."""

    def __init__(
        self,
        number: int,
        kind: str,
        fd: int,
        agent: AgentClient,
        slots: asyncio.Semaphore,
        hangups: Endings,
    ) -> None:
        self.number = number
        self.users: set[str] = set()
        self._kind = kind
        self._fd = os.dup(fd)
        self._path = f"/proc/self/fd/{self._fd}"
        self._agent = agent
        self._slots = slots
        self._hangups = hangups
        self._serving: asyncio.Task[None] | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def open(self, mode: int, uid: int, gid: int) -> None:
        """Serve the counterpart, which is made unless the agent has it, with this mode. Raises
        AgentError."""
        await self._agent.call(requests.listen_socket(self.number, self._kind, mode, uid, gid))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())

    async def aclose(self) -> None:
        """End all connections; the agent is not told."""
        if self._serving:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        connections = dict(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        for connection in connections.values():
            await connection.aclose()  # of a task that had not begun
        os.close(self._fd)

    async def _serve(self) -> None:
        """Until the host's server has gone for good."""
        pause = _AGAIN_SECONDS
        while True:
            try:
                await (self._pass_on() if self._kind == protocol.DATAGRAM else self._accept())
            except (AgentError, ProtocolError, OSError) as error:
                if self._is_gone():
                    break
                _log.warning("socket %d is not carried for %g s: %s", self.number, pause, error)
            except Exception:
                _log.exception("unexpected")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_SECONDS)
        await self._refuse()

    def _is_gone(self) -> bool:
        """Whether nobody has the socket any more. Nobody can have it again."""
        try:
            return unixsocket.kind_of(self._path) is None
        except OSError as error:
            _log.warning("socket %d: %s", self.number, error)
            return False

    async def _refuse(self) -> None:
        """Let the guest refuse whoever connects."""
        with contextlib.suppress(AgentError):  # the guest has ended
            await self._agent.call(requests.close_socket(self.number))

    async def _accept(self) -> None:
        """Take connections. Raises AgentError."""
        while True:
            connection = _Connection(self._agent)
            try:
                await connection.open(self.number)
                await self._slots.acquire()
            except BaseException:
                await connection.aclose()
                raise
            task = asyncio.create_task(self._carry(connection))
            self._connections[task] = connection
            task.add_done_callback(self._ended)

    async def _carry(self, connection: "_Connection") -> None:
        try:
            await connection.run(self._path, self._hangups)
        except OSError as error:
            _log.info("socket %d: %s", self.number, error)
            if self._is_gone():
                await self._refuse()
        except Exception:
            _log.exception("unexpected")

    def _ended(self, connection: asyncio.Task[None]) -> None:
        del self._connections[connection]
        self._slots.release()

    async def _pass_on(self) -> None:
        """Send the guest's datagrams. Raises AgentError, ProtocolError, and OSError when the host's
        server has gone."""
        datagrams = _Datagrams()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sending:
            sending.connect(self._path)  # so that it is writable when the server has room
            stream = await self._agent.open(requests.accept_socket(self.number), datagrams.take)
            try:
                while True:
                    uid, gid, data = await datagrams.next()
                    try:
                        await _send_as(sending, uid, gid, data)
                    except ConnectionError:
                        raise
                    except OSError as error:  # larger than the host takes them
                        _log.info("socket %d: a datagram is lost: %s", self.number, error)
                    credit = protocol.credit(protocol.STDOUT, _cost(data))
                    await self._agent.send(stream, protocol.CREDIT, credit)
            finally:
                self._agent.close_stream(stream, cancel=True)


class _Peer(NamedTuple):
    """Who has connected, as the guest says."""

    uid: int
    gid: int
    groups: Sequence[int]

    @classmethod
    def read(cls, payload: bytes) -> "_Peer":
        """Raises ProtocolError."""
        content = protocol.read_json(payload)
        if shapes.mistake(content, {"uid": int, "gid": int, "groups": list[int]}):
            raise ProtocolError("a connection of nobody")
        peer = cls(content["uid"], content["gid"], content["groups"])
        if not all(0 <= number < _NONE for number in (peer.uid, peer.gid, *peer.groups)):
            raise ProtocolError("a connection of users that there can't be")
        return peer


class _Connection(Connection):
    """From a program in the guest to a socket of the host."""

    def __init__(self, agent: AgentClient) -> None:
        super().__init__(agent)
        self._started = asyncio.Event()
        self._hung_up = asyncio.Event()
        self._reason = b""
        self._is_unread = False
        self._peer = _Peer(_NOBODY, _NOBODY, ())
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    async def open(self, number: int) -> None:
        """Wait until a program connects. Raises AgentError."""
        await self._open(requests.accept_socket(number))
        await self._started.wait()
        if self._over.done() and self._reason:
            raise AgentError(f"the guest takes no connections: {self._reason[:200]!r}")

    async def run(self, path: str, hangups: Endings) -> None:
        """Connect to the host's socket, and carry the connection until it has ended. Raises
        OSError."""
        try:
            if not await self._connected(path):
                return
            with hangups.watched(self._socket, self._hung_up.set):
                self._begin(self._feed())
                writing = self._begin(self._write())
                if await self._over:
                    await writing
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        await self._close()
        self._socket.close()

    async def _connected(self, path: str) -> bool:
        """Connect, also for a program that has gone by now, and has left what it had to say; not
        where the guest has broken a rule."""
        while not self._over.done() or self._over.result():
            try:
                credentials.connect_as(self._socket, path, *self._peer)
            except BlockingIOError:
                # No event says when the server has room again.
                await asyncio.sleep(_FULL_SECONDS)
            else:
                if self._is_unread:
                    self._socket.shutdown(socket.SHUT_RD)
                return True
        return False

    async def _feed(self) -> None:
        try:
            await super()._feed()
        except ConnectionError:  # the server has gone, and has left something unread
            await self._agent.send(self._stream, protocol.STDIN, b"")
        await self._hung_up.wait()
        await self._tell_unread()

    async def _write(self) -> None:
        try:
            await super()._write()
        except OSError:
            await self._tell_unread()

    async def _tell_unread(self) -> None:
        """The server reads nothing more."""
        await self._agent.send(self._stream, protocol.STDOUT, b"")

    def _take(self, frame: Frame) -> None:
        if frame.kind == protocol.STARTED:
            try:
                self._peer = _Peer.read(frame.payload)
            except ProtocolError as error:
                self._reason = str(error).encode()
                self._end(False)
            self._started.set()
        elif frame.kind == protocol.STDERR:
            # The program reads nothing more.
            self._is_unread = True
            with contextlib.suppress(OSError):  # not connected yet, or not any more
                self._socket.shutdown(socket.SHUT_RD)
        elif frame.kind == protocol.REPLY:
            # All that it has written came before.
            self._has_ended = True
            self._news.set()
            self._end(True)
        else:
            if frame.kind == protocol.ERROR:
                self._reason = frame.payload
            super()._take(frame)

    def _end(self, is_whole: bool) -> None:
        super()._end(is_whole)
        self._started.set()


async def _send_as(sending: socket.socket, uid: int, gid: int, data: bytes) -> None:
    """Raises OSError."""
    while True:
        try:
            sending.sendmsg([data], [credentials.sender(uid, gid)])
        except BlockingIOError:
            await ready(sending.fileno(), writing=True)
        else:
            return


class _Datagrams:
    """Datagrams of the guest, of which a window is kept."""

    def __init__(self) -> None:
        self._assembler = protocol.Assembler(protocol.WINDOW)
        self._waiting: deque[tuple[int, int, bytes]] = deque()
        self._held = 0
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def take(self, frame: Frame) -> None:
        """A frame of the guest, which is hostile."""
        self._news.set()
        if frame.kind in (protocol.REPLY, protocol.ERROR):
            self._error = AgentError(f"the guest sends no datagrams: {frame.payload[:200]!r}")
        elif frame.kind == protocol.STDOUT and not self._error:
            try:
                message = self._assembler.add(frame)
                if message is None:
                    return
                datagram = protocol.read_datagram(message)
            except ProtocolError as error:
                self._error = error
                return
            self._waiting.append(datagram)
            self._held += _cost(datagram[-1])
            if self._held > protocol.WINDOW:
                self._error = ProtocolError("more datagrams than the window allows")

    async def next(self) -> tuple[int, int, bytes]:
        """(uid, gid, data) of the next one. Raises AgentError, ProtocolError when there are no
        more."""
        while not self._waiting:
            if self._error:
                raise self._error
            self._news.clear()
            await self._news.wait()
        datagram = self._waiting.popleft()
        self._held -= _cost(datagram[-1])
        return datagram


def _cost(data: bytes) -> int:
    return len(data) + protocol.DATAGRAM_COST
