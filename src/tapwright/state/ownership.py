"""The rights to a sandbox's directory, by locks.

*Its name* belongs to the process that first renames a complete directory to it. *`alive`* is a lock
that the caller takes when it makes the sandbox, and passes on to the supervisor with the
descriptor: it is free exactly when both are gone. The file has the supervisor's pid
(`supervisors`). The process that takes the sandbox down locks *the directory itself*. *A device of
the host* belongs to the sandbox whose journal has it; a process that enters one locks the directory
of all sandboxes.

All locks are flock(2): the kernel frees a lock with its last holder, however that ended.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tapwright.cni import namespaces
from tapwright.errors import NetworkError, SandboxExistsError, SandboxStateError
from tapwright.linux import claims, filelock, files
from tapwright.linux.files import closing
from tapwright.state import supervisors
from tapwright.state.record import FILE, Journal, Place, Record, held, save

_CLAIM_SECONDS = 10.0
_SETTLED_SECONDS = 2.0


def claim(sandboxes: Path, record: Record) -> tuple[Path, int]:
    """Make the directory of a new sandbox; return it with the descriptor of its `alive` lock.

    Raises SandboxExistsError, SandboxStateError.
    """
    target = sandboxes / record.id
    try:
        place = Path(claims.draft(sandboxes, record.id))
    except OSError as error:
        raise SandboxStateError(
            f"the state directory {sandboxes} can't be made: {error.strerror}; choose another "
            "one with --root"
        ) from None
    fd = -1
    try:
        fd = os.open(place / supervisors.ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        save(record, place)
        claims.take(place, target)
        place = target
        files.sync(sandboxes)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        claims.remove(place)
        if isinstance(error, FileExistsError):
            raise SandboxExistsError(
                f"a sandbox {record.id!r} exists; delete it or choose another id"
            ) from None
        if isinstance(error, OSError):
            raise SandboxStateError(
                f"{target} can't be made: {error.strerror}; {files.remedy(error)}"
            ) from None
        raise
    return target, fd


@contextlib.contextmanager
def taking_down(directory: Path, timeout: float) -> Iterator[bool]:
    """Be the only process to take the sandbox down; yield False if it is gone already.

    Raises SandboxStateError when another process takes longer than `timeout` seconds for it.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            claims.sweep(directory.parent)  # its deletion may have been killed
        yield False
        return
    with closing(fd):
        if not filelock.locked_within(fd, timeout):
            raise SandboxStateError(
                f"another process is deleting the sandbox {directory.name!r}; try again later"
            )
        yield filelock.is_still(fd, directory)


def claim_device(journal: Journal, kind: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Enter a device of the host in a sandbox's journal, unless another sandbox has it; return the
    entry. `entry` has `device`, and either its `netns` or its `socket`.

    Raises NetworkError, and SandboxStateError when the devices stay locked.
    """
    record = journal.record
    try:
        place = _place(entry)
    except OSError as error:
        raise NetworkError(f"the namespace of {entry['device']} is gone: {error}") from None

    def hold(all_held: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        for name, entered in all_held:
            if entered.get("place") == place and is_still_there(entered):
                raise NetworkError(
                    f"device: {entry['device']} is in use by sandbox {name!r} as "
                    f"{entered.get('nic')}; remove it there first"
                )
        namespace = namespace_of(entry.get("netns", ""))
        return journal.hold(kind, **entry, place=place, namespace=namespace)

    if record.place is Place.MADE and entry.get("netns") == record.netns:
        # No other sandbox has anything in that namespace: the records of all need not be read.
        return hold((record.id, entered) for entered in list(record.held))
    with _claiming(journal.directory.parent) as all_held:
        return hold(all_held)


def claim_netns(journal: Journal, path: str, bound: str = "") -> None:
    """Enter in a sandbox's journal that it uses a network namespace, unless another one does. Bind
    the namespace at `bound`, if that is given; it is unbound with the sandbox.

    Raises NetworkError, SandboxStateError.
    """
    from tapwright.state.entries import Netns, NetnsUsed

    sandboxes = journal.directory.parent
    with _claiming(sandboxes) as all_held:
        for name, entered in all_held:
            if entered["kind"] in ("netns", "netns_used") and _same(entered.get("path"), path):
                raise NetworkError(
                    f"the network namespace {path} is in use by sandbox {name!r}; delete that "
                    "one first, or choose another namespace"
                )
        if not bound:
            journal.enter(NetnsUsed(path))
            return
        from tapwright.linux import netns  # read-only commands do not need it

        entry = journal.enter(Netns(bound, namespace_of(path)))
        try:
            netns.bind(path, bound)
        except OSError as error:
            journal.release(entry)
            raise NetworkError(
                f"the network namespace {path} can't be kept as {bound}: {error.strerror}"
            ) from None


def namespace_of(path: str) -> dict[str, Any] | None:
    """Return what identifies a namespace in a journal; None if there is no namespace."""
    found = namespaces.at(path) if path else None
    return found._asdict() if found else None


def is_still(namespace: Any, path: str) -> bool:
    """Whether a path leads to the `namespace` of an entry. An entry of an earlier version has none;
    then any namespace counts."""
    known = namespaces.from_json(namespace)
    if known is None:
        return namespaces.at(path) is not None
    return namespaces.leads_to(path, known)


def is_still_there(entry: dict[str, Any]) -> bool:
    """Whether the place of a device is still the one in the entry: numbers of namespaces are used
    again, and so are paths."""
    try:
        is_there = _place(entry) == str(entry["place"])
    except OSError:
        return False
    return is_there and ("netns" not in entry or is_still(entry.get("namespace"), entry["netns"]))


@contextlib.contextmanager
def _claiming(sandboxes: Path) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """Be the only process that enters something that other sandboxes may hold; yield the journal
    entries of all sandboxes, each with the id of its sandbox. Raises SandboxStateError."""
    journals = _Journals(sandboxes)
    # Before other processes wait for this one: it takes long if there are many.
    for _ in journals.entries():
        pass
    with closing(os.open(sandboxes, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        if not filelock.locked_within(fd, _CLAIM_SECONDS):
            raise SandboxStateError("another sandbox takes very long to claim a device; try again")
        yield journals.entries()


def _same(one: object, other: str) -> bool:
    try:
        # The other entry is another sandbox's, whose journal may be damaged.
        return isinstance(one, str) and os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def _place(entry: dict[str, Any]) -> str:
    """Return what identifies a device among all devices of the host."""
    if "socket" in entry:
        return f"socket {os.path.realpath(entry['socket'])}"
    return f"netns {os.stat(entry['netns']).st_ino} interface {entry['index']}"


class _Journals:
    """The journals of all sandboxes. Each is read once, and again when its file has changed."""

    def __init__(self, sandboxes: Path) -> None:
        self._sandboxes = sandboxes
        self._read: dict[str, tuple[tuple[int, ...], list[dict[str, Any]]]] = {}

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in names(self._sandboxes):
            try:
                status = os.stat(self._sandboxes / name / FILE)
                version = status.st_ino, status.st_mtime_ns, status.st_size
                known = self._read.get(name)
                if known is None or known[0] != version:
                    # A file that was written just now can be written again within a tick of the
                    # clock.
                    is_new = time.time() - status.st_mtime < _SETTLED_SECONDS
                    found = held(self._sandboxes / name)
                    known = version, found
                    if not is_new:
                        self._read[name] = known
            except (FileNotFoundError, SandboxStateError):
                continue  # just deleted; other calls report a damaged record
            for entry in known[1]:
                yield name, entry


def discard(directory: Path) -> None:
    """Remove the directory of a sandbox that holds nothing any more; the name is free at once.
    Raises SandboxStateError."""
    try:
        claims.discard(directory)
    except OSError as error:
        raise SandboxStateError(
            f"sandbox {directory.name!r} is taken back, but {directory} can't be removed: "
            f"{error.strerror}; {files.remedy(error)}, and delete it again"
        ) from None


def names(sandboxes: Path) -> list[str]:
    """Return the ids of all sandboxes."""
    return claims.names(sandboxes)
