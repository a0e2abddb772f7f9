"""Who may do what to a sandbox's directory.

*Its name* belongs to whoever first renamed a complete directory to it. *`alive`* is a lock held
by the caller that makes the sandbox and handed on to the supervisor with the descriptor: it is
free exactly when both are gone. The file holds the supervisor's pid. *The directory itself* is
locked by whoever takes the sandbox down.

All locks are flock(2): the kernel frees them with their last holder, however it ended.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tapwright.errors import SandboxExistsError, SandboxStateError
from tapwright.sandbox.record import Record, save

_ALIVE = "alive"
_NEW, _DELETED = ".new-", ".deleted-"
_PAUSE = 0.02


def claim(sandboxes: Path, record: Record) -> tuple[Path, int]:
    """Make the directory of a new sandbox; return it with the descriptor of its `alive` lock.

    Raises SandboxExistsError, SandboxStateError.
    """
    try:
        sandboxes.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SandboxStateError(
            f"the state directory {sandboxes} can't be made: {error.strerror}; choose another "
            "one with --root"
        ) from None
    _sweep(sandboxes)
    target = sandboxes / record.id
    draft = sandboxes / f"{_NEW}{record.id}-{os.getpid()}"
    draft.mkdir(mode=0o700)
    try:
        fd = os.open(draft / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        save(record, draft)
        try:
            draft.rename(target)
        except OSError:
            os.close(fd)
            raise SandboxExistsError(
                f"a sandbox {record.id!r} exists; delete it or choose another id"
            ) from None
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return target, fd


def is_alive(directory: Path) -> bool:
    """Whether somebody makes or supervises the sandbox. Never waits."""
    try:
        fd = os.open(directory / _ALIVE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def note_supervisor(alive_fd: int) -> None:
    """Write down the calling process as the supervisor."""
    os.pwrite(alive_fd, str(os.getpid()).encode(), 0)


def supervisor_pid(directory: Path) -> int | None:
    """The pid of the supervisor, who may have ended; None where none has started so far."""
    try:
        return int((directory / _ALIVE).read_text())
    except (FileNotFoundError, ValueError):
        return None


@contextlib.contextmanager
def taking_down(directory: Path, timeout: float) -> Iterator[bool]:
    """Be the only one to take the sandbox down; gives False when it is gone already.

    Raises SandboxStateError when somebody else is at it for longer than `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        while not _locked(fd):
            if time.monotonic() >= deadline:
                raise SandboxStateError(
                    f"somebody else is deleting the sandbox {directory.name!r}; try again later"
                )
            time.sleep(_PAUSE)  # flock(2) can wait, but not for a bounded time
        yield _is_still(fd, directory)
    finally:
        os.close(fd)


def discard(directory: Path) -> None:
    """Remove the directory of a sandbox that holds nothing any more; its name is free at once."""
    grave = directory.with_name(f"{_DELETED}{directory.name}-{os.getpid()}")
    directory.rename(grave)
    shutil.rmtree(grave)


def names(sandboxes: Path) -> list[str]:
    """The ids of all sandboxes."""
    try:
        return sorted(name for name in os.listdir(sandboxes) if not name.startswith("."))
    except FileNotFoundError:
        return []


def _sweep(sandboxes: Path) -> None:
    """Remove what processes left that were killed in `claim` or `discard`."""
    for path in sandboxes.glob(".*"):
        pid = path.name.rpartition("-")[2]
        if path.name.startswith((_NEW, _DELETED)) and not os.path.exists(f"/proc/{pid}"):
            shutil.rmtree(path, ignore_errors=True)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(fd: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(directory))
    except FileNotFoundError:
        return False
