"""Traffic control, seen by tc(8) and by real traffic between two namespaces."""

import errno
import functools
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from tapwright.linux import addresses, links, macvtap, netns, tc
from tapwright.linux.addresses import Address
from tapwright.linux.netlink import Netlink, NetlinkError
from tests.host import eventually

RATE = 40_000_000
SECONDS = 1.0
NEAR, FAR = "10.3.0.1", "10.3.0.2"
UDP_HEADERS = 42


@dataclass
class Pair:
    """A veth pair, `near` in one namespace and `far` in another, with an address each."""

    near: Netlink
    far: Netlink
    near_netns: str
    far_netns: str
    near_index: int
    far_index: int

    def sender(self) -> socket.socket:
        """From near to far."""
        with netns.entered(self.near_netns):
            sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sending.connect((FAR, 5000))
        sending.setblocking(False)
        return sending

    def receiver(self) -> socket.socket:
        with netns.entered(self.far_netns):
            receiving = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiving.bind((FAR, 5000))
        receiving.setblocking(False)
        return receiving


@pytest.fixture
def pair(scratch_netns: str) -> Iterator[Pair]:
    far_netns = f"{scratch_netns}-far"
    netns.create(far_netns)
    with netns.entered(scratch_netns):
        near = Netlink()
    with netns.entered(far_netns):
        far, fd = Netlink(), os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    links.add_veth(near, "near0", "far0", fd)
    os.close(fd)
    indexes = []
    for nl, name, address in ((near, "near0", NEAR), (far, "far0", FAR)):
        link = links.find(nl, name)
        assert link is not None
        links.set_up(nl, link.index)
        addresses.add(nl, link.index, Address(address, 24))
        indexes.append(link.index)
    # Until then all that is sent is dropped (net/core/link_watch.c).
    for nl, index in zip((near, far), indexes, strict=True):
        assert eventually(functools.partial(running, nl, index))
    yield Pair(near, far, scratch_netns, far_netns, *indexes)
    near.close()
    far.close()
    netns.remove(far_netns)


def running(nl: Netlink, index: int) -> bool:
    link = links.at(nl, index)
    return link is not None and link.is_running


def show(path: str, *words: str) -> Any:
    command = ["tc", "-n", os.path.basename(path), "-json", *words]
    return json.loads(subprocess.check_output(command, text=True) or "[]")


def flow(send: Callable[[], Any], receive: Callable[[], int]) -> float:
    """Bits a second that come through when more is sent. `receive` returns bytes, or raises
    BlockingIOError."""
    begin, got = time.monotonic(), 0
    while (now := time.monotonic()) < begin + SECONDS:
        with suppress(BlockingIOError):
            for _ in range(10):
                send()
        with suppress(BlockingIOError):
            while True:
                got += receive()
    return got * 8 / (now - begin)


def udp_flow(pair: Pair) -> float:
    with pair.sender() as sender, pair.receiver() as receiver:
        datagram = bytes(1400)
        return flow(lambda: sender.send(datagram), lambda: len(receiver.recv(65536)) + UDP_HEADERS)


def is_held(measured: Callable[[], float]) -> bool:
    """The kernel shapes, not we: that it has the rate, and in the right unit (not an eighth), is
    what is tested here. Never more comes through, and less while the machine is busy."""
    for _ in range(10):
        rate = measured()
        print(f"{rate:.0f} {rate / RATE:.3f}")
        if rate > RATE * 0.2:
            return rate < RATE * 1.15
    return False


def is_free(measured: Callable[[], float]) -> bool:
    """That nothing holds the rate is seen when the machine has time for it."""
    return eventually(lambda: measured() > RATE * 1.5)


def test_what_is_sent_is_limited(pair: Pair) -> None:
    assert is_free(lambda: udp_flow(pair)), "this machine is too slow for the test"
    tc.limit_egress(pair.near, pair.near_index, RATE)
    assert is_held(lambda: udp_flow(pair))
    tc.remove_root(pair.near, pair.near_index)
    tc.remove_root(pair.near, pair.near_index)
    assert is_free(lambda: udp_flow(pair))


def test_what_is_received_is_limited(pair: Pair) -> None:
    links.add_ifb(pair.far, "ifb7")
    ifb = links.find(pair.far, "ifb7")
    assert ifb is not None
    tc.limit_ingress(pair.far, pair.far_index, ifb.index, RATE)
    assert is_held(lambda: udp_flow(pair))
    assert show(pair.far_netns, "qdisc", "show", "dev", "ifb7")[0]["kind"] == "htb"
    links.remove(pair.far, ifb.index)
    tc.remove_ingress(pair.far, pair.far_index)
    assert is_free(lambda: udp_flow(pair))


def test_what_a_macvtap_receives_is_limited(pair: Pair) -> None:
    """It takes frames off the interface behind the ingress."""
    links.add_macvtap(pair.far, "mt0", pair.far_index, "passthru")
    links.add_ifb(pair.far, "ifb7")
    ifb, tap = links.find(pair.far, "ifb7"), links.find(pair.far, "mt0")
    assert ifb is not None
    assert tap is not None
    links.set_up(pair.far, tap.index)
    with netns.entered(pair.far_netns):
        (fd,) = macvtap.open_queues("mt0", 1)
    with netns.entered(pair.near_netns):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind(("near0", 0x88B5))
    raw.setblocking(False)
    frame = bytes.fromhex(tap.mac.replace(":", "") + "020000000001" + "88b5") + bytes(1400)
    with raw:

        def measured() -> float:
            return flow(lambda: raw.send(frame), lambda: len(os.read(fd, 65536)) - 10)

        assert is_free(measured)
        tc.limit_ingress(pair.far, pair.far_index, ifb.index, RATE)
        assert is_held(measured)
    os.close(fd)


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (8_000, "8Kbit"),
        (40_000_000, "40Mbit"),
        (35_000_000_000, "35Gbit"),  # in bytes more than 32 bits hold
        (100_000_000_000, "100Gbit"),
    ],
)
def test_tc_shows_the_limit(pair: Pair, rate: int, shown: str) -> None:
    tc.limit_egress(pair.near, pair.near_index, rate)
    (qdisc,) = show(pair.near_netns, "qdisc", "show", "dev", "near0")
    assert (qdisc["kind"], qdisc["handle"], qdisc["root"]) == ("htb", "7477:", True)
    assert int(qdisc["options"]["default"], 16) == 1
    # No JSON for the options of htb's classes in iproute2 6.1.
    command = ["tc", "-n", os.path.basename(pair.near_netns), "class", "show", "dev", "near0"]
    classes = subprocess.check_output(command, text=True)
    assert classes.startswith(f"class htb 7477:1 root prio 0 rate {shown} ceil {shown} burst ")


def test_too_low_a_rate(pair: Pair) -> None:
    with pytest.raises(ValueError, match="7999 bits a second is less than 8000"):
        tc.limit_egress(pair.near, pair.near_index, 7_999)
    (qdisc,) = show(pair.near_netns, "qdisc", "show", "dev", "near0")
    assert qdisc["kind"] == "noqueue"


def test_what_is_received_is_dropped(pair: Pair) -> None:
    with pair.sender() as sender, pair.receiver() as receiver:
        receiver.settimeout(60)
        sender.send(b"before")
        assert receiver.recv(100) == b"before"
        tc.drop_ingress(pair.far, pair.far_index)
        (entry,) = [f for f in filters(pair.far_netns, "far0") if "options" in f]
        assert (entry["kind"], entry["protocol"]) == ("bpf", "all")
        assert entry["options"]["direct-action"]
        for _ in range(5):
            sender.send(b"dropped")
        # What is received first afterwards shows that none of them came.
        assert eventually(lambda: dropped(pair.far_netns, "far0") >= 5)
        tc.remove_ingress(pair.far, pair.far_index)
        sender.send(b"after")
        assert receiver.recv(100) == b"after"


def dropped(path: str, device: str) -> int:
    """How many packets, by the ingress."""
    found = show(path, "-statistics", "qdisc", "show", "dev", device, "ingress")
    return sum(qdisc["drops"] for qdisc in found)


def filters(path: str, device: str) -> Any:
    return show(path, "filter", "show", "dev", device, "ingress")


def test_what_is_somebody_elses_stays(pair: Pair) -> None:
    index = pair.near_index
    for words in (["root", "tbf", "rate", "1mbit", "burst", "2000", "limit", "9000"], ["clsact"]):
        command = ["tc", "-n", os.path.basename(pair.near_netns), "qdisc", "add", "dev", "near0"]
        subprocess.run([*command, *words], check=True)
    links.add_ifb(pair.near, "ifb7")
    ifb = links.find(pair.near, "ifb7")
    assert ifb is not None
    before = show(pair.near_netns, "qdisc", "show", "dev", "near0")
    refused: list[Callable[[], None]] = [
        lambda: tc.limit_egress(pair.near, index, RATE),
        lambda: tc.limit_ingress(pair.near, index, ifb.index, RATE),
        lambda: tc.drop_ingress(pair.near, index),
        lambda: tc.add_ingress(pair.near, index),
    ]
    for attempt in refused:
        with pytest.raises(
            NetlinkError, match=r"near0 has .* \(tc qdisc show dev near0\)"
        ) as error:
            attempt()
        assert error.value.errno == errno.EEXIST
    tc.remove_root(pair.near, index)
    assert show(pair.near_netns, "qdisc", "show", "dev", "near0") == before
    assert {qdisc["kind"] for qdisc in before} == {"tbf", "clsact"}
