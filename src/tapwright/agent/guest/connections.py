"""Connections of programs in the guest that are carried over a stream, to a connection on the host.

What comes as STDIN is written to the program; what it writes is STDOUT. An empty frame is the end
of one direction. The stream ends when both directions have ended.
"""

import select
import socket

from tapwright.agent import protocol
from tapwright.agent.guest.events import Watcher
from tapwright.agent.guest.streams import Answer, Process, hand_in


class Connection(Process):
    """One of them, from `_carry` on; until then what comes waits, as far as the window allows."""

    _socket: socket.socket

    def __init__(self, watch: Watcher, answer: Answer) -> None:
        super().__init__(watch, answer)
        self._window[protocol.STDOUT] = protocol.FORWARD_WINDOW
        self._is_connected = False
        self._reads = self._writes = True

    def stdin(self, data: bytes) -> None:
        if not self._writes:
            return
        self._take_in(data)
        if self._is_connected:
            self._send()

    def credit(self, channel: int, count: int) -> None:
        super().credit(channel, count)
        if self._is_connected:
            self._receive()

    def unread(self, channel: int) -> None:
        """End, by `cancel`, a connection whose output the client no longer reads."""

    def cancel(self) -> None:
        super().cancel()
        self._reset()

    def _carry(self, connection: socket.socket) -> None:
        """Carry a connection that does not block, and may not be there yet."""
        self._socket = connection
        events = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
        self._watch.add(connection.fileno(), events, self._ready)

    def _ready(self) -> None:
        # Or refused; a read shows which.
        self._is_connected = True
        self._receive()
        self._send()

    def _said_all(self) -> None:
        """The program writes nothing more."""

    def _not_read(self, error: OSError) -> None:
        """Nothing more can be read from the program."""
        raise NotImplementedError

    def _not_written(self, error: OSError) -> None:
        """Nothing more can be written to the program."""
        raise NotImplementedError

    def _reset(self) -> None:
        """End the connection, if it has not ended."""
        raise NotImplementedError

    def _receive(self) -> None:
        while self._reads and (window := self._window[protocol.STDOUT]) > 0:
            try:
                data = self._socket.recv(min(protocol.MAX_PAYLOAD, window))
            except BlockingIOError:
                return
            except OSError as error:
                self._not_read(error)
                return
            if not data:
                self._said_all()
            self._window[protocol.STDOUT] -= len(data)
            self._answer.send(protocol.STDOUT, data)
            self._reads = bool(data)
        self._end_if_over()

    def _send(self) -> None:
        try:
            sent = hand_in(self._queue, self._socket.send)
            if self._stdin_ends and self._writes and not self._queue:
                self._writes = False
                self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._not_written(error)
            return
        self._give_credit(sent)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if not self._reads and not self._writes and not self._is_over:
            self._end()
            self._answer.finish({})

    def _end(self) -> None:
        self._is_over = True
        self._reads = self._writes = False
        self._queue.clear()
        self._watch.remove(self._socket.fileno())
        self._socket.close()
