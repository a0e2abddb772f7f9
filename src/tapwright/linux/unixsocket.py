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
    """The address of the socket at a path, for the length of the block: it has room for 107 bytes,
    however deep the directory is. Raises OSError when there is no such directory."""
    directory, name = os.path.split(path)
    fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def received(connection: socket.socket, size: int, most: int) -> "tuple[bytes, list[int], bool]":
    """(data, descriptors, whether some were lost) of one message, of at most so many bytes and
    descriptors. What this process starts does not inherit them. Raises OSError.

    `socket.recv_fds` of Python 3.11 drops the flag that says so.
    """
    space = socket.CMSG_LEN(most * array.array("i").itemsize)
    data, messages, flags, _ = connection.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors), bool(flags & socket.MSG_CTRUNC)
