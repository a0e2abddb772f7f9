#!/usr/bin/env python3
"""How much memory one more sandbox takes.

    scripts/bench --only memory

One sandbox and BESIDE others, each on a CNI network with a network monitor, started from the same
template, and idle: of every process the proportional share (pages that N processes have mapped
count for one N-th in each) and what is its own (proc(5), smaps_rollup). So all of them are samples
of one more beside the others. Last, the share of two spares beside them.
"""

import os
import time
from pathlib import Path
from typing import TypedDict

from bench.place import NETWORK, Place, new_host, output
from bench.remains import processes
from bench.samples import Samples, rounded
from bench.start import have_spares
from tapwright.sandbox import spares
from tapwright.state import registry
from tapwright.state.registry import Sandbox

_SETTLE_SECONDS = 2.0
_MONITORS = ("/tapwright-netmon", "tapwright.netmon")

MiB = float


class Memory(TypedDict):
    """MiB of each sandbox, by kind of process: its share, and what it has alone. `template` is
    what the template's memory takes, once; `spare` the share of each spare."""

    beside: int
    guest: int
    share: dict[str, Samples]
    own: dict[str, Samples]
    template: MiB
    spare: Samples


def measure(place: Place, beside: int) -> Memory:
    new_host()
    root = place.root("memory")
    names = [f"bench-memory-{number}" for number in range(beside + 1)]
    before = _shared_memory()
    for name in names:
        words = ("sandbox", "run", name, "--network", NETWORK)
        output(place.command(root, *words, configuration=place.monitored))
    time.sleep(_SETTLE_SECONDS)  # what a process does after its start is over
    sandboxes = [registry.find(root, name) for name in names]
    share: dict[str, Samples] = {}
    own: dict[str, Samples] = {}
    for sandbox in sandboxes:
        _add(sandbox, share, own)
    template = _shared_memory() - before
    have_spares(root, place.spec(configuration=place.spared))
    time.sleep(_SETTLE_SECONDS)
    waiting = [float(spares.held_mib(spare)) for spare in spares.listing(root)]
    spares.drop(root)
    output(place.command(root, "sandbox", "delete", *names))
    return {
        "beside": beside,
        "guest": place.spec().machine.memory_mib,
        "share": {kind: rounded(values) for kind, values in share.items()},
        "own": {kind: rounded(values) for kind, values in own.items()},
        "template": round(template, 1),
        "spare": rounded(waiting),
    }


def _add(sandbox: Sandbox, share: dict[str, Samples], own: dict[str, Samples]) -> None:
    """Enter the memory of a sandbox's processes under their kinds."""
    found: dict[str, tuple[MiB, MiB]] = {}
    for pid, kind in kinds(sandbox).items():
        proportional, private_ = found.get(kind, (0.0, 0.0))
        fields = smaps(pid)
        alone = fields["Private_Clean"] + fields["Private_Dirty"]
        found[kind] = proportional + fields["Pss"], private_ + alone
    for kind, (proportional, private_) in found.items():
        share.setdefault(kind, []).append(proportional)
        own.setdefault(kind, []).append(private_)


def kinds(sandbox: Sandbox) -> dict[int, str]:
    """A sandbox's processes: which of them is the supervisor, QEMU, the monitor."""
    supervisor, *others = processes(sandbox)
    return {supervisor: "supervisor"} | {pid: _kind(pid) for pid in others}


def _kind(pid: int) -> str:
    if os.readlink(f"/proc/{pid}/exe").rpartition("/")[2].startswith("qemu-system"):
        return "QEMU"
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return "monitor" if any(word.endswith(_MONITORS) for word in words) else "other"


def smaps(pid: int) -> dict[str, MiB]:
    """The sums over all that a process has mapped: Pss, Private_Dirty, …"""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def _shared_memory() -> MiB:
    """Of the whole machine: memfds, and files in tmpfs (proc(5), meminfo)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) / 1024
    raise ValueError("/proc/meminfo has no Shmem")
