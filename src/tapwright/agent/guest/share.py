"""The files of the host, by 9p (Documentation/filesystems/9p.rst)."""

import os
from typing import Any

from tapwright.agent import protocol
from tapwright.linux.netlink import Netlink

_MODULES = "/etc/modules.share"
# The largest messages that virtio takes. With `mmap` files are not cached, so that what the host
# writes is seen at once, but those that are mapped; who may what is decided here.
_OPTIONS = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=client"


def mount(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Mount the share, unless it is. Raises OSError."""
    if os.path.ismount(protocol.SHARE):
        return {}
    os.makedirs(protocol.SHARE, exist_ok=True)
    if not _is_known("9p"):
        _load_modules()
    _run("mount", "-t", "9p", "-o", _OPTIONS, protocol.SHARE_TAG, protocol.SHARE)
    return {}


def _is_known(filesystem: str) -> bool:
    with open("/proc/filesystems") as file:
        return any(line.split()[-1] == filesystem for line in file)


def _load_modules() -> None:
    with open("/proc/modules") as file:
        loaded = {line.split()[0] for line in file}
    with open(_MODULES) as file:
        for path in file.read().split():
            if os.path.basename(path).removesuffix(".ko") not in loaded:
                _run("insmod", path)


def _run(*command: str) -> None:
    pid = os.posix_spawn("/bin/busybox", command, os.environ)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        raise OSError(f"{' '.join(command)} failed with status {code}")
