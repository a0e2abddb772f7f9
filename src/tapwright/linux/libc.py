"""The few calls of the C library that Python 3.11 lacks: namespaces, mounts, prctl."""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator

from tapwright.linux.files import closing

CLONE_FS, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x200, 0x20000, 0x20000000, 0x40000000
CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER = 0x10000000
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x1000, 0x4000, 0x40000, 0x80000, 0x100000
MNT_DETACH = 2
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36
PER_LINUX, ADDR_NO_RANDOMIZE = 0, 0x40000

# The same on all architectures (scripts/syscall.tbl), unlike older calls.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CAPABILITY_VERSION_3 = 0x20080522  # include/uapi/linux/capability.h
_FINIT_MODULE = 313  # x86-64
_AT_FDCWD, _MAX_HANDLE = -100, 128  # include/uapi/linux/fcntl.h, include/linux/exportfs.h
_TMPFS_MAGIC, _HUGETLBFS_MAGIC = 0x01021994, 0x958458F6  # include/uapi/linux/magic.h
# proc, cgroup, cgroup2, debugfs, tracefs
_WITHOUT_SIZES = (0x9FA0, 0x27E0EB, 0x63677270, 0x64626720, 0x74726163)

_libc = ctypes.CDLL(None, use_errno=True)


class _FileHandle(ctypes.Structure):
    """struct file_handle (include/linux/fs.h)."""

    _fields_ = (
        ("length", ctypes.c_uint),
        ("kind", ctypes.c_int),
        ("content", ctypes.c_ubyte * _MAX_HANDLE),
    )


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace behind `fd` (setns(2))."""
    _check(_libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces of its own (unshare(2))."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, flags: int) -> None:
    """Make a bind mount, or change a mount (mount(2), no filesystem type, no data)."""
    result = _libc.mount(source.encode(), target.encode(), b"none", ctypes.c_ulong(flags), None)
    _check(result, target)


def set_host_name(name: str) -> None:
    """Set the host name of the calling thread's UTS namespace (sethostname(2))."""
    _check(_libc.sethostname(name.encode(), ctypes.c_size_t(len(name))), "sethostname")


def inotify_init(flags: int) -> int:
    """Return a descriptor that reports changes of files (inotify_init1(2))."""
    fd = int(_libc.inotify_init1(flags))
    _check(min(fd, 0), "inotify")
    return fd


def inotify_add_watch(fd: int, path: str, mask: int) -> None:
    """Add a file or directory to those whose changes the descriptor reports
    (inotify_add_watch(2))."""
    _check(min(int(_libc.inotify_add_watch(fd, path.encode(), ctypes.c_uint32(mask))), 0), path)


def set_personality(persona: int) -> None:
    """Set the execution domain of the calling thread, which its children inherit
    (personality(2))."""
    _check(min(int(_libc.personality(ctypes.c_ulong(persona))), 0), "personality")


def unmount(target: str) -> None:
    """Unmount the mount at `target`, lazily if it is in use (umount2(2))."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), target)


def detached_mount(filesystem: str, **options: str) -> int:
    """Mount a filesystem (`tmpfs`, `sysfs`) nowhere, and return a descriptor of its root. The mount
    ends with the last descriptor in it (fsopen, fsmount: fs/fsopen.c, fs/namespace.c). An empty
    option is one without a value. Sysfs shows the network devices of the calling thread's
    namespace."""
    with closing(syscall(_FSOPEN, filesystem.encode(), FSOPEN_CLOEXEC)) as context:
        for key, value in options.items():
            command = FSCONFIG_SET_STRING if value else FSCONFIG_SET_FLAG
            syscall(_FSCONFIG, context, command, key.encode(), value.encode() or None, 0)
        syscall(_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall(_FSMOUNT, context, FSMOUNT_CLOEXEC, 0)


def is_tmpfs(path: str) -> bool:
    """Whether a path is in a tmpfs. Raises OSError."""
    return _filesystem(path) == _TMPFS_MAGIC


def is_hugetlbfs(path: str) -> bool:
    """Whether a path is in a filesystem of huge pages. Raises OSError."""
    return _filesystem(path) == _HUGETLBFS_MAGIC


def has_no_sizes(path: str) -> bool:
    """Whether a path is in a filesystem of the kernel's whose files have content, but the size 0.
    Raises OSError."""
    return _filesystem(path) in _WITHOUT_SIZES


def _filesystem(path: str) -> int:
    """Return the number of the filesystem's type (statfs(2))."""
    facts = (ctypes.c_long * 32)()
    _check(_libc.statfs(os.fsencode(path), facts), path)
    return int(facts[0])


def file_handle(path: str) -> bytes:
    """Return what identifies a file in its filesystem, even among earlier files with the same inode
    number (name_to_handle_at(2)). Raises OSError."""
    handle = _FileHandle(_MAX_HANDLE)
    mount = ctypes.c_int()
    result = _libc.name_to_handle_at(
        *(_AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0)
    )
    _check(result, path)
    return bytes(handle.content[: handle.length])


def load_module(path: str) -> None:
    """Load a kernel module, without parameters (finit_module(2)). Raises OSError."""
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        syscall(_FINIT_MODULE, fd, b"", 0)


def getsockopt(fd: int, level: int, option: int, asked: bytes) -> bytes:
    """Read a socket option whose request has a value (getsockopt(2)). The answer is at most as long
    as the request."""
    value = ctypes.create_string_buffer(asked, len(asked))
    size = ctypes.c_uint(len(asked))
    _check(_libc.getsockopt(fd, level, option, value, ctypes.byref(size)), "getsockopt")
    return value.raw[: size.value]


@contextlib.contextmanager
def address_of(room: bytearray) -> Iterator[int]:
    """Yield the address of a buffer, for a structure that points to it. The address is valid within
    the block."""
    yield ctypes.addressof((ctypes.c_char * len(room)).from_buffer(room))


def prctl(option: int, argument: int, second: int = 0) -> None:
    words = [ctypes.c_ulong(word) for word in (argument, second, 0, 0)]
    _check(_libc.prctl(option, *words), "prctl")


def set_limit(pid: int, kind: int, soft: int, hard: int) -> None:
    """Set a limit of a process; 2**64 - 1 means no limit (prlimit(2)). Raises OSError."""
    limits = struct.pack("QQ", soft, hard)
    _check(_libc.prlimit(pid, kind, limits, None), f"limit {kind}")


def keep_rights(mask: int) -> None:
    """Have of the capabilities below 32 no others than those of `mask`, and none of the rest, in
    this thread (capset(2)). Some that it has not are passed over."""
    words = (ctypes.c_uint32 * 6)()
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capget(header, words), "capget")
    words[:] = [words[0] & mask, words[1] & mask, 0, 0, 0, 0]
    _check(_libc.capset(header, words), "capset")


def syscall(number: int, *arguments: bytes | int | None) -> int:
    """Make a system call for which the C library has no function. Raises OSError."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    _check(min(result, 0), f"system call {number}")
    return result


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
