"""The first steps of a sandbox: control group, namespace, QEMU on a template, the CNI chains.

The supervisor takes these steps before it loads its other modules, which takes as long as QEMU's
start. Slow steps (booting a guest, making a template) are in `bringup`. Everything is in the
journal before it is made.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tapwright.errors import NetworkError, TapwrightError
from tapwright.hypervisor import accelerator, restoring
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.restoring import Restoring
from tapwright.hypervisor.template_store import Store
from tapwright.linux import netns
from tapwright.progress import Progress
from tapwright.state import control_group, ownership
from tapwright.state.entries import Netns
from tapwright.state.record import Journal, Place
from tapwright.supervisor import starts
from tapwright.supervisor.attachments import Attaching
from tapwright.supervisor.turns import Turn

if TYPE_CHECKING:
    from tapwright.supervisor.prepared import Prepared

_MEMORY = "memory"
_HOLDERS = "sandboxes", "spares"  # directories beside each other


@dataclass
class Early:
    """The steps that have begun. `machine` is None while the accelerator is unknown, `restoring`
    while the guest has not started. `netns` is a descriptor that keeps the sandbox's namespace as
    long as this process lives, even when its path is removed. `prepared` is the guest of a
    spare, which needs no turn to start."""

    machine: Machine | None
    restoring: Restoring | None
    attaching: Attaching
    netns: int | None
    prepared: "Prepared | None" = None
    turn: Turn | None = None

    def end(self) -> None:
        """Wait for the chains, and end QEMU if it still runs."""
        self.attaching.wait()
        if self.restoring:
            self.restoring.spawned.kill()


def begin(journal: Journal, warn: Progress, prepared: "Prepared | None" = None) -> Early:
    """Begin the steps; `warn` gets what is left out. Raises NetworkError, SandboxStateError,
    ConfigError before any has begun."""
    record = journal.record
    if prepared:
        return _begin_with(journal, warn, prepared)
    # QEMU and the plugins start in the group.
    control_group.enter(journal, warn)
    machine = record.spec.machine
    verdict = accelerator.known(machine)
    kept = None
    turn = starts.wanted(record.spec.most_starts)
    if record.place is not Place.HOST:
        with journal.phase("namespace"):
            _make_netns(journal)
            kept = _opened(record.netns)
    if verdict is None:
        return Early(None, None, Attaching(journal), kept, turn=turn)
    record.accelerator, record.accelerator_reason = verdict
    machine = replace(machine, accelerator=verdict[0])
    # QEMU first: forking takes longer in a process with several threads.
    begun = _restoring(journal, machine) if turn is None or turn.has_come() else None
    return Early(machine, begun, Attaching(journal), kept, turn=turn)


def _begin_with(journal: Journal, warn: Progress, prepared: "Prepared") -> Early:
    record = journal.record
    with journal.phase("namespace"):
        _make_netns(journal, prepared.netns_fd)
        kept = _opened(record.netns)
    machine = prepared.machine
    record.accelerator, record.accelerator_reason = machine.accelerator, prepared.accelerator_reason
    if prepared.memory is not None:
        Holders(journal.directory).enter(prepared.memory)
    # The kernel takes 10 ms to move the first process (cgroup_attach_lock() waits for RCU).
    # Meanwhile, the guest begins anew. The plugins start in the group.
    moved = partial(control_group.enter, journal, warn, prepared.qemu.pids())
    return Early(machine, None, Attaching(journal, moved), kept, prepared)


class Holders:
    """The sandboxes and spares of one root that hold a template's memory. Each has a link to that
    memory in its directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def paths(self) -> Iterator[str]:
        # One by one, because the caller usually needs only the first.
        for folder in _HOLDERS:
            for link in self._directory.parent.parent.glob(f"{folder}/*/{_MEMORY}"):
                with contextlib.suppress(OSError):
                    yield os.readlink(link)

    def enter(self, fd: int) -> None:
        link = self._directory / _MEMORY
        link.unlink(missing_ok=True)  # of a try that failed
        link.symlink_to(f"/proc/{os.getpid()}/fd/{fd}")


def _restoring(journal: Journal, machine: Machine) -> Restoring | None:
    """Start to restore the guest from the template. None where no template exists, and after a
    failure: `bringup` tries again, and reports the failure."""
    directory = journal.record.spec.template
    if not directory:
        return None
    with contextlib.suppress(TapwrightError, OSError), journal.phase("template"):
        if found := Store(Path(directory)).find_for(machine):
            try:
                return restoring.begin(machine, found, Holders(journal.directory))
            except BaseException:
                found.close()
                raise
    return None


def _make_netns(journal: Journal, prepared_fd: int | None = None) -> None:
    """Make or claim the sandbox's namespace. Instead of a new one, bind that of `prepared_fd`."""
    record = journal.record
    path, given = record.netns, record.spec.netns
    if record.place is not Place.MADE and not netns.exists(given):
        raise NetworkError(f"there is no network namespace at {given}")
    if record.place is Place.GIVEN:
        ownership.claim_netns(journal, path)
        return
    if os.path.exists(path):
        raise NetworkError(
            f"{path} exists, and is not this sandbox's; choose another id, or remove it if it is "
            f"unused: ip netns delete {os.path.basename(path)}"
        )
    if record.place is Place.BOUND:
        ownership.claim_netns(journal, given, bound=path)
        return
    entry = journal.enter(Netns(path))
    try:
        if prepared_fd is None:
            netns.create(path)
        else:
            netns.bind(f"/proc/self/fd/{prepared_fd}", path)
    except OSError as error:
        journal.release(entry)
        raise NetworkError(f"no network namespace at {path}: {error.strerror}") from None
    # The next entry writes this one, too: until then no other process knows of the namespace.
    entry["namespace"] = ownership.namespace_of(path)


def _opened(path: str) -> int:
    """Raises NetworkError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"the network namespace {path} is gone: {error.strerror}") from None
