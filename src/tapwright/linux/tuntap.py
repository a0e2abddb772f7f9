"""TAP devices (Documentation/networking/tuntap.rst in the kernel's sources)."""

import fcntl
import os
import struct

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000


def create(name: str) -> int:
    """Make a TAP in the calling thread's namespace and return its file descriptor.

    The device lives as long as the descriptor. Frames carry a virtio-net header, so that
    checksum and segmentation offload pass between guest and kernel. Raises OSError (EBUSY:
    the name is taken).
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return fd
