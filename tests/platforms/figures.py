"""What a container is known to use, and what is counted of it on the host."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tapwright.linux import cgroups

SHARE = 0.2
MIB = 1 << 20
TAKEN = 60 * MIB
TAKE = "dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"
BURN = "timeout", "5", "sh", "-c", "while :; do :; done"

Shown = Callable[[], tuple[int, int]]
"""(ns of processors, bytes of memory), as a platform shows them."""


def used_by_vm(pid: int) -> int:
    """What the processes of the control group of a container's process have used, in ns, as
    /proc/PID/stat counts."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line.split(":", 2)[2] for line in lines if ":memory:" in line or line[:3] == "0::")
    total = 0
    for each in cgroups.members(path):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * 10**9 // os.sysconf("SC_CLK_TCK")


def check(shown: Shown, execute: Callable[[tuple[str, ...]], object], pid: int) -> None:
    """That a platform shows what programs take that are run in a container."""
    before = shown()[1]
    execute(TAKE)
    after = shown()[1]
    assert TAKEN * (1 - SHARE) < after - before < TAKEN * (1 + SHARE)
    first, counted = shown()[0], used_by_vm(pid)
    execute(BURN)
    second, counted_then = shown()[0], used_by_vm(pid)
    assert second - first == pytest.approx(counted_then - counted, rel=SHARE)
