"""Passes changes that the host makes in its shared files to the programs that watch these files in
the guest.

The guest's kernel gets no report of a change on the host, and looks at a file anew only after a
while. So the supervisor names the files that have changed. This module makes the kernel look at
them anew, and causes the inotify(7) events that programs wait for.

A volume that the kubelet fills (ConfigMaps, Secrets, …) is *mirrored*: containers have a copy in
memory. The copy is changed as the kubelet changes the original, so programs see the same events.
For other writable files, the time of the last change is set to its present value, which inotify
reports as a modification. For files that can't be written to, inotify reports nothing.

Processes of their own do all this, because the agent must not wait for files of the host.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable

from tapwright.agent import protocol
from tapwright.agent.guest import files
from tapwright.agent.guest.events import Children
from tapwright.agent.guest.requests import Request
from tapwright.agent.guest.streams import Answer, in_a_child
from tapwright.linux import libc

_STATX, _UTIMENSAT = 332, 280  # arch/x86/entry/syscalls/syscall_64.tbl
_AT_FDCWD, _NO_FOLLOW, _FORCE_SYNC, _BASIC = -100, 0x100, 0x2000, 0x7FF
_STATX_BYTES = 256
_PIECE_BYTES = 256 * 1024
_DROP_CACHES, _FILES_AND_DIRECTORIES = "/proc/sys/vm/drop_caches", "2"
_OMIT = (1 << 30) - 2  # UTIME_OMIT

Operation = Callable[[Request, Answer], None]


class SharedFiles:
    """The operations on shared files. Each request is answered when it is done."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self.operations: dict[str, Operation] = {
            "mirror_files": self.mirror,
            "forget_files": self.forget,
            "change_files": self.change,
            "forget_unused_files": self.forget_unused,
        }

    def mirror(self, request: Request, answer: Answer) -> None:
        """Make a copy of the directory `place` of the share, in MIRRORS."""
        place = _checked(request["place"])
        in_a_child(self._children, lambda: _copy_tree(place), answer)

    def forget(self, request: Request, answer: Answer) -> None:
        """Remove the copies of `places`. A container that has one mounted keeps it until it
        ends."""
        places = [_checked(place) for place in request["places"]]

        def forget() -> None:
            for place in places:
                _remove(_mirror_of(place))

        in_a_child(self._children, forget, answer)

    def change(self, request: Request, answer: Answer) -> None:
        """Look at `paths` in the share, which the host has changed, and notify the programs that
        watch them."""
        paths = [_checked(path) for path in request["paths"]]
        in_a_child(self._children, lambda: _bring(paths), answer)

    def forget_unused(self, request: Request, answer: Answer) -> None:
        """Make the kernel forget files that no program has open: the daemon on the host keeps a
        descriptor for each file that the guest's kernel knows."""
        in_a_child(
            self._children,
            lambda: files.write(_DROP_CACHES, _FILES_AND_DIRECTORIES),
            answer,
        )


def _bring(paths: list[str]) -> None:
    """Update paths in an order: the target of a link before the link, and paths that no link leads
    to any more last."""
    wanted = set(paths)
    mirrored = {place for place in map(protocol.place_of, paths) if _is_mirrored(place)}
    to_copy = []
    for path in paths:
        place = protocol.place_of(path)
        if place not in mirrored:
            _look_up(place, path)
            _tell(path)
        elif not _is_below_one_of(wanted, path):  # its directory is brought as a whole
            _look_up(place, path)
            to_copy.append(path)
    for path in sorted(to_copy, key=_rank):
        _copy(path)


def _is_mirrored(place: str) -> bool:
    return os.path.lexists(_mirror_of(place))


def _is_below_one_of(paths: set[str], path: str) -> bool:
    while path := os.path.dirname(path):
        if path in paths:
            return True
    return False


def _rank(path: str) -> int:
    try:
        return 1 if stat.S_ISLNK(os.lstat(_shared(path)).st_mode) else 0
    except FileNotFoundError:
        return 2


def _look_up(place: str, path: str) -> None:
    """Make the kernel look a path up now, whatever it knows.

    The trick is to rename a directory into itself. That fails, but first the kernel looks the new
    name up, and it trusts no cache for the target of a rename (fs/namei.c, do_renameat2;
    fs/fuse/dir.c, LOOKUP_RENAME_TARGET).
    """
    if path != place:
        with contextlib.suppress(OSError):
            os.rename(_shared(place), _shared(path))
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    flags = _NO_FOLLOW | _FORCE_SYNC
    with contextlib.suppress(OSError):
        address = ctypes.addressof(buffer)
        libc.syscall(_STATX, _AT_FDCWD, os.fsencode(_shared(path)), flags, _BASIC, address)


def _tell(path: str) -> None:
    """Make inotify report that a file was modified; for a file that has gone, that its directory
    was."""
    with contextlib.suppress(OSError):  # the file, or the whole share, is read-only
        try:
            changed = os.lstat(_shared(path)).st_mtime_ns
        except FileNotFoundError:
            path = os.path.dirname(path)
            changed = os.lstat(_shared(path)).st_mtime_ns
        seconds, rest = divmod(changed, 10**9)
        times = (ctypes.c_long * 4)(0, _OMIT, seconds, rest)
        address = ctypes.addressof(times)
        libc.syscall(_UTIMENSAT, _AT_FDCWD, os.fsencode(_shared(path)), address, _NO_FOLLOW)


def _copy_tree(path: str) -> None:
    os.makedirs(os.path.dirname(_mirror_of(path)), exist_ok=True)
    _copy(path)


def _copy(path: str) -> None:
    """Bring a file, link or directory of a mirror up to date with the share. Raises OSError."""
    source, target = _shared(path), _mirror_of(path)
    try:
        status = os.lstat(source)
    except FileNotFoundError:
        _remove(target)
        return
    if stat.S_ISDIR(status.st_mode):
        if os.path.islink(target) or os.path.isfile(target):
            os.unlink(target)
        if not os.path.exists(target):
            _copy_new(source, target)
            return
        for name in set(os.listdir(target)) - set(os.listdir(source)):
            _remove(f"{target}/{name}")
        for name in sorted(os.listdir(source), key=lambda name: _rank(f"{path}/{name}")):
            _copy(f"{path}/{name}")
        _set(target, status)
    elif not _is_same(target, status, source):
        _replace(source, target, status)


def _copy_new(source: str, target: str) -> None:
    """Copy a whole directory, by a program that is faster than Python."""
    if os.spawnv(os.P_WAIT, "/bin/busybox", ["cp", "-a", source, target]):  # noqa: S606
        raise OSError(errno.EIO, "cp failed", source)


def _replace(source: str, target: str, status: os.stat_result) -> None:
    """Replace a file by a rename, as the kubelet does, so no program sees half of it."""
    beside = f"{os.path.dirname(target)}/..{os.path.basename(target)}.tapwright"
    _remove(beside)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), beside)
    elif stat.S_ISREG(status.st_mode):
        with open(source, "rb") as original, open(beside, "wb") as copy:
            while data := original.read(_PIECE_BYTES):
                copy.write(data)
    else:
        return
    _set(beside, status)
    if os.path.isdir(target) and not os.path.islink(target):
        _remove(target)
    os.rename(beside, target)


def _is_same(target: str, status: os.stat_result, source: str) -> bool:
    try:
        there = os.lstat(target)
    except FileNotFoundError:
        return False
    if stat.S_IFMT(there.st_mode) != stat.S_IFMT(status.st_mode):
        return False
    if stat.S_ISLNK(there.st_mode):
        return os.readlink(target) == os.readlink(source)
    return all(
        getattr(there, key) == getattr(status, key)
        for key in ("st_size", "st_mtime_ns", "st_mode", "st_uid", "st_gid")
    )


def _set(path: str, status: os.stat_result) -> None:
    os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(path, stat.S_IMODE(status.st_mode))
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(path, ns=times, follow_symlinks=False)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            _remove(f"{path}/{name}")
        os.rmdir(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _shared(path: str) -> str:
    return f"{protocol.SHARE}/{path}"


def _mirror_of(path: str) -> str:
    return f"{protocol.MIRRORS}/{path}"


def _checked(path: object) -> str:
    """Raises ValueError."""
    if not isinstance(path, str) or len(path.split("/")) < 2:
        raise ValueError("a path in the share is CONTAINER/NAME, or below that")
    if not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError("a path in the share has no empty parts, and none that is . or ..")
    return path
