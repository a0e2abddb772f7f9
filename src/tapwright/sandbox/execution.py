"""A command in a guest: its stdin, stdout, stderr, signals and exit status."""

import errno
import select
import signal as signals
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from tapwright.agent import protocol
from tapwright.agent.protocol import Frame
from tapwright.errors import (
    AgentError,
    CommandError,
    CommandTimeoutError,
    SandboxStateError,
    TapwrightError,
    UsageError,
)
from tapwright.sandbox import client
from tapwright.state import registry

_UNSTARTED = {errno.ENOENT: 127, errno.EACCES: 126, errno.ENOEXEC: 126, errno.EISDIR: 126}

Text = TypeVar("Text", str, bytes)


@dataclass(frozen=True)
class Completed(Generic[Text]):
    """A command that has ended. `status` is its exit status as in a shell: 128 + N for signal N,
    127 when the command does not exist, 126 when it can't be run."""

    argv: tuple[str, ...]
    status: int
    stdout: Text
    stderr: Text

    def check(self) -> Self:
        """Return this object. Raises CommandError when `status` is not 0."""
        if self.status:
            raise CommandError(self.argv, self.status, self.stdout, self.stderr)
        return self


class Output:
    """The stdout or stderr of a running command: a binary stream to read once.

    Iterating gives lines. A command whose output nobody reads waits when it has written
    `protocol.WINDOW` bytes (256 KiB).
    """

    def __init__(self, process: "Process", kind: int) -> None:
        self._process = process
        self._kind = kind
        self._waiting = bytearray()
        self._has_ended = False

    def read_waiting(self) -> bytes:
        """The bytes that have come, without waiting; empty for none."""
        return self._take(-1)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, fewer only at the end; by default all until the end."""
        parts = bytearray()
        while size < 0 or len(parts) < size:
            data = self.read1(size - len(parts) if size >= 0 else -1)
            if not data:
                break
            parts += data
        return bytes(parts)

    def read1(self, size: int = -1, timeout: float | None = None) -> bytes:
        """The bytes that have come, up to `size`; this waits for the first one. Empty at the end.
        Raises TimeoutError when nothing comes within `timeout` seconds."""
        if not self._process.wait_until(lambda: bool(self._waiting or self._has_ended), timeout):
            raise TimeoutError(f"nothing came within {timeout:g} s")
        return self._take(size)

    def readline(self) -> bytes:
        """A line, with its end; the last one may have none. Empty at the end."""
        while True:
            self._process.wait_until(
                lambda: (
                    b"\n" in self._waiting
                    or self._has_ended
                    or len(self._waiting) >= protocol.WINDOW
                )
            )
            end = self._waiting.find(b"\n") + 1
            return self._take(end or -1)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    @property
    def has_some(self) -> bool:
        return bool(self._waiting)

    def add(self, data: bytes) -> None:
        """Take output in; no data is its end."""
        if data:
            self._waiting += data
        else:
            self._has_ended = True

    def end(self) -> None:
        self._has_ended = True

    def _take(self, size: int) -> bytes:
        with self._process.changing:
            data = bytes(self._waiting[:size] if size >= 0 else self._waiting)
            del self._waiting[: len(data)]
        if data:
            self._process.send(protocol.CREDIT, protocol.credit(self._kind, len(data)))
        return data


class Process:
    """A command that runs in a guest. The end of a `with` block ends a command that still runs.

    Any thread may use it. `stdout` and `stderr` can be read while the command writes; a `terminal`
    has all output on `stdout`.
    """

    def __init__(
        self,
        sandbox: registry.Sandbox,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        environment: Mapping[str, str] | None = None,
        cwd: str = "/",
        terminal: bool = False,
    ) -> None:
        """Raises SandboxStateError, UsageError."""
        if isinstance(argv, str) or not argv:
            raise UsageError(f"{argv!r} is not a command: it must be a list of words")
        self.sandbox = sandbox.id
        self.argv = tuple(map(str, argv))
        self.stdout = Output(self, protocol.STDOUT)
        self.stderr = Output(self, protocol.STDERR)
        self.changing = threading.Condition()
        self._outputs = {protocol.STDOUT: self.stdout, protocol.STDERR: self.stderr}
        self._sending = threading.Lock()
        self._is_pumping = False
        self._failure: Exception | None = None
        self._status: int | None = None
        self._window = protocol.WINDOW
        self._decoder, self._assembler = protocol.Decoder(), protocol.Assembler()
        more: dict[str, Any] = {"terminal": True} if terminal else {}
        self._connection = self._opened(
            client.of(sandbox),
            argv=list(self.argv),
            stdin=stdin,
            env=dict(environment or {}),
            cwd=cwd,
            **more,
        )
        self._connection.settimeout(None)
        # Another thread may close the process while this one waits.
        self._poll = select.poll()
        self._poll.register(self._connection, select.POLLIN)

    def _opened(self, supervisor: client.Supervisor, **request: Any) -> socket.socket:
        return supervisor.opened("exec", **request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def status(self) -> int | None:
        """The exit status, None while the command runs; see `Completed.status`."""
        return self._status

    @property
    def room(self) -> int:
        """How many bytes `write` can take now without waiting."""
        return max(self._window, 0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command's end; return its exit status. Another thread must read its output
        meanwhile. Raises CommandTimeoutError when it runs for longer than `timeout` seconds (it
        goes on), AgentError, SandboxStateError."""
        self.wait_until(lambda: self._status is not None, timeout)
        if self._status is None:
            raise CommandTimeoutError(self.argv, timeout or 0.0)
        return self._status

    def write(self, data: bytes) -> None:
        """Write to the command's stdin; wait while the command does not read. Do nothing when the
        command has ended."""
        rest = memoryview(data)
        while rest and self._status is None:
            self.wait_until(lambda: self._window > 0 or self._status is not None)
            rest = rest[self._write_some(rest) :]

    def close_stdin(self) -> None:
        """Send the end of file to the command's stdin."""
        self.send(protocol.STDIN, b"")

    def signal(self, number: int) -> None:
        """Send a signal to the command, and to all processes of its session."""
        if not 0 < number <= 64:
            raise UsageError(f"{number} is not a signal, 1 to 64")
        self.send(protocol.SIGNAL, bytes([number]))

    def kill(self) -> None:
        self.signal(signals.SIGKILL)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal's window."""
        self.send(protocol.RESIZE, protocol.size(rows, columns))

    def communicate(
        self, stdin: bytes = b"", timeout: float | None = None, limit: int | None = None
    ) -> Completed[bytes]:
        """Send `stdin` and its end, read all output, wait for the command's end.

        Raises CommandTimeoutError, with the output so far, when that takes longer than `timeout`
        seconds, and kills the command; AgentError, also when the command writes more than `limit`
        bytes; SandboxStateError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        rest = memoryview(stdin)
        parts = {output: bytearray() for output in self._outputs.values()}
        is_closed = False

        def is_news() -> bool:
            return (
                self._status is not None
                or any(output.has_some for output in parts)
                or (bool(rest) and self._window > 0)
            )

        while True:
            if not rest and not is_closed:
                self.close_stdin()
                is_closed = True
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self.wait_until(is_news, left):
                self.kill()
                texts = (bytes(text) for text in parts.values())
                raise CommandTimeoutError(self.argv, timeout or 0.0, *texts)
            for output, text in parts.items():
                text += output.read_waiting()
                if limit is not None and len(text) > limit:
                    raise AgentError(f"the guest's answer has more than {limit} bytes")
            if self._status is not None:
                break
            if rest and self._window > 0:
                rest = rest[self._write_some(rest) :]
        stdout, stderr = (bytes(text) for text in parts.values())
        return Completed(self.argv, self._status, stdout, stderr)

    def finish(
        self, stdin: str | bytes, timeout: float | None, check: bool, encoding: str | None
    ) -> Completed[Any]:
        """Call `communicate`; decode the output with an `encoding`; with `check` call
        `Completed.check`. Raises as these do."""

        def text(written: str | bytes) -> str | bytes:
            if encoding is None or isinstance(written, str):
                return written
            return written.decode(encoding, errors="replace")

        data = stdin.encode(encoding or "utf-8") if isinstance(stdin, str) else stdin
        try:
            ended = self.communicate(data, timeout)
            done = Completed[Any](ended.argv, ended.status, text(ended.stdout), text(ended.stderr))
            return done.check() if check else done
        except CommandTimeoutError as error:
            error.stdout, error.stderr = text(error.stdout), text(error.stderr)
            error.sandbox = self.sandbox
            raise
        except TapwrightError as error:
            error.sandbox = self.sandbox
            raise

    def close(self) -> None:
        """End the command if it still runs, and discard its output."""
        # The supervisor kills the command of a client that hangs up.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        with self.changing:
            if self._status is None and self._failure is None:
                self._failure = SandboxStateError(f"{self.argv[0]}: its Process has been closed")
            while self._is_pumping:
                self.changing.wait()
            self._connection.close()
            self.changing.notify_all()

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()

    def fileno(self) -> int:
        """The descriptor that becomes readable when `pump` has work: for a caller's own loop."""
        return self._connection.fileno()

    def pump(self) -> None:
        """Read what has come from the guest, without waiting. Raises as `wait` does."""
        self.wait_until(lambda: False, 0)

    def send(self, kind: int, payload: bytes) -> None:
        # A command may end, and hang up, while this sends; the report of its end is on the way.
        with self._sending, suppress(OSError):
            self._connection.sendall(protocol.encode(Frame(kind, 0, 0, payload)))

    def wait_until(self, is_so: Callable[[], bool], timeout: float | None = None) -> bool:
        """Read what comes from the guest until `is_so` returns true; return False when it does not
        within so many seconds.

        One thread at a time reads; the others wait for it. Raises AgentError, SandboxStateError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        has_looked = False
        with self.changing:
            while not is_so():
                if self._failure is not None:
                    raise self._failure
                if self._status is not None:
                    return is_so()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0 and has_looked:
                    return False
                has_looked = True
                if self._is_pumping:
                    self.changing.wait(left)
                    continue
                self._is_pumping = True
                self.changing.release()
                data: bytes | None = None
                try:
                    data = self._received(left)
                finally:
                    self.changing.acquire()
                    self._is_pumping = False
                    self.changing.notify_all()
                if data is not None:
                    self._take_checked(data)
            return True

    def _received(self, timeout: float | None) -> bytes | None:
        """The bytes that have come; None for nothing."""
        if not self._poll.poll(None if timeout is None else max(0, int(timeout * 1000) + 1)):
            return None
        try:
            return self._connection.recv(protocol.WINDOW)
        except OSError:
            return b""

    def _take_checked(self, data: bytes) -> None:
        """Take in bytes of the guest, which is hostile."""
        try:
            if not data:
                raise SandboxStateError("the sandbox ended while the command ran")
            for frame in self._decoder.feed(data):
                self._take(frame)
        except protocol.ProtocolError as error:
            self._failure = AgentError(f"the agent's answer makes no sense: {error}")
        except (AgentError, SandboxStateError) as error:
            self._failure = error

    def _take(self, frame: Frame) -> None:
        if output := self._outputs.get(frame.kind):
            output.add(frame.payload)
        elif frame.kind == protocol.CREDIT:
            _, count = protocol.read_credit(frame.payload)
            self._window = min(self._window + count, protocol.WINDOW)
        elif frame.kind in (protocol.REPLY, protocol.ERROR):
            content = self._assembler.add(frame)
            if content is not None:
                self._status = self._outcome(frame.kind, protocol.read_json(content))
                for output in self._outputs.values():
                    output.end()

    def _outcome(self, kind: int, reply: dict[str, Any]) -> int:
        if kind == protocol.REPLY:
            key, most = ("signal", 64) if "signal" in reply else ("status", 255)
            value = reply.get(key)
            if type(value) is not int or not 0 <= value <= most:
                raise protocol.ProtocolError(f"{key} is {value!r:.60}")
            return 128 + value if key == "signal" else value
        reason = str(reply.get("message", "no reason given"))
        code = reply.get("errno", 0)
        status = _UNSTARTED.get(code) if isinstance(code, int) else None
        if status is None:
            raise AgentError(reason)
        self.stderr.add(f"{self.argv[0]}: {reason}\n".encode())
        return status

    def _write_some(self, data: memoryview) -> int:
        with self.changing:
            count = min(len(data), self._window, protocol.MAX_PAYLOAD)
            self._window -= count
        if count > 0:
            self.send(protocol.STDIN, bytes(data[:count]))
        return max(count, 0)
