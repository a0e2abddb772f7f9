"""Sockets with a path (unix(7))."""

import array
import contextlib
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def address(path: "str | os.PathLike[str]") -> "Iterator[str]":
    """Yield an address for the socket at a path, valid within the block. A socket's address has
    room for 107 bytes; this one fits, however deep the directory is. Raises OSError if the
    directory does not exist."""
    directory, name = os.path.split(path)
    fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def received(connection: socket.socket, size: int, most: int) -> "tuple[bytes, list[int], bool]":
    """Return (data, descriptors, whether some were lost) of one message, of at most `size` bytes
    and `most` descriptors. Child processes do not inherit the descriptors. Raises OSError.

    `socket.recv_fds` of Python 3.11 drops the flag for lost descriptors.
    """
    space = socket.CMSG_LEN(most * array.array("i").itemsize)
    data, messages, flags, _ = connection.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors), bool(flags & socket.MSG_CTRUNC)
