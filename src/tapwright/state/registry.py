"""Finds and lists sandboxes, from files alone; nothing here waits for a sandbox that has died.

Every command loads the module, so it imports little.
"""

import os
from collections.abc import Callable
from pathlib import Path

from tapwright.dataclass import dataclass
from tapwright.errors import SandboxNotFoundError, SandboxStateError, UsageError
from tapwright.state import ownership, supervisors
from tapwright.state.record import CREATING, FILE, RUNNING, Record, load

DEAD = "dead"

Load = Callable[[Path], Record]


@dataclass(frozen=True)
class Sandbox:
    """A sandbox as the files show it. `status` is creating, running, or dead if no process
    supervises it any more. `problem` says why it is dead, or why its record can't be read."""

    id: str
    status: str
    directory: Path
    record: Record | None
    problem: str = ""

    def check_running(self) -> None:
        """Raises SandboxStateError unless the sandbox runs."""
        if self.status != RUNNING:
            reason = f" ({self.problem})" if self.problem else ""
            raise SandboxStateError(f"sandbox {self.id!r} is {self.status}{reason}, not running")

    def readable_record(self) -> Record:
        """Raises SandboxStateError when the record can't be read."""
        if self.record is None:
            raise SandboxStateError(self.problem)
        return self.record


def directory_of(root: str | Path) -> Path:
    return Path(root, "sandboxes")


def find(root: str | Path, prefix: str) -> Sandbox:
    """Return the sandbox of this id, or the only one whose id begins with it.

    Raises SandboxNotFoundError, and UsageError if there are several.
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


def listing(root: str | Path, load: Load = load) -> list[Sandbox]:
    """Return all sandboxes, from files alone, in the order of their ids."""
    directories = [directory_of(root) / name for name in ownership.names(directory_of(root))]
    return [sandbox for one in directories if (sandbox := look_at(one, load))]


class Remembered:
    """Reads records as `record.load` does, and again only those whose file has changed: for
    programs that list sandboxes often, and change no record."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int], Record]] = {}

    def listing(self, root: str | Path) -> list[Sandbox]:
        """Return all sandboxes in a root, which must be the same in each call."""
        found = listing(root, self._load)
        here = {sandbox.directory for sandbox in found}
        self._known = {place: known for place, known in self._known.items() if place in here}
        return found

    def _load(self, directory: Path) -> Record:
        status = os.stat(directory / FILE)
        # A changed record is another file (`record.save`).
        file = status.st_ino, status.st_mtime_ns, status.st_size
        known = self._known.get(directory)
        if known and known[0] == file:
            return known[1]
        record = load(directory)
        self._known[directory] = file, record
        return record


def look_at(directory: Path, load: Load = load) -> Sandbox | None:
    # First whether a supervisor lives, then the record: so a sandbox that ends in between is not
    # taken for one that never ran.
    alive = supervisors.is_alive(directory)
    try:
        record = load(directory)
    except FileNotFoundError:
        return None
    except SandboxStateError as error:
        # A record of a newer version, for example, may have a supervisor all the same.
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
