"""Reads files in a place where an untrusted process writes: a container, or QEMU.

Such a path may name anything, and something else a moment later: a link to a file of the host, a
FIFO without a writer, a device, a sparse file of a tebibyte. So this module first looks at a file
by a descriptor that can't read (O_PATH), and follows no link anywhere on the path (openat2(2),
RESOLVE_NO_SYMLINKS; Linux 5.6).
"""

import errno
import os
import stat
import struct

from tapwright.linux import libc
from tapwright.linux.files import closing

_OPENAT2, _AT_FDCWD = 437, -100  # the same on all architectures (scripts/syscall.tbl)
_NO_MAGICLINKS, _NO_SYMLINKS = 2, 4  # include/uapi/linux/openat2.h


def opened(path: "str | os.PathLike[str]") -> int:
    """Return a descriptor (O_PATH) of a path, of which no part may be a link. Raises OSError; ELOOP
    for a link."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    how = struct.pack("=QQQ", flags, 0, _NO_MAGICLINKS | _NO_SYMLINKS)
    fd = libc.syscall(_OPENAT2, _AT_FDCWD, os.fsencode(path), how, len(how))
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return fd


def read(path: "str | os.PathLike[str]", limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Raises OSError: ELOOP if a
    link is part of the path, EINVAL if the file is not regular, EFBIG if it is larger."""
    with closing(opened(path)) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
            content = bytearray()
            while len(content) <= limit:
                data = file.read(limit + 1 - len(content))
                if not data:
                    return bytes(content)
                content += data
    raise OSError(errno.EFBIG, f"it has more than {limit} bytes", os.fspath(path))
