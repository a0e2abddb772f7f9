"""Who supervises a sandbox: the process that has the lock `alive` in its directory, in which its
pid is written (`ownership` has the rights to a directory).

Imports little, for verbs of the OCI runtime ask for it.
"""

import os

from tapwright.linux import filelock

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | os.PathLike[str]

ALIVE = "alive"


def is_alive(directory: "Path") -> bool:
    """Whether a process makes or supervises the sandbox. Never waits."""
    return filelock.is_held(os.path.join(directory, ALIVE))


def note(alive_fd: int) -> None:
    """Write down the calling process as the supervisor."""
    os.pwrite(alive_fd, str(os.getpid()).encode(), 0)


def pid_of(directory: "Path") -> int | None:
    """The pid of the supervisor, which may have ended; None where none has started so far."""
    try:
        with open(os.path.join(directory, ALIVE)) as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return None


def is_it(directory: "Path", pid: int) -> bool:
    """Whether the process of that pid is the one that was written down, and no other that has its
    number by now: it has the sandbox's lock open. To be asked when the number can't change hands
    (pidfd_open(2))."""
    try:
        lock = os.stat(os.path.join(directory, ALIVE))
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            return any(_is(lock, entry.path) for entry in descriptors)
    except OSError:
        return False


def _is(status: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError:
        return False
