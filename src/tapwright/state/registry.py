"""Find and list sandboxes, from files alone: nothing here waits for one that has died.

Loaded by every command, so it imports little.
"""

from dataclasses import dataclass
from pathlib import Path

from tapwright.errors import SandboxNotFoundError, SandboxStateError, UsageError
from tapwright.state import ownership
from tapwright.state.record import CREATING, RUNNING, Record, load

DEAD = "dead"


@dataclass(frozen=True)
class Sandbox:
    """What there is to know of a sandbox. `status` is creating, running, or dead when no process
    supervises it any more; `problem` says why, or why its record can't be read."""

    id: str
    status: str
    directory: Path
    record: Record | None
    problem: str = ""


def directory_of(root: str | Path) -> Path:
    return Path(root, "sandboxes")


def find(root: str | Path, prefix: str) -> Sandbox:
    """The sandbox of that id, or the only one whose id begins so.

    Raises SandboxNotFoundError, and UsageError when there are several.
    """
    known = ownership.names(directory_of(root))
    found = [prefix] if prefix in known else [name for name in known if name.startswith(prefix)]
    if not found or not prefix:
        raise SandboxNotFoundError(
            f"there is no sandbox {prefix!r}; see 'tapwright --root {root} sandbox list'"
        )
    if len(found) > 1:
        raise UsageError(f"{prefix!r} is the beginning of several ids: {', '.join(found)}")
    sandbox = look_at(directory_of(root) / found[0])
    if sandbox is None:
        raise SandboxNotFoundError(f"the sandbox {found[0]!r} has just been deleted")
    return sandbox


def listing(root: str | Path) -> list[Sandbox]:
    """All sandboxes, from files alone, in the order of their ids."""
    directories = [directory_of(root) / name for name in ownership.names(directory_of(root))]
    return [sandbox for sandbox in map(look_at, directories) if sandbox]


def look_at(directory: Path) -> Sandbox | None:
    # First whether somebody lives, then the record: so a sandbox that ends in between is not
    # taken for one that never ran.
    alive = ownership.is_alive(directory)
    try:
        record = load(directory)
    except FileNotFoundError:
        return None
    except SandboxStateError as error:
        # One of a newer version, for instance, may be supervised all the same.
        return Sandbox(directory.name, RUNNING if alive else DEAD, directory, None, str(error))
    if alive:
        return Sandbox(record.id, record.status, directory, record)
    reasons = {
        CREATING: "it was never finished",
        RUNNING: "its supervisor was killed",
    }
    return Sandbox(
        record.id, DEAD, directory, record, record.failure or reasons.get(record.status, "")
    )
