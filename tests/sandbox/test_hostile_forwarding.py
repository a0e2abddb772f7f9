"""What a guest that has been taken over can do by way of forwarded ports: nothing."""

import asyncio
import json
import socket
import struct
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.agent.protocol import Frame
from tapwright.linux import netns
from tapwright.nics import forwarding
from tests.hostile import Hostile

_RESET = struct.pack("ii", 1, 0)  # struct linger (socket(7))

Story = Callable[["Guest"], Awaitable[None]]


class Guest(Hostile):
    """One that answers as it likes, and the requests that it was asked."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.follower = 0
        self.forwards: dict[int, Any] = {}
        self.ended: set[int] = set()

    async def hear(self, until: Callable[[], bool]) -> None:
        """Take requests in until something is so."""
        while not until():
            for frame in await self.frames():
                if frame.kind == protocol.REQUEST:
                    content = protocol.read_json(frame.payload)
                    if content["op"] == "forward":
                        self.forwards[frame.stream] = content
                    else:
                        self.follower = frame.stream
                elif frame.kind == protocol.CANCEL:
                    self.ended.add(frame.stream)

    async def say(self, stream: int, kind: int, payload: bytes) -> None:
        await self.send(protocol.encode(Frame(kind, self.session, stream, payload)))

    async def listens(self, content: Any) -> None:
        """Tell of listeners."""
        await self.say(self.follower, protocol.STDOUT, json.dumps(content).encode())

    async def listen(self, *ports: int) -> None:
        """Wait until the supervisor listens there."""
        await self.listens({"listeners": [[4, port] for port in ports], "left_out": 0})
        while not all(self.is_open(port) for port in ports):
            await asyncio.sleep(0.01)

    def dial(self, port: int) -> socket.socket:
        """Raises ConnectionRefusedError."""
        with netns.entered(self.path):
            return socket.create_connection(("127.0.0.1", port), timeout=60)

    def is_open(self, port: int) -> bool:
        """Whether somebody listens on a port; nobody connects."""
        with netns.entered(self.path), socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return False
        return True


@pytest.fixture
def path(scratch_netns: str) -> str:
    with netns.entered(scratch_netns):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return scratch_netns


def tell(path: str, story: Story) -> None:
    async def told() -> None:
        guest = Guest(path)
        await guest.connect()
        async with asyncio.timeout(60), forwarding.forwarded(path, guest.agent):
            await guest.hear(lambda: bool(guest.follower))
            await story(guest)
        await guest.close()

    asyncio.run(told())


@pytest.mark.parametrize("own", ["", netns.OWN, "/proc/1/ns/net"])
def test_loopback_of_the_host_is_its_own(own: str) -> None:
    async def story() -> None:
        guest = Guest(own)
        await guest.connect()
        async with forwarding.forwarded(own, guest.agent):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(guest.frames(), 0.3)
        await guest.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    "content",
    [
        *({}, {"listeners": [], "left_out": None}, {"listeners": "80", "left_out": 0}),
        {"listeners": [[4, number] for number in range(1, 258)], "left_out": 0},
        *({"listeners": [entry], "left_out": 0} for entry in ([4, 0], [4, 65536], [5, 80], [4])),
        *({"listeners": [entry], "left_out": 0} for entry in ([4, True], [4, "80"], [4, 80, 1])),
    ],
)
def test_list_that_makes_no_sense(path: str, content: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_AGAIN_SECONDS", 0.01)

    async def story(guest: Guest) -> None:
        await guest.listen(8000)
        first = guest.follower
        await guest.listens(content)
        # Nothing is listened on, and the agent is asked again.
        await guest.hear(lambda: guest.follower != first)
        assert not guest.is_open(8000)
        await guest.listen(8000)

    tell(path, story)


def test_more_than_a_window_ends_the_connection(path: str) -> None:
    async def story(guest: Guest) -> None:
        await guest.listen(8000)
        with guest.dial(8000) as connection:
            await guest.hear(lambda: bool(guest.forwards))
            (stream,) = guest.forwards
            # Nobody reads: what the kernel holds comes first.
            for _ in range(400):
                await guest.say(stream, protocol.STDOUT, bytes(protocol.MAX_PAYLOAD))
            await guest.hear(lambda: stream in guest.ended)
            assert await asyncio.to_thread(_is_reset, connection)
        # Others go on.
        with guest.dial(8000):
            await guest.hear(lambda: len(guest.forwards) == 2)

    tell(path, story)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (protocol.CREDIT, b"x"),
        (protocol.REPLY, b"{}"),
        (protocol.ERROR, b"no JSON"),
        (protocol.ERROR, b'{"message": "refused"}'),
    ],
)
def test_answer_out_of_turn_resets(path: str, kind: int, payload: bytes) -> None:
    async def story(guest: Guest) -> None:
        await guest.listen(8000)
        with guest.dial(8000) as connection:
            await guest.hear(lambda: bool(guest.forwards))
            await guest.say(next(iter(guest.forwards)), kind, payload)
            assert await asyncio.to_thread(_is_reset, connection)

    tell(path, story)


def test_more_connections_than_are_served_wait(path: str) -> None:
    most = forwarding._MOST_CONNECTIONS

    async def story(guest: Guest) -> None:
        await guest.listen(8000)
        connections = [await asyncio.to_thread(guest.dial, 8000) for _ in range(most + 3)]
        await guest.hear(lambda: len(guest.forwards) == most)
        # This guest answers none of them. Who gives up makes room.
        for number in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(guest.frames(), 0.2)
            connection = connections.pop(0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()
            await guest.hear(lambda number=number: len(guest.forwards) == most + number + 1)  # type: ignore[misc]
        for connection in connections:
            connection.close()

    tell(path, story)


def test_data_waits_for_credit(path: str) -> None:
    async def story(guest: Guest) -> None:
        await guest.listen(8000)
        came = 0

        async def take(most: int) -> None:
            nonlocal came
            while came < most:
                came += sum(
                    len(frame.payload)
                    for frame in await guest.frames()
                    if frame.kind == protocol.STDIN
                )

        with guest.dial(8000) as connection:
            await guest.hear(lambda: bool(guest.forwards))
            connection.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    connection.send(bytes(1 << 20))
            await take(protocol.WINDOW)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(take(protocol.WINDOW + 1), 0.3)
            assert came == protocol.WINDOW
            stream = next(iter(guest.forwards))
            await guest.say(stream, protocol.CREDIT, protocol.credit(protocol.STDIN, 1000))
            await take(protocol.WINDOW + 1000)
            # Nobody reads it now, but that it is reset is heard.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.close()
            await guest.hear(lambda: stream in guest.ended)

    tell(path, story)


def test_address_that_is_not_there_yet(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_NO_ADDRESS_SECONDS", 0.05)

    async def story(guest: Guest) -> None:
        with netns.entered(path):
            subprocess.run(["sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1"], check=True)
        await guest.listens({"listeners": [[4, 8000], [6, 8000]], "left_out": 0})
        while not guest.is_open(8000):
            await asyncio.sleep(0.01)
        with netns.entered(path):
            subprocess.run(["sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0"], check=True)
        while True:
            with suppress(OSError), netns.entered(path):
                socket.create_connection(("::1", 8000), timeout=60).close()
                break
            await asyncio.sleep(0.01)

    tell(path, story)


def _is_reset(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    return False
