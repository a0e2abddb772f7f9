"""Processes whose stdin, stdout and stderr travel over a stream, and their flow control."""

import fcntl
import json
import os
import select
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from tapwright.agent import protocol
from tapwright.agent.guest.events import Children, Watcher

_CHUNK = protocol.MAX_PAYLOAD
_FIONREAD, _TIOCSWINSZ = 0x541B, 0x5414  # include/uapi/asm-generic/ioctls.h


class Answer(NamedTuple):
    """The way back to the client that opened a stream. `send` takes a message, which may need
    several frames; `finish` and `fail` end the stream."""

    send: Callable[[int, bytes], None]
    finish: Callable[[dict[str, Any]], None]
    fail: Callable[[dict[str, Any]], None]


class Process:
    """A process with a client on a stream.

    The object exists before its descriptors do: data for stdin waits until `attach`, as far as the
    window allows. The code that learns of the process's end calls `exited`.
    """

    lingers = False
    """Whether its outputs stay open after its end, for processes that it left behind."""

    def __init__(self, watch: Watcher, answer: Answer) -> None:
        self._watch = watch
        self._answer = answer
        self._stdin = -1
        self._outputs: dict[int, int] = {}
        self._window = dict.fromkeys((protocol.STDOUT, protocol.STDERR), protocol.WINDOW)
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._stdin_ends = False
        self._stdin_watched = False
        self._is_terminal = False
        self._is_attached = False
        self._is_over = False
        self._status: int | None = None
        self._owed: dict[int, int] | None = None
        """By output, how many bytes from before the end have not been passed on; None before the
        end, and when it has been reported."""

    def attach(self, stdin: int, outputs: dict[int, int]) -> None:
        """Take over the other ends of stdin (-1 for none), and of STDOUT and STDERR."""
        self._stdin, self._outputs = stdin, outputs
        self._is_attached = True
        for fd in (stdin, *outputs.values()):
            if fd >= 0:
                os.set_blocking(fd, False)
        for kind in outputs:
            self._listen(kind)
        self._write()

    def attach_terminal(self, master: int) -> None:
        """Take over the master of a terminal, for stdin and STDOUT."""
        self._is_terminal = True
        self.attach(os.dup(master), {protocol.STDOUT: master})

    @property
    def is_over(self) -> bool:
        """Whether its stream has ended."""
        return self._is_over

    @property
    def has_exited(self) -> bool:
        return self._status is not None

    def stdin(self, data: bytes) -> None:
        """Take in data for the process. Empty data is the end of its input."""
        if self._is_attached and self._stdin < 0:
            return
        self._take_in(data)
        if self._is_attached:
            self._write()

    def signal(self, number: int) -> None:
        """Send the process a signal. An ended process, or an invalid number, changes nothing; what
        is no process ignores it."""

    def resize(self, rows: int, columns: int) -> None:
        """Set the window size of the terminal, if there is one."""
        if self._is_terminal and (master := self._outputs[protocol.STDOUT]) >= 0:
            fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def credit(self, channel: int, count: int) -> None:
        if channel not in self._window:
            return
        was_shut = self._window[channel] <= 0
        self._window[channel] = min(self._window[channel] + count, protocol.WINDOW)
        if was_shut and self._window[channel] > 0 and self._outputs.get(channel, -1) >= 0:
            self._listen(channel)
            self._drain(channel)

    def unread(self, channel: int) -> None:
        """Close an output that the client no longer reads, so that the process notices, as with a
        pipe or a terminal of its own."""
        if self._outputs.get(channel, -1) >= 0:
            self._close_output(channel)
            if self._is_terminal:
                self._close_stdin()
            self._end_if_done()
            self._report_exit()

    def let_go(self) -> None:
        """Close the outputs of a process that has ended, whoever may still write to them."""
        for kind in self._outputs:
            self._close_output(kind)
        self._end_if_done()

    def cancel(self) -> None:
        """End the process without a report, because the client has gone."""
        self._answer = Answer(_say_nothing, _say_nothing, _say_nothing)
        self._close()
        self._end_if_done()

    def exited(self, status: int) -> None:
        """Note that the process has ended with this wait status."""
        self._status = status
        self._close_stdin()
        if self.lingers and not self._is_terminal:
            held = {kind: fd for kind, fd in self._outputs.items() if fd >= 0}
            self._owed = {kind: _readable(fd) for kind, fd in held.items()}
        for kind in self._outputs:
            self._drain(kind)
            self._pass_on(kind, b"")
        self._end_if_done()
        self._report_exit()

    def fail(self, refusal: dict[str, Any]) -> None:
        """Report that the process could not be started."""
        self._is_over = True
        self._close()
        self._answer.fail(refusal)

    def _take_in(self, data: bytes) -> None:
        if data:
            self._queued += len(data)
            if self._queued > protocol.WINDOW:
                raise protocol.ProtocolError("more stdin than its window allows")
            self._queue.append(data)
        else:
            self._stdin_ends = True

    def _give_credit(self, count: int) -> None:
        self._queued -= count
        if count:
            self._answer.send(protocol.CREDIT, protocol.credit(protocol.STDIN, count))

    def _passed_on(self, kind: int, output: bytes) -> bytes:
        """Return what is passed on of an output, and of what was held back of it before. Nothing
        may be held back any more when `output` is empty."""
        return output

    def _listen(self, kind: int) -> None:
        # Edge-triggered: a terminal that no process has open would be ready all the time.
        events = select.EPOLLIN | select.EPOLLET
        self._watch.add(self._outputs[kind], events, lambda: self._drain(kind))

    def _drain(self, kind: int) -> None:
        """Pass on what the process has written, as far as the window allows.

        When the process has exited, its background processes may hold its output open. The agent
        reads on only if it `lingers`.
        """
        while (fd := self._outputs[kind]) >= 0 and self._window[kind] > 0:
            try:
                data = os.read(fd, min(_CHUNK, self._window[kind]))
            except OSError as error:
                # A closed terminal may be opened again as long as its process lives.
                if isinstance(error, BlockingIOError):
                    if not self.has_exited or (self.lingers and not self._is_terminal):
                        return
                elif self._is_terminal and not self.has_exited:
                    return
                data = b""
            if self._owed is not None:
                self._owed[kind] -= len(data)
            self._pass_on(kind, data)
            if not data:
                self._answer.send(kind, b"")
                self._close_output(kind)
                self._end_if_done()
            self._report_exit()
            if not data:
                return
        if fd >= 0:
            self._watch.remove(fd)

    def _pass_on(self, kind: int, data: bytes) -> None:
        passed = self._passed_on(kind, data)
        for start in range(0, len(passed), _CHUNK):
            self._answer.send(kind, passed[start : start + _CHUNK])
        self._window[kind] -= len(passed)

    def _write(self) -> None:
        if self._stdin < 0:
            return
        try:
            written = hand_in(self._queue, partial(os.write, self._stdin))
        except OSError:  # no process reads
            written = self._queued
            self._queue.clear()
            self._stdin_ends = True
        self._give_credit(written)
        if self._queue and not self._stdin_watched:
            self._watch.add(self._stdin, select.EPOLLOUT, self._write)
        elif not self._queue and self._stdin_watched:
            self._watch.remove(self._stdin)
        self._stdin_watched = bool(self._queue)
        if self._stdin_ends and not self._queue:
            self._close_stdin()

    def _end_if_done(self) -> None:
        if self._is_over or self._status is None or any(fd >= 0 for fd in self._outputs.values()):
            return
        self._is_over = True
        self._answer.finish(_outcome(self._status))

    def _report_exit(self) -> None:
        """Report the end of a process whose outputs stay open, after all that it has written."""
        if self._status is None or self._owed is None or self._is_over:
            return
        if all(left <= 0 or self._outputs[kind] < 0 for kind, left in self._owed.items()):
            self._owed = None
            self._answer.send(protocol.EXITED, json.dumps(_outcome(self._status)).encode())

    def _close(self) -> None:
        self._close_stdin()
        for kind in self._outputs:
            self._close_output(kind)

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._watch.remove(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
        self._queue.clear()
        self._stdin_watched = False

    def _close_output(self, kind: int) -> None:
        fd = self._outputs[kind]
        if fd >= 0:
            self._watch.remove(fd)
            os.close(fd)
            self._outputs[kind] = -1


def hand_in(queue: deque[bytes], write: Callable[[bytes], int]) -> int:
    """Write what waits in a queue, as much as is taken without waiting; return how many bytes that
    was. Raises OSError."""
    written = 0
    try:
        while queue:
            count = write(queue[0])
            written += count
            if count == len(queue[0]):
                queue.popleft()
            else:
                queue[0] = queue[0][count:]
    except BlockingIOError:
        pass
    return written


def _readable(fd: int) -> int:
    """Return how many bytes a pipe holds."""
    return int(struct.unpack("i", fcntl.ioctl(fd, _FIONREAD, bytes(4)))[0])


def _outcome(status: int) -> dict[str, Any]:
    """Return a wait status as the other end gets it."""
    code = os.waitstatus_to_exitcode(status)
    return {"signal": -code} if code < 0 else {"status": code}


def _say_nothing(*words: Any) -> None:
    """Do nothing, because the client has gone."""


def in_a_child(children: Children, work: Callable[[], None], answer: Answer) -> None:
    """Do what may take time in a process of its own, and answer when it is done."""
    pid = os.fork()
    if not pid:
        status = 0
        try:
            work()
        except OSError as error:
            status = error.errno or 1
        except BaseException:
            status = 1
        finally:
            os._exit(status & 0xFF)

    def ended(status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if code:
            answer.fail({"message": os.strerror(code) if code > 0 else f"signal {-code}"})
        else:
            answer.finish({})

    children.expect(pid, ended)
