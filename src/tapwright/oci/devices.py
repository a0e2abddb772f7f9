"""Device nodes of a container: those that the guest's kernel has itself, by their numbers.

A container asks for a device of the host by number. If the kernel's documentation gives that number
to one kind of device on all machines (admin-guide/devices.txt), and the kernel alone provides this
kind, the guest has such a device itself, or loads a module when it is opened. The guest has no
device of hardware, and none whose number depends on the order of drivers.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tapwright.shapes import Json

_MISC = 10
# include/linux/miscdevice.h: hw_random, net/tun, cuse, fuse, loop-control, vhost-net, vhost-vsock,
# rfkill.
_MISC_MINORS = frozenset((183, 200, 203, 229, 237, 238, 241, 242))
# Memory (null, zero, kmsg, …), terminals of the machine, tty and ptmx, screens.
_WHOLE = frozenset((1, 4, 5, 7))
_PPP = 108
_BLOCK = frozenset((7, 43))  # loop, nbd

# The guest's runtime makes these in each container (config-linux.md, "Default Devices").
_MADE_ANYWAY = frozenset(
    f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx")
)
# Where platforms bind a terminal of their own.
_CONSOLE = "/dev/console"
_KEPT = ("path", "type", "major", "minor", "fileMode", "uid", "gid")


def of_guest(
    wanted: "Iterable[Json]", mounts: "Sequence[Json]", can_make: bool = True
) -> "tuple[list[Json], list[Json], list[str]]":
    """(devices to make in the guest, mounts of devices, paths of devices that can't be made).
    `mounts` are the guest's. A node is made in a file system of the guest's own only, because the
    host's would refuse it; at other places the agent mounts one, as `device` of a mount. So it does
    at all places for a container that can't make any, because it has a user namespace."""
    made: list[Json] = []
    mounted: list[Json] = []
    lacking: list[str] = []
    for device in wanted:
        path = os.path.normpath(device["path"])
        if path in _MADE_ANYWAY or path == _CONSOLE:
            continue
        node = {key: device[key] for key in _KEPT if device.get(key) is not None}
        if not _is_known(device):
            lacking.append(device["path"])
        elif can_make and _is_in_memory(path, mounts):
            made.append(node)
        else:
            mount = {"destination": path, "type": "bind", "options": ["bind"], "device": node}
            mounted.append(mount)
    return made, mounted, lacking


def _is_known(device: "Json") -> bool:
    kind: str = device.get("type", "")
    major: int = device.get("major", -1)
    minor: int = device.get("minor", -1)
    if kind == "b":
        return major in _BLOCK
    if kind in ("c", "u"):
        if major == _MISC:
            return minor in _MISC_MINORS
        return major in _WHOLE or (major, minor) == (_PPP, 0)
    return kind == "p"


def _is_in_memory(path: str, mounts: "Sequence[Json]") -> bool:
    """Whether the last mount above the path is a filesystem in memory."""
    kinds = [
        mount.get("type")
        for mount in mounts
        if f"{path}/".startswith(os.path.normpath(mount["destination"]).rstrip("/") + "/")
    ]
    return bool(kinds) and kinds[-1] in ("tmpfs", "devtmpfs", "ramfs")
