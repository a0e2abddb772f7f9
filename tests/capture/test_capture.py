"""`sandbox capture` of a real guest, read by a reader of our own, and by tshark where it is."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tapwright.capture import filters, listening
from tapwright.capture.listening import Listener
from tapwright.errors import UsageError
from tapwright.linux import netns
from tests.capture import reading
from tests.capture.reading import Packet, Section
from tests.host import eventually
from tests.sandboxes import Tapwright

VM = "captured"
ECHO_REQUEST, ECHO_REPLY = 8, 0
ETHERNET, ICMP = 14, 34  # where what is in a frame begins
IN, OUT = 1, 2


@pytest.fixture(scope="module")
def address(tapwright: Tapwright) -> Iterator[str]:
    """Of a guest on a CNI network, with a second NIC on a TAP in another bridge."""
    found = tapwright.json(
        *("sandbox", "run", VM, "--network", "dual", "--tap", "twcap0,bridge=br-small,name=eth1")
    )
    (text,) = [one for one in found["interfaces"][0]["addresses"] if "." in one]
    yield text.partition("/")[0]
    tapwright.delete(VM)


@contextmanager
def capturing(tapwright: Tapwright, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, when it listens."""
    command = tapwright.command("sandbox", "capture", VM, *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        try:
            assert started.stderr
            first = started.stderr.readline().decode()
            assert first.startswith("listening at "), first
            yield started
        finally:
            started.kill()


def ping(address: str, count: int = 2) -> None:
    subprocess.run(
        ["ping", "-q", "-i", "0.01", "-c", str(count), "-W", "20", address],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def echoes(packets: list[Packet], kind: int) -> list[bytes]:
    """What is in them after the addresses: the same at each point."""
    return [one.data[ETHERNET:] for one in packets if one.data[ICMP] == kind]


def test_one_packet_is_seen_at_each_point(
    tapwright: Tapwright, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.pcapng"
    with capturing(tapwright, "-w", str(file), "icmp") as started:
        ping(address)
        # Also while it goes on the packets come out: those that are older than a moment.
        assert eventually(lambda: file.stat().st_size > 2000)
        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=60)
    assert started.returncode == 0, told
    assert file.stat().st_mode & 0o077 == 0
    found = reading.read(file.read_bytes())
    # The way of eth0, then of eth1, a TAP in a bridge.
    places = [name.partition(":")[0] for name in found.names]
    assert sorted(places) == ["guest", "guest", "host", "host", "interface", "tap", "tap"]
    assert {"guest:eth0", "guest:eth1", "interface:eth0", "tap:twcap0", "host:br-small"} <= {
        *found.names
    }
    assert f"sandbox {VM}: guest:eth0 - " in found.comment
    assert "guest's clock" in found.comment
    inside = places.index("tap")
    (veth,) = [name for name in found.names if name.startswith("host:veth")]
    way = ["guest:eth0", found.names[inside], "interface:eth0", veth]
    requests = echoes(found.at("guest:eth0"), ECHO_REQUEST)
    assert len(requests) == 2
    for name, towards_guest in zip(way, (IN, OUT, IN, OUT), strict=True):
        packets = found.at(name)
        assert echoes(packets, ECHO_REQUEST) == requests
        assert len(echoes(packets, ECHO_REPLY)) == 2
        for packet in packets:
            is_request = packet.data[ICMP] == ECHO_REQUEST
            assert packet.flags & 3 == (towards_guest if is_request else towards_guest ^ 3)
        assert found.counts(name) == (4, 0, 4)
    assert f"{veth}" in told.decode()
    # The guest's times are those of this host, within what can be known.
    assert abs(found.at("guest:eth0")[0].nanoseconds - found.at(veth)[0].nanoseconds) < 10**9
    check_by_tshark(file, found)


def check_by_tshark(file: Path, found: Section) -> None:
    """Wireshark's own reader finds the same; where it is installed (package tshark)."""
    if not shutil.which("tshark"):
        print("tshark is not installed: the file was read by the test's own reader alone")
        return
    fields = ["-T", "fields", "-e", "frame.interface_name", "-e", "frame.packet_flags_direction"]
    done = subprocess.run(
        ["tshark", "-r", str(file), *fields], check=True, capture_output=True, text=True
    )
    lines = [line.partition("\t") for line in done.stdout.splitlines()]
    assert [(name, int(flags, 16)) for name, _, flags in lines] == [
        (found.names[one.interface], one.flags & 3) for one in found.packets
    ]


@pytest.mark.smoke
def test_some_points_into_a_pipe(tapwright: Tapwright, address: str) -> None:
    words = ("--at", "tap", "icmp", "--at", "guest", "--nic", "eth0", "-w", "-")
    with capturing(tapwright, *words) as started:
        ping(address, 1)
        started.send_signal(signal.SIGTERM)
        out, told = started.communicate(timeout=60)
    found = reading.read(out)
    assert [name.partition(":")[0] for name in found.names] == ["guest", "tap"]
    assert [len(found.at(name)) for name in found.names] == [2, 2], told


def test_it_ends_by_itself_at_its_bounds(
    tapwright: Tapwright, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "small.pcapng"
    with capturing(tapwright, "-w", str(file), "--bytes", "16K", "--at", "host", "icmp") as started:
        while started.poll() is None:
            ping(address, 50)
        assert started.stderr
        assert "ended because the file has 16384 bytes" in started.stderr.read().decode()
    assert 16384 - 300 < file.stat().st_size <= 16384
    found = reading.read(file.read_bytes())
    assert sum(found.counts(name)[2] for name in found.names) == len(found.packets)
    # By its time, with nothing seen at all.
    words = ("-w", str(file), "--seconds", "0.2", "--at", "interface", "udp port 9")
    done = tapwright.run("sandbox", "capture", VM, *words)
    assert "ended because 0.2 s have passed" in done.stderr
    assert reading.read(file.read_bytes()).packets == []


def test_what_is_wrong_is_said_before_anything_begins(
    tapwright: Tapwright, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "never"
    for words, said in (
        (("tcp prot 80",), "syntax error"),
        (("--nic", "eth7"), "no NIC 'eth7'; there are: eth0, eth1"),
        (("--nic", "eth1", "--at", "interface"), "there are: guest, tap, host"),
    ):
        done = tapwright.run("sandbox", "capture", VM, "-w", str(file), *words)
        assert done.returncode == 2
        assert said in done.stderr
    assert not file.exists()
    (tmp_path / f"{VM}.pcapng").write_text("somebody's")
    done = tapwright.run("sandbox", "capture", VM, cwd=tmp_path)
    assert (done.returncode, "already" in done.stderr) == (2, True)


def test_filters() -> None:
    program = filters.compiled("icmp or tcp port 80")
    assert program[0] == (0x28, 0, 0, 12)  # ldh [12]: the frame's type
    with pytest.raises(UsageError, match="syntax error"):
        filters.compiled("tcp prot 80")


def test_a_listener_counts_what_it_drops_and_puts_tags_back(scratch_netns: str) -> None:
    name = scratch_netns.rpartition("/")[2]
    inside = ["ip", "-n", name]
    pair = [*inside, "link", "add", "one", "type", "veth", "peer", "name", "two"]
    subprocess.run(pair, check=True)
    for end in ("one", "two"):
        subprocess.run([*inside, "link", "set", end, "up"], check=True)
    frame = bytes.fromhex("ffffffffffff020000000001")
    other = filters.compiled("ether proto 0x88b5")
    with netns.entered(scratch_netns):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sender.bind(("one", 0))
        listener = Listener("two", other, 4096)
        tagged = Listener("two", [], 1 << 20)
    with closing(sender), closing(listener), closing(tagged):
        for _ in range(200):
            sender.send(frame + bytes.fromhex("88b5") + bytes(1000))
        sender.send(frame + bytes.fromhex("0800") + bytes(46))
        # What is sent arrives in the kernel's own time.
        assert eventually(lambda: listener.statistics()[0] == 200)
        received, dropped = listener.statistics()
        read = listener.read(1000)
        assert (received, len(read) + dropped) == (200, 200)
        assert dropped > 0
        assert {one[1] for one in read} == {listening.BROADCAST}
        assert {one[2] for one in read} == {1014}
        sender.send(frame + bytes.fromhex("8100200588b6") + b"inside" + bytes(40))
        found: list[bytes] = []

        def is_there() -> bool:
            found.extend(one[3] for one in tagged.read(1000))
            return any(data[12:24] == bytes.fromhex("8100200588b6") + b"inside" for data in found)

        assert eventually(is_there)
