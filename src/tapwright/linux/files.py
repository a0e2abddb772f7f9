"""Writes files so that each one is complete, or as it was before, even after a loss of power.
`closing` closes the descriptor of an open one."""

import contextlib
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Path = str | os.PathLike[str]

_REMEDIES = {
    errno.ENOSPC: "make room in its filesystem",
    errno.EDQUOT: "make room in its filesystem",
    errno.EROFS: "make its filesystem writable, or choose another --root",
}


@contextlib.contextmanager
def closing(fd: int) -> "Iterator[int]":
    """Close a descriptor at the end of the block, as `contextlib.closing` closes an object."""
    try:
        yield fd
    finally:
        os.close(fd)


def replace(
    path: "Path",
    text: str,
    synced: bool = True,
    kept: bool = False,
    mode: int = 0o600,
    is_shared: bool = False,
) -> None:
    """Write a file, which only root can read unless its `mode` says otherwise. With `is_shared`,
    other processes may write the file at the same time, and the last one wins; without it, the
    caller keeps them from that. Without `synced`, the file may be empty after a loss of power;
    without `kept`, it may have its old content then. Raises OSError; then the file is as it was,
    unless its directory could not be synced."""
    directory, name = os.path.split(path)
    # A draft that others may see does not have the file's ending, by which node_exporter reads.
    draft = f".{name}.{os.getpid()}" if is_shared else f".{name}"
    temporary = os.path.join(directory, draft)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(temporary, flags, mode)
        with open(fd, "w") as file:
            file.write(text)
            if synced:
                file.flush()
                os.fsync(fd)
        os.rename(temporary, path)
        if kept:
            sync(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sync(directory: "Path") -> None:
    """Make the names in a directory outlast a loss of power (fsync(2)). Raises OSError."""
    with closing(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


def remedy(error: OSError) -> str:
    """Return what to do about an error, in words."""
    return _REMEDIES.get(error.errno or 0, "see what its disk does (dmesg)")
