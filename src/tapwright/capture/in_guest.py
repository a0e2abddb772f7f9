"""Listens in the guest by a program there (`listening`), and relates the guest's clock to the
host's.

The guest is hostile. Its answers are bounded and checked, and only packets are taken from them.
"""

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from tapwright.capture import listening
from tapwright.capture.filters import Instruction
from tapwright.errors import AgentError, printable
from tapwright.sandbox.execution import Process
from tapwright.state.registry import Sandbox

_PROGRAM = ("python3", "-I", "-S", "-c", Path(listening.__file__).read_text())
_ROOM = 2 * 1024 * 1024
_BEGIN_SECONDS = 20.0
_QUESTIONS, _KEPT = 8, 16
_EXCERPT_CHARACTERS = 300
_MOST_NAME = 15
_MOST_EARLY_BYTES = 16 * 1024 * 1024


class Seen(NamedTuple):
    """A packet: the number of its NIC, and what `Listener.read` returns."""

    number: int
    moment: int
    where: int
    length: int
    data: bytes


class Clock:
    """Measures how far the guest's clock is behind the host's, by asking for its time. The fastest
    answer counts; its error is at most half of the time that it took."""

    def __init__(self) -> None:
        self._asked = 0
        self._samples: deque[tuple[int, int]] = deque(maxlen=_KEPT)

    def asked(self, now: int) -> None:
        self._asked = now

    def answered(self, theirs: int, now: int) -> None:
        """Note an answer. Times are nanoseconds since the epoch, by each clock."""
        if self._asked:
            took = max(now - self._asked, 0)
            self._samples.append((took, self._asked + took // 2 - theirs))
        self._asked = 0

    @property
    def is_waiting(self) -> bool:
        return bool(self._asked)

    @property
    def behind(self) -> int:
        """Return the nanoseconds to add to the guest's time."""
        return min(self._samples, default=(0, 0))[1]

    @property
    def error(self) -> int:
        """Return the largest error of `behind`, in nanoseconds."""
        return min(self._samples, default=(0, 0))[0] // 2


class GuestListener:
    """Listens at NICs of a guest; a context manager. Its times are those of the host's clock."""

    def __init__(
        self, sandbox: Sandbox, nics: Sequence[tuple[str, str]], program: Sequence[Instruction]
    ) -> None:
        """`nics` are [name, MAC address] each. Raises SandboxStateError, and AgentError if the
        guest does not listen within some seconds."""
        self.counts = [(0, 0)] * len(nics)
        """(received, dropped) of each NIC, known at the end."""
        self.clock = Clock()
        self._size = len(nics)
        self._received = bytearray()
        self._complaint = b""
        self._is_ready = False
        self._is_closing = False
        self._process = Process(sandbox, _PROGRAM, stdin=True)
        request = {"nics": list(nics), "program": list(program), "room": _ROOM}
        self._early: list[Seen] = []
        try:
            self._process.write(json.dumps(request).encode() + b"\n")
            deadline = time.monotonic() + _BEGIN_SECONDS
            self._await(lambda: self._is_ready, deadline)
            for _ in range(_QUESTIONS):
                self.ask_time()
                self._await(lambda: not self.clock.is_waiting, deadline)
        except BaseException:
            self._process.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def fileno(self) -> int:
        return self._process.fileno()

    def ask_time(self) -> None:
        if not self.clock.is_waiting and not self._is_closing:
            self.clock.asked(time.time_ns())
            self._process.write(b"?")

    def read(self) -> list[Seen]:
        """Return the packets that have arrived, without waiting. Raises AgentError,
        SandboxStateError."""
        early, self._early = self._early, []
        self._process.pump()
        return early + list(self._take())

    def finish(self, seconds: float) -> list[Seen]:
        """End the program, and return the packets that were still on their way. Raises AgentError
        if the guest does not end it in time, SandboxStateError."""
        self._is_closing = True
        self._process.close_stdin()
        deadline = time.monotonic() + seconds
        self._await(lambda: self._process.status is not None, deadline)
        found, self._early = self._early, []
        return found

    def _await(self, is_so: Any, deadline: float) -> None:
        """Take in what arrives until a condition holds; packets are kept for `read`."""
        while True:
            self._early += self._take()
            if sum(len(seen.data) for seen in self._early) > _MOST_EARLY_BYTES:
                raise AgentError("the guest sends packets, and no answer")
            if is_so():
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise AgentError("the guest does not answer in time")
            self._process.wait_until(self._has_news, left)

    def _has_news(self) -> bool:
        process = self._process
        return process.stdout.has_some or process.stderr.has_some or process.status is not None

    def _take(self) -> Iterator[Seen]:
        self._complaint = (self._complaint + self._process.stderr.read_waiting())[-4096:]
        self._received += self._process.stdout.read_waiting()
        record = listening.RECORD
        start = 0
        while len(self._received) - start >= record.size:
            kind, where, number, size, length, moment = record.unpack_from(self._received, start)
            self._check(kind, number, size)
            body = start + record.size
            if len(self._received) - body < size:
                break
            data = bytes(self._received[body : body + size])
            start = body + size
            if kind == listening.PACKET:
                yield Seen(number, moment + self.clock.behind, where, max(length, size), data)
            elif kind == listening.CLOCK:
                self.clock.answered(moment, time.time_ns())
            elif kind == listening.STATISTICS:
                received, dropped = listening.COUNTS.unpack(data)
                self.counts[number] = received, dropped
            else:
                self._is_ready = True
        del self._received[:start]
        if self._process.status not in (None, 0) or (
            self._process.status == 0 and not self._is_closing
        ):
            *_, reason = ["no reason given", *self._complaint.decode(errors="replace").splitlines()]
            raise AgentError(
                f"the guest's part ended with {self._process.status}: "
                + printable(reason)[:_EXCERPT_CHARACTERS]
            )

    def _check(self, kind: int, number: int, size: int) -> None:
        most = {
            listening.READY: (_MOST_NAME + 4) * self._size + 2,
            listening.PACKET: listening.MOST_BYTES + 4,
            listening.CLOCK: 0,
            listening.STATISTICS: listening.COUNTS.size,
        }
        if (
            size > most.get(kind, -1)
            or number >= self._size
            or (kind == listening.STATISTICS and size != listening.COUNTS.size)
        ):
            raise AgentError("what the guest says of its packets makes no sense")
