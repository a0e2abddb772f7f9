"""Queues of a NIC, and its place on a bus, as its driver reports them (SIOCETHTOOL,
include/uapi/linux/ethtool.h)."""

import errno
import fcntl
import socket
import struct
from array import array

SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO, ETHTOOL_GCHANNELS, ETHTOOL_SCHANNELS = 0x3, 0x3C, 0x3D

# cmd; then the maximum, and then the present number, of rx, tx, other and combined channels.
_CHANNELS = struct.Struct("=9I")
# cmd, driver, version, firmware; then the place on the bus, and more.
_DRVINFO = struct.Struct("=I96x32s64x")


def set_queues(name: str, count: int) -> None:
    """Make the NIC use `count` queue pairs. Raises OSError (EINVAL: it has fewer)."""
    *head, present = _CHANNELS.unpack(_call(name, _CHANNELS.pack(ETHTOOL_GCHANNELS, *[0] * 8)))
    if present != count:
        _call(name, _CHANNELS.pack(ETHTOOL_SCHANNELS, *head[1:], count))


def bus_address(name: str) -> str:
    """Return the bus address of a physical NIC, such as `0000:00:05.0`; empty for other
    interfaces."""
    try:
        answer = _call(name, _DRVINFO.pack(ETHTOOL_GDRVINFO, b""))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return ""
        raise
    return str(_DRVINFO.unpack(answer)[1].rstrip(b"\0").decode(errors="replace"))


def _call(name: str, command: bytes) -> bytes:
    # The kernel reads the command from this buffer, and writes the answer to it.
    buffer = array("B", command)
    address, _ = buffer.buffer_info()
    request = struct.pack("16sP16x", name.encode(), address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)
    return buffer.tobytes()
