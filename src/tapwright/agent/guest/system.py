"""Clock, hostname and power of the guest."""

import os
import socket
import time
from typing import Any

from tapwright.linux.netlink import Netlink


def set_clock(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Set the wall clock to `seconds` since the epoch."""
    time.clock_settime(time.CLOCK_REALTIME, float(request["seconds"]))
    return {}


def set_hostname(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    socket.sethostname(str(request["hostname"]))
    return {}


def shutdown(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Write back what is dirty, then power off; there is no answer to come back."""
    os.sync()
    os.execv("/bin/busybox", ["poweroff", "-f"])  # noqa: S606
