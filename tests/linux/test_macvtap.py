"""A macvtap's queues, opened without /dev, with real frames in both directions."""

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.linux import links, macvtap, netns, tuntap
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink, pack_mac
from tests.host import open_files
from tests.linux.conftest import veth_pair

FRAME_TYPE = 0x88B5  # IEEE 802: for experiments
VNET_HEADER = bytes(10)  # struct virtio_net_hdr
TUNGETIFF = 0x800454D2


def frame(target: str, source: str, payload: bytes) -> bytes:
    return pack_mac(target) + pack_mac(source) + struct.pack("!H", FRAME_TYPE) + payload * 10


def raw_socket(netns_path: str, name: str) -> socket.socket:
    with netns.entered(netns_path):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(FRAME_TYPE))
    raw.bind((name, FRAME_TYPE))
    raw.settimeout(60)
    return raw


def received(fd: int) -> bytes:
    """The next of our frames, and its header; others (IPv6 makes some) are passed over."""
    while select.select([fd], [], [], 60)[0]:
        data = os.read(fd, 65536)
        if data[22:24] == struct.pack("!H", FRAME_TYPE):
            return data
    raise AssertionError("no frame came")


@pytest.fixture
def tap(nl: Netlink, veth: Link) -> Link:
    """A macvtap to itself on the end of a veth pair, up."""
    links.add_macvtap(nl, "mt0", veth.index, "passthru")
    made = links.find(nl, "mt0")
    assert made is not None
    links.set_up(nl, made.index)
    return made


@pytest.fixture
def other_netns(scratch_netns: str) -> Iterator[str]:
    path = f"{scratch_netns}-other"
    netns.create(path)
    yield path
    netns.remove(path)


def test_frames_both_ways(nl: Netlink, scratch_netns: str, veth: Link, tap: Link) -> None:
    peer = links.find(nl, "b0")
    assert peer is not None
    with netns.entered(scratch_netns):
        (fd,) = macvtap.open_queues("mt0", 1)
    with raw_socket(scratch_netns, "b0") as raw:
        there = frame(veth.mac, peer.mac, b"there")
        raw.send(there)
        assert received(fd) == VNET_HEADER + there
        back = frame(peer.mac, veth.mac, b"back")
        os.write(fd, VNET_HEADER + back)
        assert raw.recv(65536) == back
    os.close(fd)
    assert links.find(nl, "mt0") is not None


def test_each_descriptor_is_a_queue(scratch_netns: str, tap: Link) -> None:
    with netns.entered(scratch_netns):
        fds = macvtap.open_queues("mt0", 4)
    for fd in fds:
        request = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
        name, flags = struct.unpack("16sH22x", request)
        assert name.rstrip(b"\0") == b"mt0"
        assert flags == tuntap.IFF_TAP | tuntap.IFF_NO_PI | tuntap.IFF_VNET_HDR
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_same_index_in_another_namespace(
    nl: Netlink, scratch_netns: str, other_netns: str, tap: Link
) -> None:
    """/dev/tapN would be the other one's."""
    with netns.entered(other_netns):
        there = Netlink()
    with there:
        parent = veth_pair(there, "x0", "y0")
        links.add_macvtap(there, "mt1", parent.index, "passthru")
        second = links.named(there, "mt1")
        assert second.index == tap.index
        with netns.entered(other_netns):
            (fd,) = macvtap.open_queues("mt1", 1)
            with pytest.raises(FileNotFoundError):
                macvtap.open_queues("mt0", 1)
    name, _ = struct.unpack("16sH22x", fcntl.ioctl(fd, TUNGETIFF, bytes(40)))
    assert name.rstrip(b"\0") == b"mt1"
    os.close(fd)


def test_nothing_is_mounted_or_left_open(scratch_netns: str, tap: Link) -> None:
    mounts, fds = Path("/proc/self/mountinfo").read_text(), open_files()
    with netns.entered(scratch_netns):
        for fd in macvtap.open_queues("mt0", 2):
            os.close(fd)
        with pytest.raises(FileNotFoundError):
            macvtap.open_queues("a0", 1)
        with pytest.raises(OSError, match="busy") as raised:
            macvtap.open_queues("mt0", 257)
        assert raised.value.errno == errno.EBUSY
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert open_files() == fds
