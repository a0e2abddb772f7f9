"""The guest's disk, with kernel modules and programs. The disk is mounted when a program asks for
one of these.

The script DISK mounts it. The kernel runs the script as /sbin/modprobe when it lacks a module, in
the guest's own namespaces, so a container's files can't take part in it.
"""

import contextlib
import os
import stat
from typing import Any

DISK = "/usr/lib/tapwright/disk"
MODULES = "/usr/lib/tapwright/mounted/usr/lib/modules"

_DEVICES = "/etc/devices"
_MODPROBE = "/proc/sys/kernel/modprobe"
_FOR_ALL = frozenset(("fuse", "net/tun"))
_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_MODE = 0o666  # of a device without `fileMode`, as crun has it


def make_devices() -> None:
    """Make the device nodes that load a module when they are opened, as a host does when it boots
    (modules.devname of depmod(8)). The source has lines of module, name, and kind with numbers, as
    "c10:200"."""
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


def give_devices(config: dict[str, Any], directory: str) -> None:
    """Make the nodes of those mounts of a container's configuration that have the key `device`, an
    OCI device, in a directory; make them the sources, and remove the key. Raises OSError."""
    for number, mount in enumerate(config.get("mounts", ())):
        if device := mount.pop("device", None):
            mount["source"] = f"{directory}/device-{number}"
            numbers = os.makedev(device.get("major", 0), device.get("minor", 0))
            os.mknod(mount["source"], _KINDS[device["type"]], numbers)
            os.chown(mount["source"], device.get("uid", 0), device.get("gid", 0))
            os.chmod(mount["source"], device.get("fileMode", _MODE))


def load(module: str) -> None:
    """Have a module loaded by who loads those that the kernel asks for (kernel.modprobe), where
    there is one."""
    with open(_MODPROBE) as file:
        program = file.read().strip()
    if os.access(program, os.X_OK):
        os.waitpid(os.posix_spawn(program, [program, "-q", "--", module], os.environ), 0)


def give_modules(config: dict[str, Any]) -> None:
    """Make the modules of this kernel the source of those mounts of a container's configuration
    that have the key `modules`, and remove the key. Without a disk, these mounts keep the host's
    modules as their source. Raises OSError."""
    for mount in config.get("mounts", ()):
        if mount.pop("modules", False) and _is_mounted():
            mount["source"] = MODULES


def _is_mounted() -> bool:
    if not os.path.isdir(MODULES):
        import subprocess

        subprocess.run(["/bin/sh", DISK], stdin=subprocess.DEVNULL, check=False)
    return os.path.isdir(MODULES)
