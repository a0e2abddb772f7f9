"""Name servers in the sandbox's network namespace, for the guest: the supervisor passes the
questions of programs in the guest on to them, and the answers back.

This serves name servers at an address of the loopback interface, which no NIC reaches. Docker's own
(127.0.0.11) is a socket in the namespace, with rules that lead from port 53 to the socket's port.
The guest has these rules, too, so the agent listens on all of the ports. The containers'
resolv.conf name the servers; docker writes these files anew when it connects a network. A name
server that does not exist in the namespace is a container's own, and left alone.

Runs in the supervisor. The guest is hostile: it can ask these addresses, and nothing else. The
files are hostile, too, because a container may write to them.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tapwright.agent import protocol, requests
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame, ProtocolError
from tapwright.errors import AgentError, UsageError
from tapwright.linux import foreign, netns

_PORT = 53
_MOST_AT_ONCE, _MOST_PORTS = 64, 16
_LISTENING = "0A"  # in /proc/net/tcp
_ANSWER_SECONDS, _LOOK_AGAIN_SECONDS = 15.0, 1.0
_FILE_BYTES = 64 * 1024
_LENGTH = struct.Struct("!H")  # before a message over TCP (RFC 1035, 4.2.2)

_log = logging.getLogger(__name__)


class Resolvers:
    """The name servers of the sandbox whose namespace is at `path`."""

    def __init__(self, path: str, agent: AgentClient) -> None:
        self._path = path
        self._agent = agent
        self._files: set[str] = set()
        self._served: dict[str, _Resolver] = {}
        self._looking: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Lock()  # a thread at most, however slow a filesystem is

    def by_name(self) -> dict[str, Callable[..., Coroutine[Any, Any, Any]]]:
        """The operation of the control socket."""
        return {"follow_resolvers": self.follow}

    async def follow(self, resolv_conf: Any) -> None:
        """Let `look` read a file (resolv.conf(5)), too. Raises UsageError."""
        if not isinstance(resolv_conf, str):
            raise UsageError("resolv_conf must be a path")
        # A link that is there before the container runs is the platform's.
        self._files.add(await asyncio.to_thread(os.path.realpath, resolv_conf))

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
        async with self._reading:
            wanted = await asyncio.to_thread(_loopbacks, sorted(self._files))
        if not wanted:
            return
        with contextlib.suppress(OSError, AgentError):  # the namespace has gone, or the guest
            bound = _bound(self._path)
            for address in wanted & bound.keys():
                ports = bound[address][:_MOST_PORTS]
                before = self._served.get(address)
                if before and before.ports == ports:
                    continue
                if before:
                    await before.close()
                resolver = _Resolver(self._path, address, ports, self._agent)
                self._served[address] = resolver
                await resolver.open()


class _Resolver:
    """A name server of the namespace, as the guest has it."""

    def __init__(self, path: str, address: str, ports: list[int], agent: AgentClient) -> None:
        self.ports = ports
        self._path = path
        self._address = address
        self._agent = agent
        self._stream = 0
        self._questions: set[asyncio.Task[None]] = set()
        self._passed_over = 0

    async def open(self) -> None:
        """Raises AgentError."""
        request = requests.resolve(self._address, self.ports)
        self._stream = await self._agent.open(request, self._take)

    async def close(self) -> None:
        self._agent.close_stream(self._stream, cancel=True)
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


def _loopbacks(paths: Sequence[str]) -> set[str]:
    """The name servers of resolv.confs at IPv4 addresses of the loopback interface."""
    found = set()
    for path in paths:
        try:
            text = foreign.read(path, _FILE_BYTES).decode(errors="replace")
        except OSError as error:
            _log.info("%s is not read: %s", path, error.strerror)
            continue
        for words in map(str.split, text.splitlines()):
            with contextlib.suppress(ValueError):
                if words[:1] == ["nameserver"] and len(words) > 1:
                    address = ipaddress.IPv4Address(words[1])
                    if address.is_loopback:
                        found.add(str(address))
    return found


def _bound(path: str) -> dict[str, list[int]]:
    """The addresses in a network namespace that UDP sockets have, with their ports and those of TCP
    sockets that listen there. Raises OSError."""
    found: dict[str, set[int]] = {}
    with netns.entered(path):
        for protocol in ("udp", "tcp"):
            with open(f"/proc/thread-self/net/{protocol}") as file:
                lines = [line.split() for line in file.readlines()[1:]]
            for place, state in ((line[1], line[3]) for line in lines):
                # The address as the machine has it in memory (net/ipv4/udp.c: udp4_format_sock).
                packed, _, port = place.partition(":")
                address = socket.inet_ntoa(bytes.fromhex(packed)[::-1])
                if protocol == "udp" or (state == _LISTENING and address in found):
                    found.setdefault(address, set()).add(int(port, 16))
    return {address: sorted(ports) for address, ports in found.items()}
