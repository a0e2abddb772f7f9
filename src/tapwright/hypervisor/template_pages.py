"""The memory of a template on disk: the pages that are not zero (MEMORY), and their places
(EXTENTS)."""

import contextlib
import errno
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tapwright.errors import HypervisorError

MEMORY, EXTENTS = "memory", "extents"
_PAGE = mmap.PAGESIZE
_EXTENT = struct.Struct("<QQ")


class DamagedError(HypervisorError):
    """The files of a template have changed since it was made."""


def gather(memory: int, draft: Path, limit: int) -> tuple[int, int]:
    """Write MEMORY and EXTENTS; return the checksums of extents and memory. Raises HypervisorError
    if MEMORY would be larger than the limit."""
    extents = bytearray()
    checksum = 0
    with (
        mmap.mmap(memory, 0, mmap.MAP_SHARED, mmap.PROT_READ) as content,
        (draft / MEMORY).open("wb") as file,
    ):
        for start, end in _used(memory, content):
            if file.tell() + end - start > limit:
                raise HypervisorError(
                    f"it takes more than template_limit = {limit >> 20} (MiB); raise that in "
                    "[factory]"
                )
            extents += _EXTENT.pack(start, end - start)
            piece = content[start:end]
            checksum = zlib.crc32(piece, checksum)
            file.write(piece)
    (draft / EXTENTS).write_bytes(extents)
    return zlib.crc32(extents), checksum


def _used(memory: int, content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield where there are pages that are not zero, as (start, end)."""
    zero = bytes(_PAGE)
    first = -1
    for start, end in _data(memory):
        for page in range(start, end, _PAGE):
            is_used = content[page : page + _PAGE] != zero
            if is_used and first < 0:
                first = page
            elif not is_used and first >= 0:
                yield first, page
                first = -1
        if first >= 0:
            yield first, end
            first = -1


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data, as (start, end)."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return  # there is no more
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def spread(content: mmap.mmap, extents: bytes, fd: int) -> None:
    """Write the pages to their places. Raises DamagedError, OSError."""
    position = 0
    with memoryview(content) as view, _writable(fd) as write:
        for start, length in _EXTENT.iter_unpack(extents):
            # Released at once: otherwise `content` could not be closed after a failure.
            with view[position : position + length] as piece:
                if len(piece) != length:
                    raise DamagedError(f"the template's {MEMORY} is damaged: it is too short")
                write(piece, start)
            position += length


@contextlib.contextmanager
def _writable(fd: int) -> Iterator[Callable[[memoryview, int], None]]:
    """Yield a function that writes a piece to a place of a file. Only huge pages are mapped for it,
    because the mapping reserves them. Any other file may have no room for a page, which would be a
    SIGBUS."""

    def write(piece: memoryview, start: int) -> None:
        done = 0
        while done < len(piece):
            with piece[done:] as rest:
                done += os.pwrite(fd, rest, start + done)

    try:
        os.pwrite(fd, b"", 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # hugetlbfs has no write(2) (fs/hugetlbfs/inode.c)
            raise
    else:
        yield write
        return
    with mmap.mmap(fd, 0, mmap.MAP_SHARED) as content, memoryview(content) as pages:

        def place(piece: memoryview, start: int) -> None:
            pages[start : start + len(piece)] = piece

        yield place
