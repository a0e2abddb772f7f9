"""Runs a command in a sandbox's guest from here: stdin, stdout, stderr, signals, exit status."""

import errno
import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.protocol import Frame
from tapwright.errors import AgentError, SandboxStateError
from tapwright.sandbox import wire
from tapwright.sandbox.client import connect
from tapwright.sandbox.registry import Sandbox

FORWARDED_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
)

_UNSTARTED = {errno.ENOENT: 127, errno.EACCES: 126, errno.ENOEXEC: 126, errno.EISDIR: 126}

Sink = Callable[[bytes], None]


def execute(
    sandbox: Sandbox,
    argv: Sequence[str],
    stdin: int | None,
    stdout: Sink,
    stderr: Sink,
    environment: dict[str, str] | None = None,
    cwd: str = "/",
) -> int:
    """Run a command in the guest to its end; return its exit status as a shell would give it:
    128 + N for signal N, 127 for no such command, 126 for one that can't be run.

    `stdin` is a descriptor to read, None for none. Signals to this process go to the command.
    To be called from the main thread. Raises SandboxStateError, AgentError, UsageError.
    """
    connection = connect(sandbox)
    request = {
        "op": "exec",
        "argv": list(argv),
        "stdin": stdin is not None,
        "env": environment or {},
        "cwd": cwd,
    }
    with connection, _signals_caught() as signals:
        wire.send(connection, request)
        return _Conversation(connection, argv[0], stdin, signals, stdout, stderr).run()


class _Conversation:
    """Everything that goes back and forth until the command's end."""

    def __init__(
        self,
        connection: socket.socket,
        command: str,
        stdin: int | None,
        signals: int,
        stdout: Sink,
        stderr: Sink,
    ) -> None:
        self._connection = connection
        self._command = command
        self._stdin = stdin
        self._signals = signals
        self._sinks = {protocol.STDOUT: stdout, protocol.STDERR: stderr}
        self._window = protocol.WINDOW
        self._status: int | None = None
        # poll(2), for epoll refuses regular files.
        self._selector = selectors.PollSelector()

    def run(self) -> int:
        decoder, assembler = protocol.Decoder(), protocol.Assembler()
        self._selector.register(self._connection, selectors.EVENT_READ)
        self._selector.register(self._signals, selectors.EVENT_READ)
        if self._stdin is not None:
            self._selector.register(self._stdin, selectors.EVENT_READ)
        while self._status is None:
            for key, _ in self._selector.select():
                if key.fileobj is self._connection:
                    data = self._connection.recv(protocol.WINDOW)
                    if not data:
                        raise SandboxStateError("the sandbox ended while the command ran")
                    for frame in decoder.feed(data):
                        self._take_checked(frame, assembler)
                elif key.fd == self._signals:
                    for number in os.read(self._signals, 64):
                        self._send(protocol.SIGNAL, bytes([number]))
                elif self._stdin is not None:
                    self._read_stdin(self._stdin)
        return self._status

    def _take_checked(self, frame: Frame, assembler: protocol.Assembler) -> None:
        """The guest is hostile: what it sends may be anything."""
        try:
            self._take(frame, assembler)
        except (protocol.ProtocolError, KeyError, TypeError, ValueError) as error:
            raise AgentError(f"the agent's answer makes no sense: {error}") from None

    def _take(self, frame: Frame, assembler: protocol.Assembler) -> None:
        if sink := self._sinks.get(frame.kind):
            if frame.payload:
                sink(frame.payload)
                self._send(protocol.CREDIT, protocol.credit(frame.kind, len(frame.payload)))
        elif frame.kind == protocol.CREDIT:
            _, count = protocol.read_credit(frame.payload)
            was_shut = self._window <= 0
            self._window += count
            if was_shut and self._stdin is not None:
                self._selector.register(self._stdin, selectors.EVENT_READ)
        elif frame.kind in (protocol.REPLY, protocol.ERROR):
            content = assembler.add(frame)
            if content is not None:
                self._status = self._outcome(frame.kind, protocol.read_json(content))

    def _outcome(self, kind: int, reply: dict[str, Any]) -> int:
        if kind == protocol.REPLY:
            return 128 + int(reply["signal"]) if "signal" in reply else int(reply["status"])
        reason = str(reply.get("message", "no reason given"))
        status = _UNSTARTED.get(reply.get("errno", 0))
        if status is None:
            raise AgentError(reason)
        self._sinks[protocol.STDERR](f"{self._command}: {reason}\n".encode())
        return status

    def _read_stdin(self, stdin: int) -> None:
        data = os.read(stdin, min(protocol.MAX_PAYLOAD, self._window))
        self._send(protocol.STDIN, data)
        self._window -= len(data)
        if not data or self._window <= 0:
            self._selector.unregister(stdin)
        if not data:
            self._stdin = None

    def _send(self, kind: int, payload: bytes) -> None:
        # A command that has ended hangs up while we may still be sending: its REPLY is on the way.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(protocol.encode(Frame(kind, 0, 0, payload)))


@contextmanager
def _signals_caught() -> Iterator[int]:
    """A descriptor that gives the numbers of the signals which come within the block."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, lambda *_: None) for number in FORWARDED_SIGNALS}
    waking = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(waking)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)
