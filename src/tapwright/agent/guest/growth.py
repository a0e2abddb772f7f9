"""Memory and CPUs that are plugged in while the guest runs."""

import os
from collections.abc import Iterator
from typing import Any

from tapwright.agent.guest.files import read, write
from tapwright.agent.guest.refusal import NotThereYetError
from tapwright.linux.netlink import Netlink

_CPUS = "/sys/devices/system/cpu"
_AUTO_ONLINE = "/sys/devices/system/memory/auto_online_blocks"
_KIB = 1024


def expect_memory(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Prepare for memory that is about to be plugged in. With `for_kernel`, the kernel can use it
    in every way; else only in ways that allow its removal. Returns how many bytes of memory are in
    use."""
    write(_AUTO_ONLINE, "online_kernel" if request["for_kernel"] else "online_movable")
    return {"memory": _memory()}


def take_room(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Make the kernel use so many `cpus`, the first ones. Wait until these, and so many bytes of
    `memory`, are there."""
    wanted = int(request["cpus"])
    # The first CPU is always in use, and has no such file.
    for number, path in sorted(_switches()):
        value = "1" if number < wanted else "0"
        if read(path).strip() != value:
            write(path, value)
    if (found := _online()) < wanted:
        raise NotThereYetError(f"{wanted} CPUs, but {found},")
    if (found := _memory()) < int(request["memory"]):
        raise NotThereYetError(f"{int(request['memory']) >> 20} MiB, but {found >> 20},")
    return {}


def _switches() -> Iterator[tuple[int, str]]:
    for name in os.listdir(_CPUS):
        path = f"{_CPUS}/{name}/online"
        if name.startswith("cpu") and name[3:].isdecimal() and os.path.exists(path):
            yield int(name[3:]), path


def _online() -> int:
    return os.sysconf("SC_NPROCESSORS_ONLN")


def _memory() -> int:
    for line in read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * _KIB
    return 0
