"""The files of the host, by 9p (Documentation/filesystems/9p.rst)."""

import os
from typing import Any

from tapwright.agent import protocol
from tapwright.linux.netlink import Netlink

_MODULES = "/etc/modules.share"
# The largest messages that virtio takes. With `mmap` nothing is cached but what is mapped, so that
# each side sees at once what the other writes. Who may what is decided here.
_OPTIONS = {
    "trans": "virtio",
    "version": "9p2000.L",
    "msize": "512000",
    "cache": "mmap",
    "access": "client",
}


def mount(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Mount the share, unless it is. Raises OSError."""
    # Not before: a guest without a share does not wait for it when it boots.
    from tapwright.linux import libc, mounts

    if os.path.ismount(protocol.SHARE):
        return {}
    os.makedirs(protocol.SHARE, exist_ok=True)
    if not _is_known("9p"):
        _load_modules()
    fd = libc.detached_mount("9p", source=protocol.SHARE_TAG, **_OPTIONS)
    try:
        mounts.attach(fd, protocol.SHARE)
    finally:
        os.close(fd)
    return {}


def _is_known(filesystem: str) -> bool:
    with open("/proc/filesystems") as file:
        return any(line.split()[-1] == filesystem for line in file)


def _load_modules() -> None:
    from tapwright.linux import libc

    with open("/proc/modules") as file:
        loaded = {line.split()[0] for line in file}
    with open(_MODULES) as file:
        paths = file.read().split()
    for path in paths:
        if os.path.basename(path).removesuffix(".ko") not in loaded:
            libc.load_module(path)
