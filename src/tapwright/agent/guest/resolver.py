"""A name server in the guest, which passes questions to the host and the answers back.

A platform's own resolver may be a socket in the sandbox's network namespace on the host, at an
address of the loopback interface (docker's is at 127.0.0.11). No NIC leads to that address.
"""

import contextlib
import itertools
import select
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.guest.events import Watcher
from tapwright.agent.guest.streams import Answer, Process

_PORT = 53
_MOST_WAITING, _MOST_CONNECTIONS = 256, 16
_LENGTH = struct.Struct("!H")  # precedes a message over TCP (RFC 1035, 4.2.2)


class Resolver(Process):
    """Listens at an `address` while its stream is open: at port 53, and at those of `ports` that
    are free, because packet rules may lead there. On the stream, a question is STDOUT, an answer
    STDIN: `protocol.query`. A question without an answer is forgotten; the client asks again.

    Raises OSError, KeyError.
    """

    def __init__(self, request: dict[str, Any], watch: Watcher, answer: Answer) -> None:
        super().__init__(watch, answer)
        self._waiting: dict[int, Callable[[bytes], None]] = {}
        self._numbers = itertools.cycle(range(1 << 16))
        self._connections: dict[int, socket.socket] = {}
        self._listeners: list[socket.socket] = []
        address = request["address"]
        try:
            self._serve(address, _PORT)
        except OSError:
            self.cancel()
            raise
        for port in request.get("ports", ()):
            if port != _PORT:
                with contextlib.suppress(OSError):
                    self._serve(address, port)

    def stdin(self, data: bytes) -> None:
        number, _, message = protocol.read_query(data)
        if reply := self._waiting.pop(number, None):
            with contextlib.suppress(OSError):  # the client has gone
                reply(message)

    def cancel(self) -> None:
        for listener in (*self._listeners, *self._connections.values()):
            self._drop(listener)
        self._listeners.clear()

    def _serve(self, address: str, port: int) -> None:
        udp = self._bound(socket.SOCK_DGRAM, address, port)
        self._watch.add(udp.fileno(), select.EPOLLIN, partial(self._hear, udp))
        tcp = self._bound(socket.SOCK_STREAM, address, port)
        self._watch.add(tcp.fileno(), select.EPOLLIN, partial(self._accept, tcp))
        tcp.listen()

    def _bound(self, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        listener = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        try:
            # A name server in a container may use the same port at all addresses.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
        except BaseException:
            listener.close()
            raise
        self._listeners.append(listener)
        return listener

    def _hear(self, udp: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message, peer = udp.recvfrom(protocol.MAX_PAYLOAD)
                self._ask(message, False, partial(_tell_by_udp, udp, peer))

    def _accept(self, tcp: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = tcp.accept()
            if len(self._connections) >= _MOST_CONNECTIONS:
                connection.close()
                return
            connection.setblocking(False)
            self._connections[connection.fileno()] = connection
            received = bytearray()
            self._watch.add(
                connection.fileno(), select.EPOLLIN, lambda: self._read(connection, received)
            )

    def _read(self, connection: socket.socket, received: bytearray) -> None:
        try:
            data = connection.recv(protocol.MAX_PAYLOAD)
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        received += data
        while len(received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
            if len(received) < end:
                break
            message = bytes(received[_LENGTH.size : end])
            del received[:end]
            self._ask(message, True, partial(_tell_by_tcp, connection))

    def _ask(self, message: bytes, by_tcp: bool, reply: Callable[[bytes], Any]) -> None:
        number = next(self._numbers)
        query = protocol.query(number, by_tcp, message)
        if len(query) > min(self._window[protocol.STDOUT], protocol.MAX_PAYLOAD):
            return
        self._window[protocol.STDOUT] -= len(query)
        while len(self._waiting) >= _MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[number] = reply
        self._answer.send(protocol.STDOUT, query)

    def _drop(self, listener: socket.socket) -> None:
        self._connections.pop(listener.fileno(), None)
        self._watch.remove(listener.fileno())
        listener.close()


def _tell_by_udp(udp: socket.socket, peer: Any, answer: bytes) -> None:
    udp.sendto(answer, peer)


def _tell_by_tcp(connection: socket.socket, answer: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(answer)) + answer)
