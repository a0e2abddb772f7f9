"""Who may do what to a sandbox's directory.

*Its name* belongs to whoever first renamed a complete directory to it. *`alive`* is a lock held
by the caller that makes the sandbox and handed on to the supervisor with the descriptor: it is
free exactly when both are gone. The file holds the supervisor's pid. *The directory itself* is
locked by whoever takes the sandbox down. *A device of the host* belongs to the sandbox in whose
journal it is; the directory of all sandboxes is locked by whoever enters one.

All locks are flock(2): the kernel frees them with their last holder, however it ended.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tapwright.errors import NetworkError, SandboxExistsError, SandboxStateError
from tapwright.linux import claims, filelock
from tapwright.sandbox.record import Journal, Record, load, save

_ALIVE = "alive"
_CLAIM_SECONDS = 10.0


def claim(sandboxes: Path, record: Record) -> tuple[Path, int]:
    """Make the directory of a new sandbox; return it with the descriptor of its `alive` lock.

    Raises SandboxExistsError, SandboxStateError.
    """
    target = sandboxes / record.id
    try:
        draft = Path(claims.draft(sandboxes, record.id))
    except OSError as error:
        raise SandboxStateError(
            f"the state directory {sandboxes} can't be made: {error.strerror}; choose another "
            "one with --root"
        ) from None
    try:
        fd = os.open(draft / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        save(record, draft)
        try:
            claims.take(draft, target)
        except OSError:
            os.close(fd)
            raise
    except FileExistsError:
        claims.remove(draft)
        raise SandboxExistsError(
            f"a sandbox {record.id!r} exists; delete it or choose another id"
        ) from None
    except BaseException:
        claims.remove(draft)
        raise
    return target, fd


def is_alive(directory: Path) -> bool:
    """Whether somebody makes or supervises the sandbox. Never waits."""
    return filelock.is_held(directory / _ALIVE)


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
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        if not filelock.locked_within(fd, timeout):
            raise SandboxStateError(
                f"somebody else is deleting the sandbox {directory.name!r}; try again later"
            )
        yield filelock.is_still(fd, directory)
    finally:
        os.close(fd)


def claim_device(journal: Journal, kind: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Enter a device of the host in a sandbox's journal, unless one has it already; return the
    entry. `entry` has `device` and either the `netns` that it is in or its `socket`.

    Raises NetworkError, and SandboxStateError when the devices stay locked.
    """
    sandboxes = journal.directory.parent
    try:
        place = _place(entry)
    except OSError as error:
        raise NetworkError(f"the namespace of {entry['device']} is gone: {error}") from None
    with _claiming(sandboxes):
        for name, held in _all_held(sandboxes):
            if held.get("place") == place and is_still_there(held):
                raise NetworkError(
                    f"device: {entry['device']} is in use by sandbox {name!r} as "
                    f"{held['nic']}; remove it there first"
                )
        return journal.hold(kind, **entry, place=place)


def claim_netns(journal: Journal, path: str) -> None:
    """Enter in a sandbox's journal that it uses a network namespace, unless another one does.

    Raises NetworkError, SandboxStateError.
    """
    sandboxes = journal.directory.parent
    with _claiming(sandboxes):
        for name, held in _all_held(sandboxes):
            if held["kind"] in ("netns", "netns_used") and _same(held["path"], path):
                raise NetworkError(
                    f"the network namespace {path} is in use by sandbox {name!r}; delete that "
                    "one first, or choose another namespace"
                )
        journal.hold("netns_used", path=path)


def is_still_there(entry: dict[str, Any]) -> bool:
    """Whether the place of a device is still the one that was entered: numbers of namespaces are
    used again, and so are paths."""
    try:
        return _place(entry) == str(entry["place"])
    except OSError:
        return False


@contextlib.contextmanager
def _claiming(sandboxes: Path) -> Iterator[None]:
    fd = os.open(sandboxes, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not filelock.locked_within(fd, _CLAIM_SECONDS):
            raise SandboxStateError("another sandbox takes very long to claim a device; try again")
        yield
    finally:
        os.close(fd)


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _place(entry: dict[str, Any]) -> str:
    """What tells a device apart from all others of the host."""
    if "socket" in entry:
        return f"socket {os.path.realpath(entry['socket'])}"
    return f"netns {os.stat(entry['netns']).st_ino} interface {entry['index']}"


def _all_held(sandboxes: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The journals' entries of all sandboxes, each with the id of its sandbox."""
    for name in names(sandboxes):
        try:
            entries = load(sandboxes / name).held
        except (FileNotFoundError, SandboxStateError):
            continue  # just deleted; a damaged record is told of where it is asked for
        for entry in entries:
            yield name, entry


def discard(directory: Path) -> None:
    """Remove the directory of a sandbox that holds nothing any more; its name is free at once."""
    claims.discard(directory)


def names(sandboxes: Path) -> list[str]:
    """The ids of all sandboxes."""
    return claims.names(sandboxes)
