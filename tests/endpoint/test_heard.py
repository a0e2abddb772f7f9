"""Frames that the host gets, too, on an interface that `tcfilter` joins with a VM: frames come from
another namespace, and the VM's side is the TAP's descriptor."""

import errno
import json
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tapwright.endpoint.limits import Limits
from tapwright.endpoint.tcfilter import TcFilter
from tapwright.linux import netns, tc
from tapwright.linux.netlink import NetlinkError
from tests.host import eventually
from tests.namespaces import Namespace, namespace

ALL, IPV4, ARP, IPV6, LLDP, EAPOL = 3, 0x0800, 0x0806, 0x86DD, 0x88CC, 0x888E
OURS, THEIRS, OTHER = ("10.89.0.2", "10.89.0.1", "10.89.0.7")
NOBODY = socket.inet_ntoa(bytes(4))
BROADCAST = "ff:ff:ff:ff:ff:ff"
SECONDS = 60.0


@dataclass
class Joined:
    """`near0` in the namespace `near` has a TAP beside it, which is read from `vm`; `wire` is the
    other end."""

    near: Namespace
    far: Namespace
    vm: int
    wire: socket.socket

    def send(self, frame: bytes) -> None:
        self.wire.send(frame)

    def arrived(self) -> bytes:
        """The next frame of our making that the VM gets."""
        while True:
            assert select.select([self.vm], [], [], SECONDS)[0], "the VM got nothing"
            frame = os.read(self.vm, 65536)[10:]  # behind the virtio-net header
            if MARK in frame:
                return frame

    def listening(self, protocol: int, device: str = "near0") -> socket.socket:
        """A socket of that protocol in the namespace, like a program's there."""
        with netns.entered(self.near.path):
            listening = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
        listening.bind((device, protocol))
        listening.settimeout(SECONDS)
        return listening


@pytest.fixture
def joined() -> Iterator[Joined]:
    with namespace("heard-near") as near, namespace("heard-far") as far:
        near.ip("link add near0 type veth peer name far0 netns heard-far")
        far.ip("link set far0 up")
        near.ip(f"address add {OURS}/24 dev near0")
        near.ip("address add fd89::2/64 dev near0 nodad")
        near.ip("link set near0 up")
        far.ip(f"address add {THEIRS}/24 dev far0")
        assert eventually(lambda: "state UP" in far.ip("link show far0"))
        endpoint = TcFilter(near.path, "near0", near.index("near0"), *Limits())
        endpoint.check()
        tap = endpoint.attach(1, 0)
        with netns.entered(far.path):
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        wire.bind(("far0", 0))
        assert eventually(lambda: f"{endpoint.name}:" in near.ip("link show up"))
        with wire:
            yield Joined(near, far, tap.fds[0], wire)
        for fd in tap.fds:
            os.close(fd)
        endpoint.detach()
        assert "ingress" not in near.tc("qdisc show dev near0")


MARK = b"tapwright's test"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ether(to: str, protocol: int, content: bytes, tags: bytes = b"") -> bytes:
    frame = mac(to) + mac("02:00:00:00:00:01") + tags + struct.pack("!H", protocol) + content
    return frame + MARK + bytes(max(0, 60 - len(frame)))


def udp(port: int) -> bytes:
    return struct.pack("!HHHH", 67, port, 8 + len(MARK), 0)


def ipv4(content: bytes, options: bytes = b"", fragment: int = 0, protocol: int = 17) -> bytes:
    length = 20 + len(options)
    header = struct.pack(
        *("!BBHHHBBH4s4s", 0x40 + length // 4, 0, length + len(content) + len(MARK), 7),
        *(fragment, 64, protocol, 0, socket.inet_aton(THEIRS), socket.inet_aton(OURS)),
    )
    words = struct.unpack(f"!{length // 2}H", header + options)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return header[:10] + struct.pack("!H", checksum) + header[12:] + options + content


def ipv6(content: bytes, following: int) -> bytes:
    addresses = (socket.inet_pton(socket.AF_INET6, text) for text in ("fd89::1", "fd89::2"))
    length = len(content) + len(MARK)
    return struct.pack("!IHBB", 6 << 28, length, following, 255) + b"".join(addresses) + content


def arp(kind: int, sender: str, target: str) -> bytes:
    return struct.pack(
        *("!HHBBH6s4s6s4s", 1, IPV4, 6, 4, kind, mac("02:00:00:00:00:01")),
        *(socket.inet_aton(sender), bytes(6), socket.inet_aton(target)),
    )


def icmp6(kind: int) -> bytes:
    return struct.pack("!BBHI", kind, 0, 0, 0) + bytes(16)


DHCP = ether(BROADCAST, IPV4, ipv4(udp(68)))
TAG = struct.pack("!HH", 0x8100, 5)
HEARD = {
    "dhcp": (IPV4, DHCP),
    "dhcp with IP options": (IPV4, ether(BROADCAST, IPV4, ipv4(udp(68), b"\x94\4\0\0"))),
    "dhcp in a VLAN": (IPV4, ether(BROADCAST, IPV4, ipv4(udp(68)), TAG)),
    "dhcp6": (IPV6, ether(BROADCAST, IPV6, ipv6(udp(546), 17))),
    "arp reply": (ARP, ether(BROADCAST, ARP, arp(2, THEIRS, OURS))),
    "arp announcement": (ARP, ether(BROADCAST, ARP, arp(1, OTHER, OTHER))),
    "neighbour advertisement": (IPV6, ether(BROADCAST, IPV6, ipv6(icmp6(136), 58))),
    "lldp": (LLDP, ether("01:80:c2:00:00:0e", LLDP, bytes(8))),
    "eapol": (EAPOL, ether("01:80:c2:00:00:03", EAPOL, bytes(8))),
}
NOT_HEARD = {
    "udp": (IPV4, ether(BROADCAST, IPV4, ipv4(udp(67)))),
    "tcp to port 68": (IPV4, ether(BROADCAST, IPV4, ipv4(udp(68), protocol=6))),
    "port 68 in IP options' place": (
        *(IPV4, ether(BROADCAST, IPV4, ipv4(udp(67), struct.pack("!HH", 0x9404, 68)))),
    ),
    "first fragment": (IPV4, ether(BROADCAST, IPV4, ipv4(udp(68), fragment=0x2000))),
    "later fragment": (IPV4, ether(BROADCAST, IPV4, ipv4(udp(68), fragment=1))),
    "udp over IPv6": (IPV6, ether(BROADCAST, IPV6, ipv6(udp(547), 17))),
    "behind an extension header": (
        *(IPV6, ether(BROADCAST, IPV6, ipv6(b"\x11\0" + bytes(6) + udp(546), 0))),
    ),
    "arp request": (ARP, ether(BROADCAST, ARP, arp(1, THEIRS, OURS))),
    "arp probe": (ARP, ether(BROADCAST, ARP, arp(1, NOBODY, OURS))),
    "router advertisement": (IPV6, ether(BROADCAST, IPV6, ipv6(icmp6(134), 58))),
    "neighbour solicitation": (IPV6, ether(BROADCAST, IPV6, ipv6(icmp6(135), 58))),
    "mpls": (0x8847, ether(BROADCAST, 0x8847, bytes(8))),
    "cut off": (IPV4, mac(BROADCAST) + mac(BROADCAST) + b"\x08\0\x45" + MARK),
}
LAST = {
    IPV4: DHCP,
    IPV6: HEARD["dhcp6"][1],
    ARP: HEARD["arp reply"][1],
    # No socket of this protocol hears anything, so it is one of another that tells the end.
    0x8847: b"",
}


@pytest.mark.parametrize("kind", HEARD)
def test_what_both_hear(joined: Joined, kind: str) -> None:
    protocol, frame = HEARD[kind]
    with joined.listening(protocol) as listening:
        joined.send(frame)
        got = joined.arrived()
        while MARK not in (heard := listening.recv(2048)):
            pass
    assert got.endswith(heard.rstrip(b"\0") if heard.endswith(MARK) else heard[-20:])
    assert got[:12] == frame[:12]


@pytest.mark.parametrize("kind", NOT_HEARD)
def test_frames_for_the_vm_alone(joined: Joined, kind: str) -> None:
    protocol, frame = NOT_HEARD[kind]
    last = LAST[protocol]
    with joined.listening(protocol) as listening:
        joined.send(frame)
        assert joined.arrived() == frame
        if not last:
            listening.settimeout(0.3)
            with pytest.raises(TimeoutError):
                listening.recv(2048)
            return
        # What is heard for certain comes after it, in the same queue.
        joined.send(last)
        joined.arrived()
        while MARK not in (heard := listening.recv(2048)):
            pass
    assert last.endswith(heard) or heard in last
    assert heard not in frame


def test_a_program_sends_and_is_answered(joined: Joined) -> None:
    """By sockets of UDP, which need the neighbour: so do clients that renew by unicast."""
    with netns.entered(joined.near.path):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with netns.entered(joined.far.path):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client, server:
        client.bind((OURS, 68))
        client.settimeout(SECONDS)
        server.bind((THEIRS, 67))
        server.settimeout(SECONDS)
        client.sendto(b"request", (THEIRS, 67))
        assert server.recv(100) == b"request"
        # The answer to the server's own question would be the VM's.
        near_mac = joined.near.mac("near0")
        joined.far.ip(f"neighbour replace {OURS} lladdr {near_mac} dev far0 nud permanent")
        server.sendto(b"answer", (OURS, 68))
        assert client.recv(100) == b"answer"


@pytest.mark.parametrize("limits", [Limits(), Limits(10**6, 10**6)])
def test_an_interface_without_a_queue_gets_none(limits: Limits) -> None:
    """As CNI's bridge makes them. The guest's NIC would follow it otherwise, a second time."""
    with namespace("queueless") as near:
        near.ip("link add near0 txqueuelen 0 type veth peer name far0")
        assert _length(near) == 0
        endpoint = TcFilter(near.path, "near0", near.index("near0"), *limits)
        tap = endpoint.attach(1, 0)
        try:
            assert "ingress" in near.tc("qdisc show dev near0")
            assert _length(near) == 0
        finally:
            os.close(tap.fds[0])
            endpoint.detach()
        assert _length(near) == 0


def _length(near: Namespace) -> int:
    """iproute2 before 7 leaves a 0 out."""
    (link,) = json.loads(near.ip("-json link show near0"))
    return int(link.get("txqlen", 0))


def test_a_kernel_without_such_filters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The VM is joined all the same. What the kernel says is made up: this one has them."""

    def refuse(*_: object) -> None:
        raise NetlinkError(errno.ENOENT, "share", "TC classifier not found")

    monkeypatch.setattr(tc, "share_ingress", refuse)
    with namespace("heard-near") as near:
        near.ip("link add near0 type veth peer name far0")
        endpoint = TcFilter(near.path, "near0", near.index("near0"), *Limits())
        for fd in endpoint.attach(1, 0).fds:
            os.close(fd)
        assert "the kernel lacks cls_bpf" in caplog.text
        assert "Egress Redirect" in near.tc("filter show dev near0 ingress")
        endpoint.detach()


@pytest.mark.parametrize("first", ["near0", "mv0"])
def test_a_macvlan_on_it_has_a_vm_s_nic_too(first: str) -> None:
    """Both are joined, whichever comes first; each gets what is for it, and what is for all."""
    with namespace("heard-near") as near, namespace("heard-far") as far:
        near.ip("link add near0 type veth peer name far0 netns heard-far")
        near.ip("link add mv0 link near0 type macvlan mode bridge")
        for place, name in ((far, "far0"), (near, "near0"), (near, "mv0")):
            place.ip(f"link set {name} up")
        assert eventually(lambda: "state UP" in near.ip("link show mv0"))
        with netns.entered(far.path):
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        wire.bind(("far0", 0))
        taps = {}
        for name in sorted(("near0", "mv0"), key=lambda name: name != first):
            endpoint = TcFilter(near.path, name, near.index(name), *Limits())
            endpoint.check()
            (fd,) = endpoint.attach(1, 0).fds
            taps[name] = Joined(near, far, fd, wire)
        with wire:
            for name in ("near0", "mv0"):
                joined = taps[name]
                mine = ether(near.mac(name), 0x88B5, name.encode())
                joined.send(mine)
                assert joined.arrived() == mine
            to_all = ether(BROADCAST, 0x88B5, b"all")
            wire.send(to_all)
            # What was for the other one came to the interface below, whose VM passes it over.
            assert taps["mv0"].arrived() == to_all
            while taps["near0"].arrived() != to_all:
                pass
        for joined in taps.values():
            os.close(joined.vm)


def test_the_namespace_does_not_answer_for_the_vm(joined: Joined) -> None:
    """Whatever else asks for neighbours: the VM alone answers, from the TAP."""
    with netns.entered(joined.far.path):
        hearing = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ARP))
    hearing.bind(("far0", ARP))
    hearing.settimeout(SECONDS)
    with hearing:
        joined.send(NOT_HEARD["arp request"][1])
        assert joined.arrived() == NOT_HEARD["arp request"][1]
        answer = ether(BROADCAST, ARP, arp(2, OURS, THEIRS))
        os.write(joined.vm, bytes(10) + answer)
        assert MARK in hearing.recv(2048)
