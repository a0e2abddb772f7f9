"""Notices when a path leads to another namespace than before, and makes a stand-in for a namespace
that is gone.

Paths of namespaces are reused: a name in /run/netns by the next container of that name,
/proc/PID/ns/net by the next process of that number. Inode numbers are reused, too. So device,
inode, boot and cookie identify a namespace; the kernel uses each cookie once (SO_NETNS_COOKIE,
net/core/sock.c; since 5.14). Only a process that may enter the namespace can read the cookie.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

_OWN = "/proc/thread-self/ns/net"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h
_TUNSETIFF, _TAP_FLAGS = 0x400454CA, 0x1002  # include/uapi/linux/if_tun.h: IFF_TAP, IFF_NO_PI
_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h


class Namespace(NamedTuple):
    """The identity of a network namespace. `boot` is random(4)'s boot_id; a `cookie` of 0 is
    unknown."""

    device: int
    inode: int
    boot: str
    cookie: int = 0


def at(path: str) -> Namespace | None:
    """The network namespace at a path; None when the path leads to none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        if not _is_network(fd):
            return None
        status = os.fstat(fd)
        return Namespace(status.st_dev, status.st_ino, _boot(), _cookie(fd))
    finally:
        os.close(fd)


def leads_to(path: str, known: Namespace) -> bool:
    found = at(path)
    if found is None or found[:3] != known[:3]:
        return False
    return found.cookie == known.cookie or not (found.cookie and known.cookie)


def from_json(value: Any) -> Namespace | None:
    """The namespace from a file's JSON; None, for an unknown namespace, if that is invalid."""
    try:
        known = Namespace(**value)
    except TypeError:
        return None
    numbers = (known.device, known.inode, known.cookie)
    is_right = isinstance(known.boot, str) and all(isinstance(n, int) for n in numbers)
    return known if is_right else None


@contextlib.contextmanager
def stand_in(ifname: str) -> Iterator[str]:
    """Yield the path of a new namespace, for the length of the block. It contains an interface of
    this name, if a TAP can be made there. Both end with this process in any case, because they
    belong to its descriptors; the interface even if it was moved elsewhere. Raises OSError."""
    with contextlib.ExitStack() as opened:
        with _own_kept():
            _call("unshare", _CLONE_NEWNET)
            fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            with contextlib.suppress(OSError):
                opened.callback(os.close, _tap(ifname))
        yield f"/proc/{os.getpid()}/fd/{fd}"


def _tap(name: str) -> int:
    import fcntl

    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        request = os.fsencode(name).ljust(16, b"\0") + _TAP_FLAGS.to_bytes(2, "little")
        fcntl.ioctl(fd, _TUNSETIFF, request.ljust(40, b"\0"))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_network(fd: int) -> bool:
    import fcntl

    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False


def _boot() -> str:
    try:
        with open(_BOOT_ID) as file:
            return file.read().strip()
    except OSError:
        return ""


def _cookie(fd: int) -> int:
    from _socket import AF_UNIX, SOL_SOCKET, socket  # without the module around it, which is slow

    any_socket = None
    try:
        with _own_kept():
            _call("setns", fd, _CLONE_NEWNET)
            any_socket = socket(AF_UNIX)
            raw = any_socket.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return 0
    finally:
        if any_socket:
            any_socket.close()
    return int.from_bytes(raw, "little")


@contextlib.contextmanager
def _own_kept() -> Iterator[None]:
    """Bring this thread back into its own namespace after the block."""
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            yield
        finally:
            _call("setns", own, _CLONE_NEWNET)
    finally:
        os.close(own)


def _call(name: str, *arguments: int) -> None:
    """Call setns(2) or unshare(2), which `os` has since Python 3.12. Raises OSError."""
    if call := getattr(os, name, None):
        call(*arguments)
        return
    # Not ctypes, which takes as long to load as a small plugin to run.
    from _ctypes import call_function, dlopen, dlsym

    program = dlopen(None, 0)  # type: ignore[arg-type]  # None as in dlopen(3)
    if call_function(dlsym(program, name), arguments) != 0:
        raise OSError(f"{name} failed")
