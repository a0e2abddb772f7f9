"""What a guest that has been taken over can do by way of the host's sockets that containers have
mounted: as much as any program that may connect to them."""

import asyncio
import os
import socket
import stat
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.agent.protocol import Frame
from tapwright.control import sockets
from tapwright.errors import SandboxStateError, UsageError
from tests.hostile import Hostile

Story = Callable[["Guest", sockets.Sockets], Awaitable[None]]


class Guest(Hostile):
    """One that agrees to everything, and the requests that it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.accepts: dict[int, int] = {}
        """The number of the socket by the stream."""
        self.closed: set[int] = set()
        self.ended: set[int] = set()
        self.came: dict[int, int] = defaultdict(int)

    async def hear(self, until: Callable[[], bool]) -> None:
        """Take in what comes until something is so."""
        while not until():
            for frame in await self.frames():
                await self._take(frame)

    async def _take(self, frame: Frame) -> None:
        if frame.kind == protocol.CANCEL:
            self.ended.add(frame.stream)
        elif frame.kind == protocol.STDIN:
            self.came[frame.stream] += len(frame.payload)
        elif frame.kind == protocol.REQUEST:
            content = protocol.read_json(frame.payload)
            if content["op"] == "accept_socket":
                self.accepts[frame.stream] = content["number"]
                return
            if content["op"] == "close_socket":
                self.closed.add(content["number"])
                waiting = [each for each, n in self.accepts.items() if n == content["number"]]
                for stream in waiting:
                    del self.accepts[stream]
                    await self.say(stream, protocol.ERROR)
            await self.say(frame.stream, protocol.REPLY, b"{}")

    async def say(self, stream: int, kind: int, payload: bytes = b"{}", flags: int = 0) -> None:
        await self.send(protocol.encode(Frame(kind, self.session, stream, payload, flags)))

    async def during(self, work: Awaitable[Any]) -> Any:
        """The outcome of what asks this guest."""
        task = asyncio.ensure_future(work)
        hearing = asyncio.create_task(self.hear(lambda: False))
        try:
            return await task
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def connect_program(self) -> int:
        """Say that a program connects; the stream of it."""
        await self.hear(lambda: bool(self.accepts))
        stream, _ = self.accepts.popitem()
        await self.say(stream, protocol.STARTED, b'{"uid": 0, "gid": 0, "groups": []}')
        return stream


def tell(story: Story) -> None:
    async def told() -> None:
        guest = Guest()
        await guest.connect()
        carried = sockets.Sockets(guest.agent)
        try:
            async with asyncio.timeout(60):
                await story(guest, carried)
        finally:
            await carried.aclose()
            await guest.close()

    asyncio.run(told())
    held = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_path(fd)
    ]
    assert held == []


def _is_path(fd: str) -> bool:
    """Whether a descriptor holds a socket's file, as the carried ones are held."""
    try:
        return stat.S_ISSOCK(os.stat(os.readlink(f"/proc/self/fd/{fd}")).st_mode)
    except OSError:
        return False


@contextmanager
def bound(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(path))
        if kind == socket.SOCK_STREAM:
            server.listen(socket.SOMAXCONN)
        server.setblocking(False)
        yield server


async def carry(
    guest: Guest, carried: sockets.Sockets, path: Path, kind: str = protocol.STREAM
) -> str:
    fd = os.open(path, os.O_PATH)
    try:
        (where,) = await guest.during(carried.carry("box", [kind], [fd]))
        return str(where)
    finally:
        os.close(fd)


async def accepted(server: socket.socket) -> socket.socket:
    connection, _ = await asyncio.get_running_loop().sock_accept(server)
    connection.setblocking(False)
    return connection


async def read(connection: socket.socket) -> bytes:
    """Until its end."""
    found = b""
    while data := await asyncio.get_running_loop().sock_recv(connection, 1 << 16):
        found += data
    return found


def test_more_than_a_window_ends_the_connection(tmp_path: Path) -> None:
    async def story(guest: Guest, carried: sockets.Sockets) -> None:
        with bound(tmp_path / "socket") as server:
            assert await carry(guest, carried, tmp_path / "socket") == f"{protocol.SOCKETS}/1"
            stream = await guest.connect_program()
            with await accepted(server):
                # Nobody reads: what the kernel holds comes first.
                for _ in range(20):
                    await guest.say(stream, protocol.STDOUT, bytes(protocol.MAX_PAYLOAD))
                await guest.hear(lambda: stream in guest.ended)
            # Others go on.
            stream = await guest.connect_program()
            with await accepted(server) as connection:
                await guest.say(stream, protocol.STDOUT, b"more")
                await guest.say(stream, protocol.REPLY)
                assert await read(connection) == b"more"

    tell(story)


@pytest.mark.parametrize(
    ("kind", "payload"), [(protocol.CREDIT, b"x"), (protocol.ERROR, b"no JSON")]
)
def test_answer_out_of_turn_ends_the_connection(tmp_path: Path, kind: int, payload: bytes) -> None:
    async def story(guest: Guest, carried: sockets.Sockets) -> None:
        with bound(tmp_path / "socket") as server:
            await carry(guest, carried, tmp_path / "socket")
            stream = await guest.connect_program()
            with await accepted(server) as connection:
                await guest.say(stream, kind, payload)
                assert await read(connection) == b""

    tell(story)


def test_more_connections_than_are_served_wait(tmp_path: Path) -> None:
    most = sockets._MOST_CONNECTIONS

    async def story(guest: Guest, carried: sockets.Sockets) -> None:
        with bound(tmp_path / "socket") as server:
            await carry(guest, carried, tmp_path / "socket")
            streams, connections = [], []
            for _ in range(most):
                streams.append(await guest.connect_program())
                connections.append(await accepted(server))
            # One more may say that it has connected, and has nobody at the other end.
            waiting = await guest.connect_program()
            await guest.say(waiting, protocol.STDOUT, b"waited")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(guest.hear(lambda: bool(guest.accepts)), 0.2)
            with pytest.raises(BlockingIOError):
                server.accept()
            await guest.say(streams.pop(), protocol.REPLY)
            connections.append(await accepted(server))
            await guest.say(waiting, protocol.REPLY)
            assert await read(connections[-1]) == b"waited"
            for connection in connections:
                connection.close()

    tell(story)


def test_data_waits_for_credit(tmp_path: Path) -> None:
    async def story(guest: Guest, carried: sockets.Sockets) -> None:
        with bound(tmp_path / "socket") as server:
            await carry(guest, carried, tmp_path / "socket")
            stream = await guest.connect_program()
            with await accepted(server) as connection:
                loop = asyncio.get_running_loop()
                sending = asyncio.create_task(loop.sock_sendall(connection, bytes(1 << 20)))
                await guest.hear(lambda: guest.came[stream] >= protocol.WINDOW)
                more = guest.hear(lambda: guest.came[stream] > protocol.WINDOW)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(more, 0.2)
                credit = protocol.credit(protocol.STDIN, 1000)
                await guest.say(stream, protocol.CREDIT, credit)
                await guest.hear(lambda: guest.came[stream] == protocol.WINDOW + 1000)
                sending.cancel()

    tell(story)


@pytest.mark.parametrize(("size", "count"), [(0, 1000), (3 * protocol.MAX_PAYLOAD, 10)])
def test_more_datagrams_than_the_window_allows(
    tmp_path: Path, size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_AGAIN_SECONDS", 0.01)

    async def story(guest: Guest, carried: sockets.Sockets) -> None:
        with bound(tmp_path / "socket", socket.SOCK_DGRAM) as server:
            await carry(guest, carried, tmp_path / "socket", protocol.DATAGRAM)
            await guest.hear(lambda: bool(guest.accepts))
            stream, _ = guest.accepts.popitem()
            datagram = b"".join(
                protocol.frames(
                    protocol.STDOUT, guest.session, stream, protocol.datagram(0, 0, bytes(size))
                )
            )
            # Nobody reads: some are with the kernel.
            for _ in range(count):
                await guest.send(datagram)
            # The others are lost, and it is asked for more.
            asked = asyncio.create_task(
                guest.hear(lambda: stream in guest.ended and bool(guest.accepts))
            )
            came = 0
            while not asked.done():
                with suppress(BlockingIOError):
                    assert len(server.recv(1 << 20)) == size
                    came += 1
                await asyncio.sleep(0)
            assert 0 < came < count
            stream, _ = guest.accepts.popitem()
            await guest.say(stream, protocol.STDOUT, protocol.datagram(0, 0, b"in order"))
            loop = asyncio.get_running_loop()
            while (data := await loop.sock_recv(server, 1 << 20)) != b"in order":
                assert len(data) == size

    tell(story)


def test_datagram_without_end(tmp_path: Path) -> None:
    async def story(guest: Guest, carried: sockets.Sockets) -> None:
        with bound(tmp_path / "socket", socket.SOCK_DGRAM):
            await carry(guest, carried, tmp_path / "socket", protocol.DATAGRAM)
            await guest.hear(lambda: bool(guest.accepts))
            stream, _ = guest.accepts.popitem()
            for _ in range(9):
                part = bytes(protocol.MAX_PAYLOAD)
                await guest.say(stream, protocol.STDOUT, part, flags=protocol.MORE)
            await guest.hear(lambda: stream in guest.ended)

    tell(story)


def test_the_end_of_a_server_and_of_a_container(tmp_path: Path) -> None:
    """Who connects is refused when the server has gone; what no container uses is closed."""

    async def story(guest: Guest, carried: sockets.Sockets) -> None:
        with bound(tmp_path / "one"):
            await carry(guest, carried, tmp_path / "one")
        await guest.connect_program()
        await guest.hear(lambda: guest.closed == {1})
        with bound(tmp_path / "two") as server:
            await carry(guest, carried, tmp_path / "two")
            await guest.connect_program()
            with await accepted(server) as connection:
                await guest.during(carried.release("another"))
                assert guest.closed == {1}
                await guest.during(carried.release("box"))
                assert guest.closed == {1, 2}
                assert await read(connection) == b""

    tell(story)


def test_as_many_sockets_as_may_be(tmp_path: Path) -> None:
    async def story(guest: Guest, carried: sockets.Sockets) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="only a socket"):
            await carry(guest, carried, tmp_path / "file")
        for number in range(sockets._MOST_SOCKETS):
            with bound(tmp_path / str(number)):
                await carry(guest, carried, tmp_path / str(number))
        with bound(tmp_path / "more"), pytest.raises(SandboxStateError, match="one more"):
            await carry(guest, carried, tmp_path / "more")
        # One that it has is no more.
        assert await carry(guest, carried, tmp_path / "0") == f"{protocol.SOCKETS}/1"

    tell(story)
