"""The file that is written, the clock of a guest, and what a hostile one sends."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapwright.capture import filters, in_guest, listening, pcapng
from tapwright.capture.in_guest import Clock, GuestListener
from tapwright.cli import groups
from tapwright.errors import AgentError, TapwrightError, UsageError
from tapwright.state.registry import Sandbox
from tests.capture import reading

pytestmark = pytest.mark.unit

SANDBOX = Sandbox("vm", "running", Path("/"), None)
NICS = [("eth0", "02:00:00:00:00:01")]


def test_what_is_written_is_what_can_be_read() -> None:
    written = bytearray()
    writer = pcapng.Writer(written.extend)
    interfaces = [
        pcapng.Interface("guest:eth0", "NIC", "02:00:00:00:00:01"),
        pcapng.Interface("tap:t", "TAP, ä"),
    ]
    writer.begin("Tapwright", "sandbox vm: guest:eth0 - tap:t", interfaces, "icmp")
    moment = 1_700_000_000_123_456_789
    before = writer.size
    writer.packet(1, moment, listening.OUTGOING, 1500, b"abcde")
    assert writer.size - before == pcapng.size_of(b"abcde")
    writer.packet(0, moment + 1, listening.BROADCAST, 4, b"abcd")
    writer.packet(0, -5, 200, 0, b"")
    before = writer.size
    writer.statistics(0, (moment, moment + 9), 7, 2, 5)
    assert writer.size - before == pcapng.STATISTICS_BYTES
    assert writer.size == len(written)

    found = reading.read(bytes(written))
    assert found.comment == "sandbox vm: guest:eth0 - tap:t"
    assert found.names == ["guest:eth0", "tap:t"]
    assert found.interfaces[0][6] == bytes.fromhex("020000000001")
    assert found.interfaces[1][3] == "TAP, ä".encode()
    assert found.interfaces[1][11] == b"\0icmp"
    one, two, odd = found.packets
    assert one == reading.Packet(1, moment, 1500, b"abcde", 2)
    assert two == reading.Packet(0, moment + 1, 4, b"abcd", 1 | 3 << 2)
    assert (odd.nanoseconds, odd.flags) == (0, 0)
    assert found.counts("guest:eth0") == (7, 2, 5)


def test_the_clock_goes_by_the_answer_that_came_soonest() -> None:
    clock = Clock()
    assert (clock.behind, clock.error) == (0, 0)
    for asked, theirs, now in ((1000, 300, 1400), (2000, 1505, 2010), (3000, 0, 9000)):
        clock.asked(asked)
        assert clock.is_waiting
        clock.answered(theirs, now)
    assert (clock.behind, clock.error) == (500, 5)
    clock.answered(77, 9999)  # nobody asked
    assert (clock.behind, clock.error) == (500, 5)


class _Output:
    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def has_some(self) -> bool:
        return bool(self.data)

    def read_waiting(self) -> bytes:
        # In pieces of many sizes.
        size = min(len(self.data), 23)
        data, self.data = self.data[:size], self.data[size:]
        return data


class _Guest:
    """Has sent these bytes, and then says no more; or has ended."""

    def __init__(self, sent: bytes, status: int | None = None, complaint: bytes = b"") -> None:
        self.stdout, self.stderr = _Output(sent), _Output(complaint)
        self.status = status
        self.is_closed = False

    def __call__(self, *words: object, **options: object) -> "_Guest":
        return self

    def write(self, data: bytes) -> None:
        if data == b"?":
            self.stdout.data += record(listening.CLOCK)

    def wait_until(self, is_so: Callable[[], bool], seconds: float) -> bool:
        return is_so()

    def pump(self) -> None:
        pass

    def close_stdin(self) -> None:
        self.status = 0

    def close(self) -> None:
        self.is_closed = True


def record(kind: int, number: int = 0, data: bytes = b"", where: int = 0, length: int = 0) -> bytes:
    return listening.RECORD.pack(kind, where, number, len(data), length, 5) + data


READY = record(listening.READY, data=b'["eth0"]')
COUNTS = record(listening.STATISTICS, data=listening.COUNTS.pack(3, 1))


def test_packets_of_a_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    packet = record(listening.PACKET, 0, b"frame", listening.OUTGOING, 2)
    guest = _Guest(READY + packet + COUNTS)
    monkeypatch.setattr(in_guest, "Process", guest)
    with GuestListener(SANDBOX, NICS, []) as listener:
        found = listener.read() + listener.read() + listener.finish(9)
        while guest.stdout.has_some:
            found += listener.read()
    (seen,) = found
    # A length that is less than what came is none.
    assert (seen.number, seen.where, seen.length, seen.data) == (0, listening.OUTGOING, 5, b"frame")
    assert listener.counts == [(3, 1)]
    assert guest.is_closed


@pytest.mark.parametrize(
    "sent",
    [
        record(99),
        record(listening.PACKET, 1),
        listening.RECORD.pack(listening.PACKET, 0, 0, listening.MOST_BYTES + 5, 0, 0),
        listening.RECORD.pack(listening.READY, 0, 0, 2**31, 0, 0),
        record(listening.STATISTICS, data=b"short"),
    ],
    ids=["unknown", "of another NIC", "too long", "endless", "short"],
)
def test_what_makes_no_sense_ends_it(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    guest = _Guest(sent)
    monkeypatch.setattr(in_guest, "Process", guest)
    with pytest.raises(AgentError, match="makes no sense"):
        GuestListener(SANDBOX, NICS, [])
    assert guest.is_closed


def test_a_guest_that_only_sends_packets_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And fills no memory meanwhile."""
    monkeypatch.setattr(in_guest, "_MOST_EARLY_BYTES", 1000)
    guest = _Guest(record(listening.PACKET, 0, bytes(100)) * 20)
    monkeypatch.setattr(in_guest, "Process", guest)
    with pytest.raises(AgentError, match="packets, and no answer"):
        GuestListener(SANDBOX, NICS, [])
    assert guest.stdout.has_some
    assert guest.is_closed


def test_a_guest_that_can_not_do_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = _Guest(b"", 1, b"the guest has no NIC\x1b[2J")
    monkeypatch.setattr(in_guest, "Process", guest)
    with pytest.raises(AgentError, match=r"ended with 1: the guest has no NIC"):
        GuestListener(SANDBOX, NICS, [])


def test_the_program_for_the_guest_needs_nothing_of_ours() -> None:
    source = Path(listening.__file__).read_text()
    assert "tapwright" not in [line.split()[1].split(".")[0] for line in _imports(source)]
    assert len(source) < 32 * 1024  # it travels with each request


def _imports(source: str) -> list[str]:
    lines = map(str.strip, source.splitlines())
    return [line for line in lines if line.startswith(("import ", "from "))]


def test_filters_without_libpcap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_LIBRARIES", ("libnothing.so.7",))
    assert filters.compiled(" ") == []
    with pytest.raises(TapwrightError, match="apt-get install libpcap0"):
        filters.compiled("icmp")
    with pytest.raises(UsageError, match="vlan"):
        filters.compiled("ether host 02:00:00:00:00:01 and vlan 5")


@pytest.mark.parametrize(
    "words",
    [
        ["vm", "--at", "tap", "icmp", "or", "arp", "-w", "x", "--bytes", "2M"],
        ["--at", "tap", "--bytes", "2M", "-w", "x", "vm", "icmp or arp"],
        ["vm", "icmp", "or", "--at", "tap", "arp", "--bytes", "2m", "-w", "x"],
    ],
)
def test_options_may_stand_anywhere(words: list[str]) -> None:
    argv = ["sandbox", "capture", *words]
    found: Any = groups.parser(argv, "tapwright").parse_args(argv)
    assert (found.id, " ".join(found.filter)) == ("vm", "icmp or arp")
    assert (found.at, found.bytes, found.write) == (["tap"], 2 << 20, "x")


@pytest.mark.parametrize("size", ["1", "0", "5T", "M", "-1", "1.5M"])
def test_sizes_that_are_none(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["sandbox", "capture", "vm", f"--bytes={size}"]
    with pytest.raises(SystemExit):
        groups.parser(argv, "tapwright").parse_args(argv)
    assert "--bytes" in capsys.readouterr().err


def test_the_statistics_are_in_the_order_of_the_draft() -> None:
    """The upper half of a time comes first, also in options."""
    written = bytearray()
    writer = pcapng.Writer(written.extend)
    writer.begin("", "", [pcapng.Interface("a", "b")])
    writer.statistics(0, (1 << 32 | 5, 2 << 32 | 6), 0, 0, 0)
    options = reading.read(bytes(written)).statistics[0]
    assert struct.unpack("<II", options[2]) == (1, 5)
    assert struct.unpack("<II", options[3]) == (2, 6)
