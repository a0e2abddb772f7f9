"""Runs a command in a guest as if it were this process: this process's stdin and signals go to the
command."""

import os
import selectors
import signal
from collections.abc import Callable

from tapwright.agent import protocol
from tapwright.linux import signals
from tapwright.sandbox.execution import Process

FORWARDED_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
)

Sink = Callable[[bytes], None]


def attend(process: Process, stdin: int | None, stdout: Sink, stderr: Sink) -> int:
    """Pass on input, output and signals until the command ends; return its exit status (see
    `Completed.status`).

    `stdin` is a descriptor to read, None for none. Call this from the main thread. Raises
    SandboxStateError, AgentError.
    """
    # poll(2), for epoll refuses regular files.
    with signals.caught(FORWARDED_SIGNALS) as caught, selectors.PollSelector() as selector:
        selector.register(process, selectors.EVENT_READ)
        selector.register(caught, selectors.EVENT_READ)
        source = _Source(stdin, process, selector)
        while True:
            for output, sink in ((process.stdout, stdout), (process.stderr, stderr)):
                if data := output.read_waiting():
                    sink(data)
            if process.status is not None:
                return process.status
            source.listen()
            for key, _ in selector.select():
                if key.fileobj is process:
                    process.pump()
                elif key.fd == caught:
                    for number in os.read(caught, 64):
                        process.signal(number)
                else:
                    source.pass_on()


class _Source:
    """This process's stdin. It is read as fast as the command reads its own."""

    def __init__(self, fd: int | None, process: Process, selector: selectors.BaseSelector) -> None:
        self._fd = fd
        self._process = process
        self._selector = selector
        self._is_listening = False

    def listen(self) -> None:
        if self._fd is None or self._is_listening == bool(self._process.room):
            return
        self._is_listening = not self._is_listening
        if self._is_listening:
            self._selector.register(self._fd, selectors.EVENT_READ)
        else:
            self._selector.unregister(self._fd)

    def pass_on(self) -> None:
        if self._fd is None:
            return
        data = os.read(self._fd, min(protocol.MAX_PAYLOAD, self._process.room))
        if data:
            self._process.write(data)
        else:
            self._process.close_stdin()
            self._selector.unregister(self._fd)
            self._fd = None
