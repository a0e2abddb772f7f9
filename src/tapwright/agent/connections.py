"""Connections of the host that a stream of the agent carries on to a program in the guest.

Runs in the supervisor. The guest is hostile: no more of a connection is kept than a window in each
direction.
"""

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame, ProtocolError
from tapwright.agent.requests import Request
from tapwright.errors import AgentError

_log = logging.getLogger(__name__)


class Connection:
    """One of them: `_open` its stream, which `_take` hears, and then `_feed` and `_write` the
    connection `_socket`, which does not block."""

    _socket: socket.socket

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent
        self._stream = 0
        self._window = protocol.WINDOW
        self._window_opens = asyncio.Event()
        self._waiting = bytearray()
        self._has_ended = False
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        # True where both sides have closed it, so that all that came must still be written; False
        # where it is reset.
        self._over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def _open(self, request: Request) -> None:
        """Raises AgentError."""
        self._stream = await self._agent.open(request, self._take)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a task of this connection: when a direction fails, the connection does."""
        task = asyncio.create_task(self._breaking(work))
        self._tasks.append(task)
        return task

    async def _close(self) -> None:
        # The agent ignores the end of what has ended.
        self._agent.close_stream(self._stream, cancel=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self, is_whole: bool) -> None:
        if not self._over.done():
            self._over.set_result(is_whole)

    async def _breaking(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (AgentError, OSError):
            self._end(False)
        except Exception:
            _log.exception("unexpected")
            self._end(False)

    async def _feed(self) -> None:
        """Pass on what is read, as far as the window goes, and its end."""
        loop = asyncio.get_running_loop()
        while True:
            while self._window <= 0:
                self._window_opens.clear()
                await self._window_opens.wait()
            most = min(protocol.MAX_PAYLOAD, self._window)
            data = await loop.sock_recv(self._socket, most)
            self._window -= len(data)
            await self._agent.send(self._stream, protocol.STDIN, data)
            if not data:
                return

    def _take(self, frame: Frame) -> None:
        """A frame of the guest, which is hostile."""
        if frame.kind == protocol.STDOUT and not self._has_ended:
            self._waiting += frame.payload
            self._has_ended = not frame.payload
            self._news.set()
            if len(self._waiting) > protocol.FORWARD_WINDOW:
                self._end(False)
        elif frame.kind == protocol.CREDIT:
            try:
                _, count = protocol.read_credit(frame.payload)
            except ProtocolError:
                self._end(False)
            else:
                self._window = min(self._window + count, protocol.WINDOW)
                self._window_opens.set()
        elif frame.kind in (protocol.REPLY, protocol.ERROR):
            self._end(frame.kind == protocol.REPLY and self._has_ended)

    async def _write(self) -> None:
        """Pass on what comes from the guest, until its end."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting and not self._has_ended:
                self._news.clear()
                await self._news.wait()
            data = bytes(self._waiting[: protocol.MAX_PAYLOAD])
            del self._waiting[: len(data)]
            if not data:
                self._socket.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(self._socket, data)
            credit = protocol.credit(protocol.STDOUT, len(data))
            await self._agent.send(self._stream, protocol.CREDIT, credit)


class Endings:
    """Reports connections that have ended in a way, `select.EPOLLERR` or `EPOLLHUP`, while no task
    reads or writes them."""

    def __init__(self, way: int) -> None:
        self._way = way
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    @contextlib.contextmanager
    def watched(self, connection: socket.socket, call: Callable[[], None]) -> Iterator[None]:
        """Call `call` when the connection has ended so during the block. Raises OSError."""
        fd = connection.fileno()
        # These two are always reported (epoll_ctl(2)).
        self._epoll.register(fd, select.EPOLLET)
        self._calls[fd] = call
        try:
            yield
        finally:
            del self._calls[fd]
            self._epoll.unregister(fd)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _look(self) -> None:
        for fd, events in self._epoll.poll(0):
            if events & self._way:
                self._calls[fd]()
