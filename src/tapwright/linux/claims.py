"""Directories that are there whole or not at all. One is filled beside its place, and renamed to
it; the first process to rename has the name. At its end it is renamed away, and then removed.

What a process leaves that is killed in between has its pid in the name, and is removed by the next,
or by `sweep`.
"""

import contextlib
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | os.PathLike[str]

_NEW, _DELETED = ".new-", ".deleted-"


def draft(parent: "Path", name: str) -> str:
    """Make the directory to fill, and `parent` where it is missing. Raises OSError."""
    os.makedirs(parent, 0o700, exist_ok=True)
    sweep(parent)
    path = os.path.join(parent, f"{_NEW}{name}-{os.getpid()}")
    os.mkdir(path, 0o700)
    return path


def take(filled: "Path", target: "Path") -> None:
    """Give it its name. Raises FileExistsError where that is taken, OSError."""
    try:
        os.rename(filled, target)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None


def discard(directory: "Path") -> None:
    """Remove it, its name at once. Raises OSError for one that is not there, or stays."""
    parent, name = os.path.split(directory)
    grave = os.path.join(parent, f"{_DELETED}{name}-{os.getpid()}")
    try:
        os.rename(directory, grave)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # No room for the longer name.
        for entry in os.listdir(directory):
            os.unlink(os.path.join(directory, entry))
        os.rmdir(directory)
    else:
        remove(grave)


def remove(path: "Path") -> None:
    """Remove a draft, or what was renamed away. It has no directories in it; what can't be removed
    is left to the next."""
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))
        os.rmdir(path)


def names(parent: "Path") -> list[str]:
    """The names that are taken, in order."""
    try:
        entries = list(os.scandir(parent))
    except FileNotFoundError:
        return []
    return sorted(
        entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
    )


def sweep(parent: "Path") -> None:
    """Remove what killed processes have left there. Raises OSError; nothing for a directory that is
    not there."""
    try:
        names_there = os.listdir(parent)
    except FileNotFoundError:
        return
    for name in names_there:
        pid = name.rpartition("-")[2]
        if name.startswith((_NEW, _DELETED)) and not os.path.exists(f"/proc/{pid}"):
            remove(os.path.join(parent, name))
