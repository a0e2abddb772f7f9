"""The control groups of nodes, which outlive what is in them."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from tapwright.linux import cgroups


def fresh(name: str) -> str:
    """The path of one that is still to be made."""
    return f"/twkube-{os.urandom(4).hex()}-{name}"


def end(group: str) -> bool:
    """End what is in it; whether nothing is left of it. For `eventually`."""
    tops = [Path(one.directory(group)) for one in cgroups.hierarchies()]
    for top in tops:
        for directory, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                for pid in Path(directory, "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            with suppress(OSError):
                os.rmdir(directory)
    return not any(top.exists() for top in tops)
