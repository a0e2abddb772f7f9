"""Name servers in the sandbox's network namespace, for the guest: what a program there asks them is
asked here, in the namespace.

That is for those at an address of the loopback interface, such as docker's own (127.0.0.11): a
socket that docker holds in the namespace, where it also has rules; no NIC leads there. The
containers' resolv.conf say which are asked; docker writes them anew when a network is connected. A
name server that nobody has in the namespace is a container's own, and left alone.

Runs in the supervisor. The guest is hostile: it can ask these addresses, and nothing else.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame, ProtocolError
from tapwright.errors import AgentError, UsageError
from tapwright.linux import netns

_PORT = 53
_MOST_AT_ONCE = 64
_ANSWER_SECONDS, _LOOK_AGAIN_SECONDS = 15.0, 1.0
_LENGTH = struct.Struct("!H")  # before a message over TCP (RFC 1035, 4.2.2)

_log = logging.getLogger(__name__)


class Resolvers:
    """Those of the sandbox whose namespace is at `path`."""

    def __init__(self, path: str, agent: AgentClient) -> None:
        self._path = path
        self._agent = agent
        self._files: set[str] = set()
        self._served: dict[str, _Resolver] = {}
        self._looking: set[asyncio.Task[None]] = set()

    def by_name(self) -> dict[str, Callable[..., Coroutine[Any, Any, Any]]]:
        """The operation of the control socket."""
        return {"follow_resolvers": self.follow}

    async def follow(self, resolv_conf: Any) -> None:
        """Have `look` look at a file (resolv.conf(5)), too. Raises UsageError."""
        if not isinstance(resolv_conf, str):
            raise UsageError("resolv_conf must be a path")
        self._files.add(resolv_conf)

    async def look(self) -> None:
        """Serve the name servers of the files that are in the namespace by now, and those that are
        a little later: docker writes a file when it has connected the network."""
        if not self._files:
            return
        await self._serve_new()
        looking = asyncio.create_task(self._look_again())
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)

    async def _look_again(self) -> None:
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        await self._serve_new()

    async def aclose(self) -> None:
        for looking in self._looking:
            looking.cancel()
        for resolver in self._served.values():
            await resolver.close()

    async def _serve_new(self) -> None:
        wanted = {address for path in self._files for address in _loopbacks(path)}
        wanted -= self._served.keys()
        if not wanted:
            return
        with contextlib.suppress(OSError, AgentError):  # the namespace has gone, or the guest
            for address in wanted & _bound(self._path):
                resolver = self._served[address] = _Resolver(self._path, address, self._agent)
                await resolver.open()


class _Resolver:
    """A name server of the namespace, as the guest has it."""

    def __init__(self, path: str, address: str, agent: AgentClient) -> None:
        self._path = path
        self._address = address
        self._agent = agent
        self._stream = 0
        self._questions: set[asyncio.Task[None]] = set()
        self._passed_over = 0

    async def open(self) -> None:
        """Raises AgentError."""
        request = {"op": "resolve", "address": self._address}
        self._stream = await self._agent.open(request, self._take)

    async def close(self) -> None:
        for question in (questions := list(self._questions)):
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)

    def _take(self, frame: Frame) -> None:
        if frame.kind == protocol.ERROR:
            # A container has a name server of its own there, or the agent restarted.
            _log.warning("%s is not served: %s", self._address, frame.payload[:200])
        elif frame.kind != protocol.STDOUT:
            return
        elif len(self._questions) >= _MOST_AT_ONCE:
            self._passed_over += len(frame.payload)
        else:
            question = asyncio.create_task(self._pass_on(frame.payload))
            self._questions.add(question)
            question.add_done_callback(self._questions.discard)

    async def _pass_on(self, payload: bytes) -> None:
        with contextlib.suppress(AgentError, ProtocolError, OSError, TimeoutError):
            length, self._passed_over = self._passed_over + len(payload), 0
            credit = protocol.credit(protocol.STDOUT, length)
            await self._agent.send(self._stream, protocol.CREDIT, credit)
            number, by_tcp, text = protocol.read_query(payload)
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = await self._ask(by_tcp, text)
            reply = protocol.query(number, by_tcp, answer[: protocol.MAX_QUERY])
            await self._agent.send(self._stream, protocol.STDIN, reply)

    async def _ask(self, by_tcp: bool, text: bytes) -> bytes:
        """The answer to a DNS message. Raises OSError."""
        loop = asyncio.get_running_loop()
        kind = socket.SOCK_STREAM if by_tcp else socket.SOCK_DGRAM
        with netns.entered(self._path):
            asking = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        with asking:
            await loop.sock_connect(asking, (self._address, _PORT))
            await loop.sock_sendall(asking, _LENGTH.pack(len(text)) + text if by_tcp else text)
            if not by_tcp:
                return await loop.sock_recv(asking, protocol.MAX_PAYLOAD)
            (length,) = _LENGTH.unpack(await _received(asking, _LENGTH.size))
            return await _received(asking, length)


async def _received(connection: socket.socket, length: int) -> bytes:
    """So many bytes. Raises OSError."""
    found = b""
    while len(found) < length:
        data = await asyncio.get_running_loop().sock_recv(connection, length - len(found))
        if not data:
            raise ConnectionError("half an answer")
        found += data
    return found


def _loopbacks(path: str) -> Iterator[str]:
    """The name servers of a resolv.conf at IPv4 addresses of the loopback interface."""
    try:
        with open(path, errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return
    for words in lines:
        with contextlib.suppress(ValueError):
            if words[:1] == ["nameserver"] and len(words) > 1:
                address = ipaddress.IPv4Address(words[1])
                if address.is_loopback:
                    yield str(address)


def _bound(path: str) -> set[str]:
    """The addresses in a network namespace that UDP sockets have. Raises OSError."""
    with netns.entered(path), open("/proc/thread-self/net/udp") as file:
        places = [line.split()[1] for line in file.readlines()[1:]]
    # The address as the machine has it in memory (net/ipv4/udp.c: udp4_format_sock).
    return {socket.inet_ntoa(bytes.fromhex(place.partition(":")[0])[::-1]) for place in places}
