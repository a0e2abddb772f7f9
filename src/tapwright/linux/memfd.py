"""Memory behind a descriptor (memfd_create(2)), sealed so that no process can change it any
more."""

import contextlib
import fcntl
import os
import tempfile

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def create(name: str, size: int, huge_pages: bool = False) -> int:
    """Make a memfd of this size, all zero; return its descriptor.

    Raises OSError; with `huge_pages` also if the size is not a multiple of theirs.
    """
    flags = os.MFD_HUGETLB if huge_pages else 0
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.truncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def create_in(directory: str, size: int) -> int:
    """Make a file without a name, all zero, in a directory such as /dev/shm; return its descriptor.
    Raises OSError."""
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        os.truncate(file.fileno(), size)
        return os.dup(file.fileno())


def seal(fd: int) -> None:
    """Forbid for good to write to a memfd and to change its size; private mappings stay possible.

    Raises OSError while a process has it mapped for writing.
    """
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def open_sealed(path: str, name: str, size: int) -> int | None:
    """Open the memfd at /proc/PID/fd/N, if it has this name and size, and root made and sealed it.
    Otherwise return None: another process may have the pid by now, and any process can give memory
    any name."""
    link = f"/memfd:{name} (deleted)"
    fd = -1
    with contextlib.suppress(OSError):
        # The link is read first, because opening a device or a pipe can have effects.
        if os.readlink(path) == link:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if _is_sealed(fd, link, size):
                return fd
    if fd >= 0:
        os.close(fd)
    return None


def _is_sealed(fd: int, link: str, size: int) -> bool:
    status = os.fstat(fd)
    return (
        os.readlink(f"/proc/self/fd/{fd}") == link
        and (status.st_uid, status.st_size) == (0, size)
        and fcntl.fcntl(fd, fcntl.F_GET_SEALS) == _SEALS
    )
