"""Capabilities of the calling thread (capabilities(7))."""

import struct
from collections.abc import Iterable

from tapwright.linux import libc

CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, SETPCAP = 0, 1, 3, 4, 6, 7, 8
SYS_CHROOT, MKNOD, SETFCAP = 18, 27, 31

_CAPSET = 126  # x86-64
_PR_CAPBSET_DROP = 24
_VERSION_3 = 0x20080522


def last() -> int:
    """Return the number of the highest capability that this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def bound(kept: Iterable[int], highest: int) -> None:
    """Keep every program that is executed from now on from having capabilities other than these;
    `highest` is `last()`. For use between fork and exec. Raises OSError."""
    kept = set(kept)
    for capability in range(highest + 1):
        if capability not in kept:
            libc.prctl(_PR_CAPBSET_DROP, capability)


def keep(kept: Iterable[int], highest: int) -> None:
    """Give up all capabilities but these, for good; `highest` is `last()`. For use between fork and
    exec. Raises OSError."""
    kept = set(kept)
    bound(kept, highest)
    _set(sum(1 << capability for capability in kept))


def keep_none() -> None:
    """Give up all capabilities of the calling thread, including inheritable ones. Raises
    OSError."""
    _set(0)


def _set(bits: int) -> None:
    low, high = bits & 0xFFFFFFFF, bits >> 32
    content = struct.pack("=6I", low, low, 0, high, high, 0)
    libc.syscall(_CAPSET, struct.pack("=Ii", _VERSION_3, 0), content)
