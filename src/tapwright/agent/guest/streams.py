"""Commands that the agent runs, and the flow of their stdin, stdout and stderr."""

import contextlib
import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from typing import Any

from tapwright.agent import protocol

_CHUNK = protocol.MAX_PAYLOAD
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "dumb",
}

Send = Callable[[int, bytes], None]
Finish = Callable[[dict[str, Any]], None]


class Watcher:
    """An epoll set whose members are (descriptor, what to call)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, events: int, call: Callable[[], None]) -> None:
        self._epoll.register(fd, events)
        self._calls[fd] = call

    def remove(self, fd: int) -> None:
        if self._calls.pop(fd, None):
            self._epoll.unregister(fd)

    def run_once(self, timeout: float | None) -> None:
        for fd, _ in self._epoll.poll(timeout):
            if call := self._calls.get(fd):
                call()


class Command:
    """One running command. `send(kind, payload)` and `finish(reply)` speak for its stream.

    Raises OSError when it can't be started.
    """

    def __init__(self, request: dict[str, Any], watch: Watcher, send: Send, finish: Finish) -> None:
        self._watch = watch
        self._send = send
        self._finish = finish
        self._process = subprocess.Popen(
            [str(word) for word in request["argv"]],
            stdin=subprocess.PIPE if request.get("stdin") else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **request.get("env", {})},
            cwd=request.get("cwd") or "/",
            start_new_session=True,
            bufsize=0,
        )
        self._stdin = _take(self._process.stdin)
        self._outputs = {
            protocol.STDOUT: _take(self._process.stdout),
            protocol.STDERR: _take(self._process.stderr),
        }
        self._window = dict.fromkeys(self._outputs, protocol.WINDOW)
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._stdin_ends = False
        self._stdin_watched = False
        self._finished = False
        for kind, fd in self._outputs.items():
            watch.add(fd, select.EPOLLIN, lambda kind=kind: self._drain(kind))  # type: ignore[misc]
        self._pidfd = os.pidfd_open(self._process.pid)
        watch.add(self._pidfd, select.EPOLLIN, self._exited)

    def stdin(self, data: bytes) -> None:
        """Take in data for the command, or with no data its end of file."""
        if self._stdin < 0:
            return
        if data:
            self._queued += len(data)
            if self._queued > protocol.WINDOW:
                raise protocol.ProtocolError("more stdin than its window allows")
            self._queue.append(data)
        else:
            self._stdin_ends = True
        self._write()

    def signal(self, number: int) -> None:
        """Send a signal to the command and what it started in its session."""
        with contextlib.suppress(OSError):  # it has ended, or there is no such signal
            os.killpg(self._process.pid, number)

    def credit(self, channel: int, count: int) -> None:
        if channel not in self._window:
            return
        was_shut = self._window[channel] <= 0
        self._window[channel] = min(self._window[channel] + count, protocol.WINDOW)
        if was_shut and self._window[channel] > 0 and self._outputs[channel] >= 0:
            self._watch.add(self._outputs[channel], select.EPOLLIN, lambda: self._drain(channel))
            self._drain(channel)

    def cancel(self) -> None:
        """The other end has gone: end the command and say nothing."""
        self._send = lambda kind, payload: None
        self._finish = lambda reply: None
        self.signal(signal.SIGKILL)
        self._close_stdin()
        for kind in self._outputs:
            self._close_output(kind)

    def _drain(self, kind: int) -> None:
        """Pass on what the command has written, as far as the window goes.

        A command is over when it has exited: what it left in the background may hold its
        output open, but is not waited for.
        """
        while (fd := self._outputs[kind]) >= 0 and self._window[kind] > 0:
            try:
                data = os.read(fd, min(_CHUNK, self._window[kind]))
            except BlockingIOError:
                if self._pidfd >= 0:
                    return
                data = b""
            self._send(kind, data)
            self._window[kind] -= len(data)
            if not data:
                self._close_output(kind)
                self._end_if_done()
                return
        if fd >= 0:
            self._watch.remove(fd)

    def _write(self) -> None:
        written = 0
        try:
            while self._queue:
                count = os.write(self._stdin, self._queue[0])
                written += count
                if count == len(self._queue[0]):
                    self._queue.popleft()
                else:
                    self._queue[0] = self._queue[0][count:]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            written = self._queued
            self._queue.clear()
            self._stdin_ends = True
        self._queued -= written
        if written:
            self._send(protocol.CREDIT, protocol.credit(protocol.STDIN, written))
        if self._queue and not self._stdin_watched:
            self._watch.add(self._stdin, select.EPOLLOUT, self._write)
        elif not self._queue and self._stdin_watched:
            self._watch.remove(self._stdin)
        self._stdin_watched = bool(self._queue)
        if self._stdin_ends and not self._queue:
            self._close_stdin()

    def _exited(self) -> None:
        self._watch.remove(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._process.wait()
        self._close_stdin()
        for kind in self._outputs:
            self._drain(kind)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._finished or self._pidfd >= 0 or any(fd >= 0 for fd in self._outputs.values()):
            return
        self._finished = True
        code = self._process.returncode
        self._finish({"signal": -code} if code < 0 else {"status": code})

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._watch.remove(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
            self._queue.clear()

    def _close_output(self, kind: int) -> None:
        fd = self._outputs[kind]
        if fd >= 0:
            self._watch.remove(fd)
            os.close(fd)
            self._outputs[kind] = -1


def _take(pipe: Any) -> int:
    """A pipe of a Popen as a plain descriptor that does not block; -1 where there is none."""
    if pipe is None:
        return -1
    fd = os.dup(pipe.fileno())
    pipe.close()
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    return fd
