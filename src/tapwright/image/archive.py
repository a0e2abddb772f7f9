"""Writes a file tree as a cpio archive that the kernel unpacks as its initramfs.

The "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's
sources). Entries are sorted, owned by root and dated 1970: equal trees give equal bytes.
"""

import stat
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple


class Entry(NamedTuple):
    """A file, directory or symbolic link (its content is the target)."""

    mode: int
    content: bytes = b""

    @classmethod
    def file(cls, content: bytes, permissions: int = 0o644) -> "Entry":
        return cls(stat.S_IFREG | permissions, content)

    @classmethod
    def link(cls, target: str) -> "Entry":
        return cls(stat.S_IFLNK | 0o777, target.encode())


Tree = dict[str, Entry]
"""Entries by path without a leading slash. Parent directories need not be named."""


def write(tree: Tree) -> bytes:
    """Return the archive of a tree, uncompressed: unpacking costs the guest more than reading."""
    entries = {directory: Entry(stat.S_IFDIR | 0o755) for directory in _parents(tree)} | tree
    parts = [_record(number, path, entries[path]) for number, path in enumerate(sorted(entries), 1)]
    parts.append(_record(0, "TRAILER!!!", Entry(0)))
    return b"".join(parts)


def _parents(tree: Tree) -> Iterator[str]:
    for path in tree:
        for parent in PurePosixPath(path).parents:
            if parent.name:
                yield str(parent)


def _record(number: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
