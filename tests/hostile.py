"""A guest that has been taken over, as its supervisor sees it."""

import asyncio
import socket

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame


class Hostile:
    """The far end of a socket pair, whose near end has an `agent`; the guest's `process`."""

    def __init__(self, process: int | None = None) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.agent = AgentClient(ours, process=process)
        self._decoder = protocol.Decoder()
        self.session = 0

    async def frames(self) -> list[Frame]:
        found: list[Frame] = []
        while not found:
            data = await self.loop.sock_recv(self.socket, 1 << 20)
            found = list(self._decoder.feed(data))
        return found

    async def connect(self) -> None:
        (hello,) = await self.frames()
        self.session = hello.session
        await self.send(protocol.hello(self.session, {}))
        await self.agent.connect(60)

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.socket, data)

    async def answers(self, stream: int, kind: int, payload: bytes, flags: int = 0) -> None:
        """Answer the next request, with as much as a message may have and more."""
        await self.frames()
        frame = protocol.encode(Frame(kind, self.session, stream, payload, flags))
        await self.send(frame * (33 if flags else 1))

    async def close(self) -> None:
        await self.agent.close()
        self.socket.close()
