"""The control group that a sandbox's processes are in: this one, QEMU, virtiofsd, the monitor.

The OCI runtime makes and removes a platform's (`oci.cgroup`); the journal has one of
the sandbox's own.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from tapwright.linux import cgroups
from tapwright.state.entries import ControlGroup
from tapwright.state.record import Journal, Record


def enter(journal: Journal, warn: Callable[[str], None], others: Iterable[int] = ()) -> None:
    """Move this process there, so that all it starts is there, and others that it has started;
    `warn` gets what can't be moved, which costs no sandbox. Raises SandboxStateError when the
    journal can't be written."""
    spec = journal.record.spec
    pids = [os.getpid(), *others]
    for pid in pids:
        with suppress(OSError):  # lowered by root alone, which may have to do without the right
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
    """Set the limits of an own one. They are those of a sandbox that runs: to make a template takes
    more, of what is ours alone."""
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


def remove(path: str) -> None:
    """Take an own one back, with the group above when that is empty. A process that a plugin has
    left there goes on elsewhere. Raises OSError."""
    cgroups.remove(path, evict=True)
    above = path.rpartition("/")[0]
    if above:
        cgroups.remove_if_empty(above)
