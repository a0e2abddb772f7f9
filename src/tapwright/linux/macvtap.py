"""The character device of a macvtap, and the mode of a macvlan (drivers/net/macvtap.c, tap.c and
macvlan.c in the kernel's sources)."""

import os
import stat

from tapwright.linux import libc, links, netlink
from tapwright.linux.files import closing
from tapwright.linux.links import Link
from tapwright.linux.tuntap import several

KIND = "macvtap"
"""The kind of a macvtap in rtnetlink."""


def mode_of(link: Link) -> str:
    """Return the mode of a macvlan as `links.add_macvtap` takes it; empty for a mode in which a
    macvtap can't be made (`source`)."""
    mode = netlink.u32(netlink.attributes(link.info), links.IFLA_MACVLAN_MODE)
    return next((name for name, value in links.MACVTAP_MODES.items() if value == mode), "")


def open_queues(name: str, count: int) -> list[int]:
    """Open queues of a macvtap in the calling thread's namespace; return a descriptor for each.

    Each opening makes one queue, which ends with its descriptor; the macvtap stays. Frames have a
    virtio-net header, as in all queues of tap.c. Raises OSError (FileNotFoundError: there is no
    macvtap of this name; EBUSY: it has no more queues).
    """
    # Not /dev/tapN: N is the interface's index, and every namespace has its own indexes, so the
    # node may belong to another namespace.
    device = _device_number(name)
    with closing(libc.detached_mount("tmpfs")) as root:
        os.mknod(name, stat.S_IFCHR | 0o600, device, dir_fd=root)
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        return several(count, lambda: os.open(name, flags, dir_fd=root))


def _device_number(name: str) -> int:
    """Return the device number, from sysfs: class/net/NAME/macvtap/tapN/dev."""
    with closing(libc.detached_mount("sysfs")) as root:
        directory = os.open(f"class/net/{name}/macvtap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    with closing(directory):
        (tap,) = os.listdir(directory)
        fd = os.open(f"{tap}/dev", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(fd) as file:
            major, minor = file.read().split(":")
    return os.makedev(int(major), int(minor))
