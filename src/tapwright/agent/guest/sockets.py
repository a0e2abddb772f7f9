"""The counterparts of the host's sockets (unix(7)) that containers have mounted.

A program of the guest that connects to one gets a connection to the host's socket: the supervisor
makes it, and the bytes go over a stream. A container mounts a counterpart as it would mount the
socket on the host; owner and mode are the same, so this kernel decides who may connect.
"""

import contextlib
import json
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.guest.connections import Connection
from tapwright.agent.guest.events import Watcher
from tapwright.agent.guest.refusal import RefusedError
from tapwright.agent.guest.requests import Request
from tapwright.agent.guest.streams import Answer, Process

_KINDS = {protocol.STREAM: socket.SOCK_STREAM, protocol.DATAGRAM: socket.SOCK_DGRAM}
_CREDENTIALS = struct.Struct("=iII")  # struct ucred (include/linux/socket.h)
_ID = struct.Struct("=I")
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h
_MOST_BYTES = 1024  # for 256 groups
_AGAIN_SECONDS = 1.0


class Sockets:
    """All of them, by their numbers. The operations raise RefusedError, OSError."""

    def __init__(self, watch: Watcher) -> None:
        self._watch = watch
        self._bound: dict[int, _Socket] = {}
        self.operations: dict[str, Callable[[Request, Answer], Process | None]] = {
            "listen_socket": self._listen,
            "accept_socket": self._accept,
            "close_socket": self._close,
        }

    def close_all(self) -> None:
        """Because the supervisor that asked for them has gone."""
        while self._bound:
            self._bound.popitem()[1].close()

    def _listen(self, request: Request, answer: Answer) -> None:
        number = request["number"]
        if request["kind"] not in _KINDS:
            raise RefusedError(f"there are no sockets of kind {request['kind']!r}")
        if bound := self._bound.get(number):
            bound.belong(request)
        else:
            self._bound[number] = _Socket(request, self._watch)
        answer.finish({})

    def _accept(self, request: Request, answer: Answer) -> Process:
        if not (bound := self._bound.get(request["number"])):
            raise RefusedError(f"there is no socket {request['number']}")
        if bound.kind == protocol.DATAGRAM:
            return _Datagrams(bound, self._watch, answer)
        return _Accepted(bound, self._watch, answer)

    def _close(self, request: Request, answer: Answer) -> None:
        if bound := self._bound.pop(request["number"], None):
            bound.close()
        answer.finish({})


class _Socket:
    """A counterpart. It takes connections only while one is waited for; the others wait in the
    kernel, as on a host whose server is slow. Raises OSError."""

    def __init__(self, request: Request, watch: Watcher) -> None:
        self.kind: str = request["kind"]
        self.waiting: deque[_Accepted] = deque()
        self.taker: _Datagrams | None = None
        self._watch = watch
        self._is_watched = False
        self._path = f"{protocol.SOCKETS}/{request['number']}"
        os.makedirs(protocol.SOCKETS, exist_ok=True)
        _remove(self._path)  # of an agent that died
        self.socket = socket.socket(socket.AF_UNIX, _KINDS[self.kind] | socket.SOCK_NONBLOCK)
        try:
            if self.kind == protocol.DATAGRAM:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self.socket.bind(self._path)
            self.belong(request)
            if self.kind == protocol.STREAM:
                self.socket.listen(socket.SOMAXCONN)
        except BaseException:
            self.close()
            raise

    def belong(self, request: Request) -> None:
        """Take the owner and mode of the host's socket."""
        os.chown(self._path, request["uid"], request["gid"])
        os.chmod(self._path, request["mode"])

    def wait(self, connection: "_Accepted") -> None:
        self.waiting.append(connection)
        self.watch_as_needed()

    def watch_as_needed(self) -> None:
        wanted = bool(self.waiting) and self.socket.fileno() >= 0
        if wanted and not self._is_watched:
            self._watch.add(self.socket.fileno(), select.EPOLLIN, self._ready)
        elif self._is_watched and not wanted:
            self._watch.remove(self.socket.fileno())
        self._is_watched = wanted

    def close(self) -> None:
        waiting = list(self.waiting)
        self.waiting.clear()
        self.watch_as_needed()
        if self.taker:
            self.taker.refuse()
        self.socket.close()
        _remove(self._path)
        for connection in waiting:
            connection.refuse()

    def _ready(self) -> None:
        try:
            connection, _ = self.socket.accept()
        except BlockingIOError:
            return
        except OSError:  # too many open files, or no memory
            self._watch.remove(self.socket.fileno())
            self._watch.later(_AGAIN_SECONDS, self._again)
            return
        connection.setblocking(False)
        first = self.waiting.popleft()
        self.watch_as_needed()
        first.begin(connection)

    def _again(self) -> None:
        self._is_watched = False
        self.watch_as_needed()


class _Accepted(Connection):
    """A connection that a program makes. The host's server is to notice whether the program has
    only said its last, or has gone: then an empty STDERR says that it reads nothing more."""

    def __init__(self, bound: _Socket, watch: Watcher, answer: Answer) -> None:
        super().__init__(watch, answer)
        self._bound = bound
        bound.wait(self)

    def begin(self, connection: socket.socket) -> None:
        self._answer.send(protocol.STARTED, json.dumps(_peer(connection)).encode())
        self._is_connected = True
        self._carry(connection)

    def refuse(self) -> None:
        self._is_over = True
        self._answer.fail({"message": "the socket was closed"})

    def unread(self, channel: int) -> None:
        """The host's server has gone, or reads nothing more: let the program notice."""
        if self._is_connected and self._reads:
            self._reads = False
            with contextlib.suppress(OSError):  # it has gone
                self._socket.shutdown(socket.SHUT_RD)
            self._end_if_over()

    def _ready(self) -> None:
        super()._ready()
        self._look_for_end()

    def _said_all(self) -> None:
        # First: a server that answers to the end is to find that nobody listens.
        self._look_for_end()

    def _look_for_end(self) -> None:
        if self._writes and _is_gone(self._socket):
            self._not_written(None)

    def _not_read(self, error: OSError) -> None:
        # It has gone, and has left something unread.
        self._said_all()
        self._reads = False
        self._answer.send(protocol.STDOUT, b"")
        self._end_if_over()

    def _not_written(self, error: OSError | None) -> None:
        # What it has written itself is passed on all the same.
        self._writes = False
        self._queue.clear()
        self._answer.send(protocol.STDERR, b"")
        self._end_if_over()

    def _reset(self) -> None:
        if self in self._bound.waiting:
            self._bound.waiting.remove(self)
            self._bound.watch_as_needed()
        elif not self._is_over:
            self._end()


class _Datagrams(Process):
    """The datagrams that programs send to a counterpart. Raises RefusedError."""

    def __init__(self, bound: _Socket, watch: Watcher, answer: Answer) -> None:
        super().__init__(watch, answer)
        if bound.taker:
            raise RefusedError("its datagrams are taken already")
        bound.taker = self
        self._bound = bound
        self._socket = bound.socket
        self._is_watched = False
        self._watch_again()

    def refuse(self) -> None:
        end = self._answer.fail
        self.cancel()
        end({"message": "the socket was closed"})

    def credit(self, channel: int, count: int) -> None:
        super().credit(channel, count)
        self._watch_again()

    def stdin(self, data: bytes) -> None:
        """Ignore it: senders have no address to which an answer could go."""

    def cancel(self) -> None:
        super().cancel()
        if self._bound.taker is self:
            self._bound.taker = None
            self._pause()

    def _watch_again(self) -> None:
        if self._bound.taker is self and not self._is_watched:
            self._watch.add(self._socket.fileno(), select.EPOLLIN, self._ready)
            self._is_watched = True

    def _pause(self) -> None:
        if self._is_watched:
            self._watch.remove(self._socket.fileno())
            self._is_watched = False

    def _ready(self) -> None:
        first = bytearray(1)
        with contextlib.suppress(BlockingIOError):
            while True:
                size = self._socket.recv_into(first, 1, socket.MSG_PEEK | socket.MSG_TRUNC)
                cost = size + protocol.DATAGRAM_COST
                if protocol.WINDOW >= cost > self._window[protocol.STDOUT]:
                    self._pause()
                    return
                data, sent_with, *_ = self._socket.recvmsg(
                    size or 1, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
                if cost > protocol.WINDOW:
                    return  # only a sender with a larger buffer than is usual makes such
                self._window[protocol.STDOUT] -= cost
                # The kernel puts them first, and leaves out what has no room.
                _, uid, gid = _CREDENTIALS.unpack(sent_with[0][2])
                self._answer.send(protocol.STDOUT, protocol.datagram(uid, gid, data))


def _peer(connection: socket.socket) -> dict[str, Any]:
    """Who has connected: `uid`, `gid`, and further `groups`, none where they are too many."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(found)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES)
    except OSError:
        groups = b""
    return {"uid": uid, "gid": gid, "groups": [number for (number,) in _ID.iter_unpack(groups)]}


def _is_gone(connection: socket.socket) -> bool:
    """Whether the other end is closed in both directions."""
    looking = select.poll()
    looking.register(connection, 0)
    return any(events & select.POLLHUP for _, events in looking.poll(0))


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
