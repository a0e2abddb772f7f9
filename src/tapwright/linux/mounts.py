"""Mounts by descriptor: cloned out of one mount namespace, and attached in another one.

A *detached* mount is a descriptor. It is in no mount namespace, no process sees it, and it ends
with its last descriptor (open_tree(2), move_mount(2), mount_setattr(2); Linux 5.14).
"""

import os
import stat
import struct
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from tapwright.linux import libc
from tapwright.linux.files import closing

# The same on all architectures (scripts/syscall.tbl); pivot_root is that of x86-64.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR, _PIVOT_ROOT = 428, 429, 442, 155
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4

READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXECUTION, NO_SYMLINKS = 1, 2, 4, 8, 0x200000
"""Attributes of mounts (include/uapi/linux/mount.h: MOUNT_ATTR_RDONLY, …)."""

NO_ACCESS_TIMES, ALL_ACCESS_TIMES, NO_ACCESS_TIMES_OF_DIRECTORIES = 0x10, 0x20, 0x80
"""The same for when a file was last read (MOUNT_ATTR_NOATIME, …)."""
_ACCESS_TIMES = 0x70
_MAPPED_USERS = 0x100000  # MOUNT_ATTR_IDMAP

_WORDS = {
    READ_ONLY: "ro",
    NO_SETUID: "nosuid",
    NO_DEVICES: "nodev",
    NO_EXECUTION: "noexec",
    NO_SYMLINKS: "nosymfollow",
}

T = TypeVar("T")


def clone(
    path: str | int,
    *,
    recursive: bool = True,
    read_only: bool = False,
    following: bool = False,
) -> int:
    """Return a detached mount of the file or directory at a path, or behind a descriptor, and of
    the mounts below it if `recursive`. Later mounts on one side do not show on the other. The
    exception is `following`: then mounts that are made later at the origin show in the clone, if
    the origin is a shared mount (mount_namespaces(7)). Raises OSError."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    if isinstance(path, int):
        fd = libc.syscall(_OPEN_TREE, path, b"", flags | _AT_EMPTY_PATH)
    else:
        fd = libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    try:
        attributes = READ_ONLY if read_only else 0
        propagation = libc.MS_SLAVE if following else libc.MS_PRIVATE
        _set(fd, b"", attributes, propagation=propagation)
    except BaseException:
        os.close(fd)
        raise
    return fd


def restrict(place: int | str, attributes: int, *, recursive: bool = True) -> None:
    """Add attributes to a detached mount, or to the mount at a path, and to all mounts below it if
    `recursive`. Raises OSError."""
    if isinstance(place, int):
        _set(place, b"", attributes, recursive=recursive)
    else:
        _set(_AT_FDCWD, os.fsencode(place), attributes, recursive=recursive)


def map_users(fd: int, users: int, *, recursive: bool = False) -> None:
    """Show the owners of a detached mount's files as those that they are mapped to by a user
    namespace, given by its descriptor; files that are made there are mapped back. Raises OSError:
    EINVAL for a filesystem that can't."""
    _set(fd, b"", _MAPPED_USERS, recursive=recursive, users=users)


def keep_access_times(fd: int, attributes: int) -> None:
    """Set for a detached mount, but not for those below it, which of its access times are kept.
    Raises OSError."""
    _set(fd, b"", attributes, without=_ACCESS_TIMES, recursive=False)


def share(path: str) -> None:
    """Make the mount at a path, and those below it, shared ones (mount_namespaces(7)). Raises
    OSError."""
    _set(_AT_FDCWD, os.fsencode(path), propagation=libc.MS_SHARED)


def are_restricted(pid: int, attributes: int) -> bool:
    """Whether all mounts that a process sees have these attributes (proc(5), /proc/PID/mountinfo).
    Raises OSError."""
    words = {word for attribute, word in _WORDS.items() if attribute & attributes}
    with open(f"/proc/{pid}/mountinfo") as table:
        return all(words.issubset(line.split(" ")[5].split(",")) for line in table)


def allow_writing(path: str) -> None:
    """Remove READ_ONLY from the mount at a path, but not from mounts below it. Raises OSError."""
    _set(_AT_FDCWD, os.fsencode(path), without=READ_ONLY, recursive=False)


def is_read_only(fd: int) -> bool:
    """Whether the mount behind a descriptor, or its filesystem, is read-only."""
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def _set(
    fd: int,
    path: bytes,
    attributes: int = 0,
    without: int = 0,
    propagation: int = 0,
    recursive: bool = True,
    users: int = 0,
) -> None:
    wanted = struct.pack("=QQQQ", attributes, without, propagation, users)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    libc.syscall(_MOUNT_SETATTR, fd, path, flags, wanted, len(wanted))


def attach(fd: int, path: str) -> None:
    """Mount a detached mount at a path of the calling thread's namespace. Raises OSError."""
    target = os.fsencode(path)
    libc.syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH)


def is_directory(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def new_namespace(root: int, below: Iterable[tuple[int, str]] = ()) -> int:
    """Make a mount namespace that contains only a detached mount, as its root, and others at places
    in it; return its descriptor. The namespace ends with its last descriptor and process.

    Raises OSError.
    """

    def make() -> int:
        libc.unshare(libc.CLONE_NEWNS)
        namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # This leaves a chroot(2) of the caller: a thread that joins the namespace gets the
            # namespace's root.
            libc.setns(namespace, libc.CLONE_NEWNS)
            libc.mount("", "/", libc.MS_REC | libc.MS_PRIVATE)
            # The new root covers the old one, which is then unmounted with all that is in it.
            attach(root, "/")
            os.fchdir(root)
            libc.syscall(_PIVOT_ROOT, b".", b".")
            libc.unmount(".")
            os.chdir("/")
            for fd, path in below:
                attach(fd, path)
        except BaseException:
            os.close(namespace)
            raise
        return namespace

    return in_thread(make)


def within(namespace: int, work: Callable[[], T]) -> T:
    """Call `work` in a mount namespace, with the namespace's root as `/`. Raises what `work`
    raises."""

    def enter() -> T:
        libc.unshare(libc.CLONE_FS)
        libc.setns(namespace, libc.CLONE_NEWNS)
        return work()

    return in_thread(enter)


def within_that_of(pid: int, work: Callable[[], T]) -> T:
    """Call `work` in the mount namespace of a process (`within`). Raises OSError if there is no
    such process, and what `work` raises."""
    with closing(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as namespace:
        return within(namespace, work)


def joined(namespace: int, work: Callable[[], T]) -> T:
    """Call `work` as a member of a mount namespace, but with this process's root. So a program that
    it starts finds its files here, and a process that joins the program's namespace by pid
    (setns(2)) gets into the namespace. Raises what `work` raises."""

    def enter() -> T:
        libc.unshare(libc.CLONE_FS)
        libc.setns(namespace, libc.CLONE_NEWNS)
        os.fchdir(root)
        os.chroot(".")
        return work()

    with closing(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        return in_thread(enter)


def in_thread(work: Callable[[], T]) -> T:
    """Call `work` in a thread that ends with it. The thread has its own namespace, root and
    directory; it could not go back to those that the other threads share."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
