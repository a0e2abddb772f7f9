"""Directories that are complete or absent. A process fills a directory beside its place, and then
renames it to its name; the first process to rename gets the name. To remove a directory, a process
first renames it.

The remains of a process that was killed in between have its pid in their name. The next process
removes them, or `sweep` does.
"""

import contextlib
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | os.PathLike[str]

_NEW, _DELETED = ".new-", ".deleted-"


def draft(parent: "Path", name: str) -> str:
    """Make the directory to fill, and `parent` if it is missing. Raises OSError."""
    os.makedirs(parent, 0o700, exist_ok=True)
    sweep(parent)
    path = os.path.join(parent, f"{_NEW}{name}-{os.getpid()}")
    os.mkdir(path, 0o700)
    return path


def take(filled: "Path", target: "Path") -> None:
    """Give a filled directory its name. Raises FileExistsError if the name is taken, and
    OSError."""
    try:
        os.rename(filled, target)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None


def discard(directory: "Path") -> None:
    """Remove a directory; its name is free at once. Raises OSError if it does not exist, or can't
    be removed."""
    parent, name = os.path.split(directory)
    grave = os.path.join(parent, f"{_DELETED}{name}-{os.getpid()}")
    try:
        os.rename(directory, grave)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # The filesystem has no room for the longer name.
        for entry in os.listdir(directory):
            os.unlink(os.path.join(directory, entry))
        os.rmdir(directory)
    else:
        remove(grave)


def remove(path: "Path") -> None:
    """Remove a draft, or a directory that was renamed to be removed. It contains no directories.
    The next sweep removes what can't be removed now."""
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))
        os.rmdir(path)


def names(parent: "Path") -> list[str]:
    """Return the names that are taken, in order."""
    try:
        entries = list(os.scandir(parent))
    except FileNotFoundError:
        return []
    return sorted(
        entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
    )


def sweep(parent: "Path") -> None:
    """Remove what killed processes have left in a directory. A missing directory is no error.
    Raises OSError."""
    try:
        names_there = os.listdir(parent)
    except FileNotFoundError:
        return
    for name in names_there:
        pid = name.rpartition("-")[2]
        if name.startswith((_NEW, _DELETED)) and not os.path.exists(f"/proc/{pid}"):
            remove(os.path.join(parent, name))
