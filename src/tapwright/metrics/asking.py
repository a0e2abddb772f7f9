"""Sends a request to many sandboxes at once, and waits for all answers until one deadline.

A sandbox that does not answer does not delay the others.
"""

import selectors
import socket
import time
from collections.abc import Iterable
from typing import Any

from tapwright.agent import protocol
from tapwright.errors import UsageError
from tapwright.sandbox import wire
from tapwright.state.registry import Sandbox

_CONNECT_SECONDS = 0.05

Json = dict[str, Any]


class Asking:
    """A request to each of some sandboxes, in progress; `answers` waits for the answers."""

    def __init__(self, sandboxes: Iterable[Sandbox], request: Json) -> None:
        self._selector = selectors.DefaultSelector()
        for sandbox in sandboxes:
            connection = None
            try:
                connection = wire.connected(sandbox.directory, _CONNECT_SECONDS)
                wire.send(connection, request)
            except (OSError, UsageError):  # the supervisor hangs, or has just ended
                if connection:
                    connection.close()
                continue
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, _Answer(sandbox.id))

    def answers(self, deadline: float) -> dict[str, Json]:
        """Return the answers that came before the deadline (monotonic clock), by the sandbox's id.
        A refusal does not count as an answer."""
        found: dict[str, Json] = {}
        try:
            while self._selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                for key, _ in self._selector.select(left):
                    connection, answer = key.fileobj, key.data
                    assert isinstance(connection, socket.socket)  # noqa: S101  # as registered
                    if answer.is_over(connection):
                        self._selector.unregister(connection)
                        connection.close()
                        if answer.content is not None:
                            found[answer.sandbox] = answer.content
        finally:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
            self._selector.close()
        return found


class _Answer:
    def __init__(self, sandbox: str) -> None:
        self.sandbox = sandbox
        self.content: Json | None = None
        self._decoder, self._assembler = protocol.Decoder(), protocol.Assembler()

    def is_over(self, connection: socket.socket) -> bool:
        """Take in what has arrived; return whether the answer is complete."""
        try:
            data = connection.recv(protocol.WINDOW)
            for frame in self._decoder.feed(data):
                content = self._assembler.add(frame)
                if content is not None:
                    if frame.kind == protocol.REPLY:
                        result = protocol.read_json(content).get("result")
                        self.content = result if isinstance(result, dict) else None
                    return True
        except BlockingIOError:
            return False
        except (OSError, protocol.ProtocolError):
            return True
        return not data
