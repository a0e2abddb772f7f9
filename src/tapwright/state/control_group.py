"""The control group of a sandbox's processes: supervisor, QEMU, virtiofsd, monitor.

The OCI runtime makes and removes a platform's group (`oci.cgroup`); the journal has a group of the
sandbox's own.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from tapwright.linux import cgroups
from tapwright.state.entries import ControlGroup
from tapwright.state.record import Journal, Record


def enter(journal: Journal, warn: Callable[[str], None], others: Iterable[int] = ()) -> None:
    """Move this process to the group, with its later children and with others that it has started.
    `warn` gets what can't be moved; the sandbox goes on without that. Raises SandboxStateError when
    the journal can't be written."""
    spec = journal.record.spec
    pids = [os.getpid(), *others]
    for pid in pids:
        with suppress(OSError):  # only root can lower it, and root may lack the capability
            Path(f"/proc/{pid}/oom_score_adj").write_text(str(spec.oom_score_adj))
    if not spec.cgroup:
        return
    record, failures = journal.record, []
    record.cgroup = spec.cgroup
    if spec.cgroup_of_its_own:
        record.cgroup = cgroups.fresh(spec.cgroup, record.id)
        journal.enter(ControlGroup(record.cgroup))
        failures += cgroups.make(record.cgroup)
    for pid in pids:
        failures += cgroups.join(record.cgroup, pid)
    if failures:
        warn(f"control group {record.cgroup}: {cgroups.summed(failures)}; the sandbox is not in it")


def bound(record: Record, warn: Callable[[str], None]) -> None:
    """Set the limits of a group of the sandbox's own. They are those of a running sandbox: making a
    template takes more, of Tapwright's own."""
    if not record.spec.cgroup_of_its_own:
        return
    if failures := cgroups.limit(record.cgroup, _limits(record.spec.cgroup_limits)):
        warn(
            f"control group {record.cgroup}: {cgroups.summed(failures)}; "
            "the host does not enforce it"
        )


def _limits(found: dict[str, int]) -> cgroups.Limits:
    return cgroups.Limits(
        memory=found.get("memory"),
        cpu_quota=found.get("cpu_quota"),
        cpu_period=found.get("cpu_period"),
        pids=found.get("pids"),
    )


def leave(record: Record) -> bool:
    """Take this process out of a group of the sandbox's own; whether it is in none then."""
    return not record.spec.cgroup_of_its_own or cgroups.leave(record.cgroup)


def remove(path: str) -> None:
    """Remove a group of the sandbox's own, and the group above if that is empty then. A process
    that a plugin has left there moves elsewhere. Raises OSError."""
    cgroups.remove(path, evict=True)
    above = path.rpartition("/")[0]
    if above:
        cgroups.remove_if_empty(above)
