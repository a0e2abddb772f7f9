"""Sockets with a path (unix(7))."""

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def address(path: "str | os.PathLike[str]") -> "Iterator[str]":
    """The address of the socket at a path, for the length of the block: it has room for 107 bytes,
    however deep the directory is. Raises OSError when there is no such directory."""
    directory, name = os.path.split(path)
    fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
