"""Reports changes of files with the process that made them (fanotify(7)).

inotify(7) names no process, so it can't tell this process's changes from those of others. fanotify
needs Linux 5.9, CAP_SYS_ADMIN, and filesystems whose files have handles (name_to_handle_at(2)).
"""

import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tapwright.linux import libc

# arch/x86/entry/syscalls/syscall_64.tbl
_INIT, _MARK = 300, 301
# include/uapi/linux/fanotify.h
_CLOEXEC, _NONBLOCK = 1, 2
_REPORT_FID, _REPORT_DIR_FID, _REPORT_NAME = 0x200, 0x400, 0x800
_FLAGS = _CLOEXEC | _NONBLOCK | _REPORT_FID | _REPORT_DIR_FID | _REPORT_NAME
_MARK_ADD, _MARK_DONT_FOLLOW = 1, 4
_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
_OVERFLOW, _ON_CHILD, _ON_DIRECTORY = 0x4000, 0x08000000, 0x40000000
_OF_FILE = _MODIFY | _ATTRIB
_OF_NAMES = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_OF_DIRECTORY = _OF_FILE | _OF_NAMES | _ON_CHILD | _ON_DIRECTORY
_OBJECT, _ENTRY, _DIRECTORY = 1, 2, 3  # FAN_EVENT_INFO_TYPE_FID, _DFID_NAME, _DFID
_EVENT = struct.Struct("=IBBHQii")  # length, version, -, of this header, mask, descriptor, pid
_INFO = struct.Struct("=BBH8s")  # type, -, length, filesystem
_HANDLE = struct.Struct("=Ii")  # bytes, type
_READ_BYTES = 64 * 1024

Handle = bytes
"""The key of a file or directory: its filesystem, and its handle there."""


class Change(NamedTuple):
    """A change of `name` in a directory; with an empty name, of a file or directory itself.
    `process` made the change; 0 means that the kernel does not know. A change without a handle
    means that the kernel lost reports: anything may have changed."""

    handle: Handle
    name: str
    process: int


class Marks:
    """The files and directories whose changes are reported. Raises OSError."""

    def __init__(self) -> None:
        self._fd = libc.syscall(_INIT, _FLAGS, 0)

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is a report."""
        return self._fd

    def add(self, path: str) -> Handle:
        """Report changes of a file, or of a directory and its entries, from now on, but not of what
        lies deeper. A change in a directory has the directory's handle. Links are not followed.
        Raises OSError."""
        is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
        mask = _OF_DIRECTORY if is_directory else _OF_FILE
        libc.syscall(_MARK, self._fd, _MARK_ADD | _MARK_DONT_FOLLOW, mask, -100, os.fsencode(path))
        return _handle_of(path)

    def changes(self) -> Iterator[Change]:
        """Yield the changes since the last call, some hundred at most."""
        if data := self._read():
            offset = 0
            while offset < len(data):
                length, _, _, header, mask, _, process = _EVENT.unpack_from(data, offset)
                if mask & _OVERFLOW:
                    yield Change(b"", "", 0)
                else:
                    yield from _changes(data[offset + header : offset + length], process)
                offset += length

    def close(self) -> None:
        os.close(self._fd)

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return b""


def _changes(records: bytes, process: int) -> Iterator[Change]:
    """Yield what the records of one event say: an entry of a directory, and the object itself."""
    offset = 0
    while offset < len(records):
        kind, _, length, filesystem = _INFO.unpack_from(records, offset)
        size, _ = _HANDLE.unpack_from(records, offset + _INFO.size)
        start = offset + _INFO.size + _HANDLE.size
        end = start + size
        handle = filesystem + records[start:end]
        if kind == _ENTRY:
            name = os.fsdecode(records[end : offset + length].partition(b"\0")[0])
            yield Change(handle, "" if name == "." else name, process)
        elif kind in (_OBJECT, _DIRECTORY):
            yield Change(handle, "", process)
        offset += length


def _handle_of(path: str) -> Handle:
    """Raises OSError."""
    return struct.pack("=Q", os.statvfs(path).f_fsid) + libc.file_handle(path)
