"""The disk: modules of the kernel and programs, mounted when something asks for them.

The script DISK does it. The kernel has it run by /sbin/modprobe when it lacks a module, in the
guest's own namespaces, so what a container has in its files can't come into that.
"""

import contextlib
import os
import stat
from typing import Any

DISK = "/usr/lib/tapwright/disk"
MODULES = "/usr/lib/tapwright/mounted/usr/lib/modules"

_DEVICES = "/etc/devices"
_FOR_ALL = frozenset(("fuse", "net/tun"))
_KINDS = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}


def make_devices() -> None:
    """Make the nodes whose opening has a module loaded, as a host does when it boots
    (modules.devname of depmod(8)): lines of module, name, and kind with numbers, as "c10:200"."""
    with contextlib.suppress(FileNotFoundError), open(_DEVICES) as file:
        for line in file:
            if line.startswith("#"):
                continue
            _, name, device = line.split()
            major, minor = map(int, device[1:].split(":"))
            mode = _KINDS[device[0]] | (0o666 if name in _FOR_ALL else 0o600)
            path = f"/dev/{name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mknod(path, mode, os.makedev(major, minor))
                os.chmod(path, mode & 0o777)


def give_modules(config: dict[str, Any]) -> None:
    """Make the modules of this kernel the source of those mounts of a container's configuration
    which say that they are of `modules`, which is taken out. A guest without a disk leaves them as
    they are, with the host's. Raises OSError."""
    for mount in config.get("mounts", ()):
        if mount.pop("modules", False) and _is_mounted():
            mount["source"] = MODULES


def _is_mounted() -> bool:
    if not os.path.isdir(MODULES):
        import subprocess

        subprocess.run(["/bin/sh", DISK], stdin=subprocess.DEVNULL, check=False)
    return os.path.isdir(MODULES)
