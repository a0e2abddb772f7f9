"""The host's files, by virtio-fs (Documentation/filesystems/virtiofs.rst)."""

import errno
import os
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.guest.files import write
from tapwright.agent.guest.refusal import NotThereYetError
from tapwright.linux.files import closing
from tapwright.linux.netlink import Netlink

_MODULES = "/etc/modules.share"
_FILESYSTEM = "virtiofs"
_READ_AHEAD_KIB = "1024"  # include/linux/fuse_i.h: FUSE_MAX_MAX_PAGES


def mount(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Mount the share, unless it is mounted. Raises OSError, and NotThereYetError while the kernel
    has not found its device."""
    # Loaded late, so a guest without a share boots faster.
    from tapwright.linux import libc, mounts

    if os.path.ismount(protocol.SHARE):
        return {}
    os.makedirs(protocol.SHARE, exist_ok=True)
    _load_modules()
    try:
        fd = libc.detached_mount(_FILESYSTEM, source=protocol.SHARE_TAG)
    except OSError as error:
        if error.errno == errno.EINVAL:  # no device of that name
            raise NotThereYetError("the device of the host's files") from None
        raise
    with closing(fd):
        mounts.attach(fd, protocol.SHARE)
        _read_ahead(os.fstat(fd).st_dev)
    return {}


def _read_ahead(device: int) -> None:
    """Read ahead as much as one request can carry: a request costs as much as reading many pages.
    Raises OSError."""
    name = f"{os.major(device)}:{os.minor(device)}"
    write(f"/sys/class/bdi/{name}/read_ahead_kb", _READ_AHEAD_KIB)


def _load_modules() -> None:
    """Load those of the list that are not loaded. A kernel has some of them built in, each release
    others; these are not in the list."""
    from tapwright.linux import libc

    with open("/proc/modules") as file:
        loaded = {line.split()[0] for line in file}
    with open(_MODULES) as file:
        paths = file.read().split()
    for path in paths:
        if os.path.basename(path).removesuffix(".ko") not in loaded:
            libc.load_module(path)
