"""Sockets with a path (unix(7))."""

import array
import contextlib
import errno
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


def kind_of(path: "str | os.PathLike[str]") -> socket.SocketKind | None:
    """Return the kind of the socket that is bound at a path; None where its process has closed it,
    after which no other can have it. Whoever listens there does not notice. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        found = f"/proc/self/fd/{fd}"
        # The kernel compares kinds before all else (net/unix/af_unix.c: unix_find_bsd), and looks
        # last whether the connecting socket is connected already (unix_stream_connect).
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as trial:
            try:
                trial.connect(found)
            except ConnectionRefusedError:
                return None
            except OSError as error:
                if error.errno == errno.EPERM:  # it takes datagrams of another socket only
                    return socket.SOCK_DGRAM
                if error.errno != errno.EPROTOTYPE:
                    raise
            else:
                return socket.SOCK_DGRAM
        connected, other = socket.socketpair()
        with connected, other:
            connected.setblocking(False)
            try:
                connected.connect(found)
            except OSError as error:
                if error.errno == errno.EPROTOTYPE:
                    return socket.SOCK_SEQPACKET
                if error.errno not in (errno.EISCONN, errno.EAGAIN, errno.ECONNREFUSED):
                    raise
            return socket.SOCK_STREAM
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
