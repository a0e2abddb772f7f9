"""TAP devices: makes them, takes existing ones over, and gives these back
(Documentation/networking/tuntap.rst and drivers/net/tun.c in the kernel's sources)."""

import fcntl
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.files import closing
from tapwright.linux.links import Link
from tapwright.linux.netlink import u32

LARGEST_MTU = 65521
"""The largest MTU of a TAP: 65,535 bytes with the Ethernet header (drivers/net/tun.c)."""
LONGEST_QUEUE = 1 << 19
"""The longest queue of a TAP, in frames: the kernel allocates an array of pointers to frames, of at
most 4 MiB (include/linux/ptr_ring.h, KMALLOC_MAX_SIZE)."""
KIND = "tun"
"""The kind of both TUN and TAP devices in rtnetlink."""

TUNSETIFF, TUNSETPERSIST, TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
TUNSETIFINDEX = 0x400454DA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000
IFF_MULTI_QUEUE = 0x0100
IFLA_TUN_TYPE, IFLA_TUN_PI, IFLA_TUN_VNET_HDR, IFLA_TUN_PERSIST, IFLA_TUN_MULTI_QUEUE = range(3, 8)
IFLA_TUN_NUM_QUEUES, IFLA_TUN_NUM_DISABLED_QUEUES = 8, 9

MOST_QUEUES = 256
"""The most queues of one device (drivers/net/tun.c: MAX_TAP_QUEUES)."""

_DEVICE = "/dev/net/tun"


class Tap(NamedTuple):
    """The flags of a TAP, and how many of its queues are in use."""

    packet_info: bool
    vnet_hdr: bool
    persistent: bool
    multi_queue: bool
    taken: int = 0

    @property
    def flags(self) -> int:
        return (
            IFF_TAP
            | (0 if self.packet_info else IFF_NO_PI)
            | (IFF_VNET_HDR if self.vnet_hdr else 0)
            | (IFF_MULTI_QUEUE if self.multi_queue else 0)
        )


def settings(link: Link) -> Tap | None:
    """Return the settings of a TAP; None if the interface is no TAP."""
    found = netlink.attributes(link.info)

    def flag(kind: int) -> bool:
        return found.get(kind, b"\0") != b"\0"

    if link.kind != KIND or found.get(IFLA_TUN_TYPE) != bytes([IFF_TAP]):
        return None
    return Tap(
        packet_info=flag(IFLA_TUN_PI),
        vnet_hdr=flag(IFLA_TUN_VNET_HDR),
        persistent=flag(IFLA_TUN_PERSIST),
        multi_queue=flag(IFLA_TUN_MULTI_QUEUE),
        taken=u32(found, IFLA_TUN_NUM_QUEUES) + u32(found, IFLA_TUN_NUM_DISABLED_QUEUES),
    )


def is_held(link: Link) -> bool:
    """Return whether a process holds a TAP. The kernel counts the queues of a TAP that may have
    several; one that is not persistent lives as long as it is held; and the carrier of another is
    its holder's."""
    tap = settings(link)
    return tap is not None and (tap.taken > 0 or not tap.persistent or link.has_carrier)


def create(name: str, index: int = 0) -> int:
    """Make a TAP in the calling thread's namespace and return its descriptor. The TAP gets this
    index, or with 0 the kernel's next one.

    The device lives as long as the descriptor. Frames have a virtio-net header, so that checksum
    and segmentation offload pass between guest and kernel. Raises OSError (EBUSY: the name is
    taken).
    """
    return _open(name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL, index)


def keep(fd: int) -> None:
    """Make the TAP of a descriptor persistent, so it stays when the descriptor is closed. Raises
    OSError."""
    fcntl.ioctl(fd, TUNSETPERSIST, 1)


def attach(name: str, tap: Tap, queues: int) -> list[int]:
    """Attach to queues of an existing TAP in the calling thread's namespace; return a descriptor
    for each. The TAP keeps its settings, but for packet information, which virtual machines can't
    use. Raises OSError (EBUSY: another process has a queue, E2BIG: it has no more)."""
    return several(queues, lambda: _open(name, tap.flags | IFF_NO_PI))


def several(count: int, open_one: Callable[[], int]) -> list[int]:
    """Open `count` descriptors, or, if one fails, none."""
    fds: list[int] = []
    try:
        for _ in range(count):
            fds.append(open_one())
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def reset(name: str, tap: Tap) -> None:
    """Give a TAP, all of whose queues are free, its settings back, with offloads off as in a new
    TAP."""
    with closing(_open(name, tap.flags)) as fd:
        fcntl.ioctl(fd, TUNSETOFFLOAD, 0)


def _open(name: str, flags: int, index: int = 0) -> int:
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if index:
            fcntl.ioctl(fd, TUNSETIFINDEX, struct.pack("I", index))
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return fd


def holders(name: str) -> list[int]:
    """Return the processes that hold a TAP of this name, in any namespace (fdinfo of proc(5))."""
    line = f"iff:\t{name}\n"
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _has(pid, line)]


def _has(pid: int, line: str) -> bool:
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False  # the process has ended, or this process may not look at it
    return any(_is_tap(pid, fd, line) for fd in fds)


def _is_tap(pid: int, fd: str, line: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/fd/{fd}") != _DEVICE:
            return False
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            return line in file.readlines()
    except OSError:
        return False  # it was just closed
