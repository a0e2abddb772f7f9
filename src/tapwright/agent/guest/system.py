"""Random numbers, clock and names of the guest."""

import contextlib
import fcntl
import os
import socket
import struct
import time
from typing import Any

from tapwright.linux.files import closing
from tapwright.linux.netlink import Netlink

# include/uapi/linux/random.h
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
_MACHINE_ID = "/etc/machine-id"
_AHEAD_BYTES = 64  # what virtio-rng may have fetched ahead (drivers/char/hw_random/virtio-rng.c)


def reseed(entropy: bytes) -> None:
    """Make the kernel draw all further random numbers from a new seed, which includes this entropy.
    Raises OSError.

    A guest that was started from a template has the same seed as all others. This function also
    uses up what the device had fetched ahead, for programs that read the device directly.
    """
    with contextlib.suppress(OSError), open("/dev/hwrng", "rb", buffering=0) as device:
        entropy += device.read(_AHEAD_BYTES)
    with closing(os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)) as fd:
        header = struct.pack("=ii", 8 * len(entropy), len(entropy))
        fcntl.ioctl(fd, RNDADDENTROPY, header + entropy)
        fcntl.ioctl(fd, RNDRESEEDCRNG)


def set_clock(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Set the wall clock to `seconds` since the epoch."""
    time.clock_settime(time.CLOCK_REALTIME, float(request["seconds"]))
    return {}


def tell_time(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Return the wall clock: `seconds` since the epoch."""
    return {"seconds": time.time()}


def set_hostname(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    socket.sethostname(str(request["hostname"]))
    return {}


def set_machine_id(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Write the identifier of this guest (machine-id(5))."""
    with open(_MACHINE_ID, "w") as file:
        file.write(f"{request['machine_id']}\n")
    return {}
