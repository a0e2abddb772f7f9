"""The few calls of the C library that Python 3.11 lacks: namespaces, mounts, prctl."""

import ctypes
import os

CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace behind `fd` (setns(2))."""
    _check(_libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own (unshare(2))."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, flags: int) -> None:
    """Bind or change a mount (mount(2), no filesystem type, no data)."""
    result = _libc.mount(source.encode(), target.encode(), b"none", ctypes.c_ulong(flags), None)
    _check(result, target)


def unmount(target: str) -> None:
    """Take the mount at `target` away, lazily where it is in use (umount2(2))."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), target)


def prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
