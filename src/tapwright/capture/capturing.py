"""Captures packets of a sandbox at several points into one file, in the order of their times.

The time of a capture, the size of the file and the packets kept for sorting are bounded. Each point
counts the packets for which the kernel had no room.
"""

import contextlib
import heapq
import itertools
import selectors
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tapwright import __version__
from tapwright.capture import pcapng
from tapwright.capture.filters import Instruction
from tapwright.capture.in_guest import GuestListener, Seen
from tapwright.capture.listening import Listener
from tapwright.capture.points import GUEST, Point
from tapwright.errors import AgentError, NetworkError, SandboxStateError
from tapwright.linux import netns, signals
from tapwright.state.registry import Sandbox

DEFAULT_SECONDS, DEFAULT_BYTES = 60.0, 64 * 1024 * 1024
LEAST_BYTES = 16 * 1024

_ROOM = 8 * 1024 * 1024
_HOLD_NANOSECONDS = 250_000_000
_MOST_HELD = 16 * 1024 * 1024
_ASK_SECONDS = 1.0
_GUEST_END_SECONDS = 5.0
_MOST_READS = 1000
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Counted:
    """The packets of a point: `received` passed the filter; of these, the kernel `dropped` some for
    want of room; `written` are in the file."""

    point: Point
    received: int = 0
    dropped: int = 0
    written: int = 0


@dataclass
class Summary:
    """`reason` says why the capture ended; `notes` says what went wrong without ending it."""

    counted: list[Counted]
    seconds: float = 0.0
    size: int = 0
    reason: str = ""
    notes: list[str] = field(default_factory=list)


class _FullError(Exception):
    """The file has reached its size limit."""


def capture(
    sandbox: Sandbox,
    points: Sequence[Point],
    program: Sequence[Instruction],
    expression: str,
    write: Callable[[bytes], object],
    *,
    seconds: float = DEFAULT_SECONDS,
    most_bytes: int = DEFAULT_BYTES,
    needs_guest: bool = False,
    begun: Callable[[], object] = lambda: None,
) -> Summary:
    """Capture until `seconds` have passed, the file would have more than `most_bytes`, a signal
    (INT, TERM, HUP) comes, or no point is left to listen at. The file is complete in each case.

    `write` must write all bytes that it gets. `begun` is called when every point listens. Call this
    from the main thread. Raises NetworkError; AgentError and SandboxStateError if the guest can't
    be listened to and the capture `needs_guest` or has no other point; and what `write` raises.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.caught(_SIGNALS))
        needs_guest = needs_guest or all(point.at == GUEST for point in points)
        capturing = _Capturing(sandbox, points, program, stack, needs_guest)
        capturing.begin(pcapng.Writer(write), expression, most_bytes)
        begun()
        try:
            capturing.listen(stop, seconds)
        except _FullError:
            capturing.summary.reason = f"the file has {most_bytes} bytes"
        capturing.end()
        return capturing.summary


class _Capturing:
    def __init__(
        self,
        sandbox: Sandbox,
        points: Sequence[Point],
        program: Sequence[Instruction],
        stack: contextlib.ExitStack,
        needs_guest: bool,
    ) -> None:
        notes: list[str] = []
        nics = [(point.nic, point.mac) for point in points if point.at == GUEST]
        self._guest: GuestListener | None = None
        if nics:
            try:
                self._guest = stack.enter_context(GuestListener(sandbox, nics, program))
            except (AgentError, SandboxStateError) as error:
                if needs_guest:
                    raise
                notes.append(f"nothing is seen in the guest: {error}")
        self._sandbox = sandbox
        # The guest's points come first, in the order of its NICs, so a NIC has the same number in
        # the guest and here.
        in_order = sorted(points, key=lambda point: point.at != GUEST)
        if not self._guest:
            in_order = in_order[len(nics) :]
        self.summary = Summary([Counted(point) for point in in_order], notes=notes)
        self._listeners: dict[int, Listener] = {}
        for number, point in enumerate(in_order):
            if point.at != GUEST:
                self._listeners[number] = listener = _opened(point, program)
                stack.callback(listener.close)
        self._waiting: list[tuple[int, int, Seen]] = []
        self._held = 0
        self._order = itertools.count()

    def begin(self, writer: pcapng.Writer, expression: str, most_bytes: int) -> None:
        self._writer = writer
        self._began = time.time_ns()
        points = [counted.point for counted in self.summary.counted]
        comment = f"sandbox {self._sandbox.id}: " + _way(points)
        if self._guest:
            comment += (
                f"; the guest's clock is set to the host's, to {self._guest.clock.error / 1e6:.1f} "
                "ms"
            )
        interfaces = [pcapng.Interface(one.name, one.description, one.mac) for one in points]
        writer.begin(f"Tapwright {__version__}", comment, interfaces, expression)
        self._most = most_bytes - pcapng.STATISTICS_BYTES * len(points)

    def listen(self, stop: int, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(stop, selectors.EVENT_READ)
            if self._guest:
                selector.register(self._guest, selectors.EVENT_READ)
            for number, listener in self._listeners.items():
                selector.register(listener, selectors.EVENT_READ, number)
            end = time.monotonic() + seconds
            ask = time.monotonic() + _ASK_SECONDS
            self._take_guest(selector)
            while True:
                now = time.monotonic()
                if now >= end:
                    self.summary.reason = f"{seconds:g} s have passed"
                    return
                if not (self._guest or self._listeners):
                    self.summary.reason = "the guest is not there any more"
                    return
                if self._guest and now >= ask:
                    self._guest.ask_time()
                    ask = now + _ASK_SECONDS
                pause = _HOLD_NANOSECONDS / 1e9 if self._waiting else _ASK_SECONDS
                for key, _ in selector.select(min(pause, end - now)):
                    if key.fd == stop:
                        self.summary.reason = "a signal came"
                        return
                    if key.fileobj is self._guest:
                        self._take_guest(selector)
                    else:
                        self._take(key.data)
                self._write_until(time.time_ns() - _HOLD_NANOSECONDS)

    def end(self) -> None:
        """Write the packets that are kept, and the statistics."""
        guest, rest = self._guest, list[Seen]()
        if guest:
            with self._without_guest():
                rest = guest.finish(_GUEST_END_SECONDS)
        with contextlib.suppress(_FullError):
            for number in self._listeners:
                # The reads are bounded, because traffic may go on.
                for _ in range(_MOST_READS):
                    if not self._take(number):
                        break
            for seen in rest:
                self._add(seen)
            self._write_until(None)
        now = time.time_ns()
        summary = self.summary
        summary.seconds = (now - self._began) / 1e9
        for number, counted in enumerate(summary.counted):
            listener = self._listeners.get(number)
            if listener:
                counted.received, counted.dropped = listener.statistics()
                if listener.has_been_down:
                    summary.notes.append(f"{counted.point.name} was down, or has gone")
            elif guest:
                counted.received, counted.dropped = guest.counts[number]
            moments = self._began, now
            self._writer.statistics(
                number, moments, counted.received, counted.dropped, counted.written
            )
        summary.size = self._writer.size

    def _take(self, number: int) -> bool:
        packets = self._listeners[number].read()
        for moment, where, length, data in packets:
            self._add(Seen(number, moment, where, length, data))
        return bool(packets)

    def _take_guest(self, selector: selectors.BaseSelector) -> None:
        if not self._guest:
            return
        with self._without_guest(selector):
            for seen in self._guest.read():
                self._add(seen)

    @contextlib.contextmanager
    def _without_guest(self, selector: selectors.BaseSelector | None = None) -> Iterator[None]:
        """An error of the guest ends only the guest's part."""
        try:
            yield
        except (AgentError, SandboxStateError) as error:
            self.summary.notes.append(f"the guest was not listened to until the end: {error}")
            if selector and self._guest:
                selector.unregister(self._guest)
                self._guest = None

    def _add(self, seen: Seen) -> None:
        # A guest could claim a time of the next century; its packets wait no longer than others.
        key = min(seen.moment, time.time_ns())
        heapq.heappush(self._waiting, (key, next(self._order), seen))
        self._held += len(seen.data)
        while self._held > _MOST_HELD:
            self._write_first()

    def _write_until(self, moment: int | None) -> None:
        while self._waiting and (moment is None or self._waiting[0][0] <= moment):
            self._write_first()

    def _write_first(self) -> None:
        _, _, seen = self._waiting[0]
        if self._writer.size + pcapng.size_of(seen.data) > self._most:
            raise _FullError
        heapq.heappop(self._waiting)
        self._held -= len(seen.data)
        self._writer.packet(seen.number, seen.moment, seen.where, seen.length, seen.data)
        self.summary.counted[seen.number].written += 1


def _opened(point: Point, program: Sequence[Instruction]) -> Listener:
    try:
        with netns.entered(point.netns):
            return Listener(point.device, program, _ROOM)
    except OSError as error:
        raise NetworkError(f"{point.name} can't be listened at: {error.strerror}") from None


def _way(points: Sequence[Point]) -> str:
    """Return the points of each NIC, in the order of a frame that leaves the guest."""
    nics: dict[str, list[str]] = {}
    for point in points:
        nics.setdefault(point.nic, []).append(point.name)
    return "; ".join(" - ".join(names) for names in nics.values())
