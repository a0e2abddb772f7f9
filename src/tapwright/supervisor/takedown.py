"""A supervisor takes its own sandbox back, when `sandbox.deletion` has asked for that: its networks
while QEMU ends, then the rest. The process that asked tries again where this fails, reports the
error, and handles damaged records.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tapwright.errors import SandboxStateError
from tapwright.hypervisor import orphans
from tapwright.state import control_group, ownership, rebinding, teardown
from tapwright.state.record import Journal, load


def networks(directory: Path) -> list[str]:
    """Take back what need not wait for QEMU's end; return what failed, in words."""
    with suppress(SandboxStateError):
        if journal := _journal(directory):
            return teardown.take_back_networks(journal)
    return []


def rest(directory: Path, left: Sequence[str]) -> None:
    """Take back all that the sandbox still holds, after QEMU's end. Where something is `left`
    already, the process that asked does that."""
    orphans.end(os.getpid())
    if left:
        return
    with suppress(SandboxStateError):
        journal = _journal(directory)
        if journal and not teardown.take_back(journal):
            ownership.discard(directory)


def _journal(directory: Path) -> Journal | None:
    """What is to be taken back; None where the control group can't be removed before this process
    has ended. Raises SandboxStateError."""
    record = load(directory)
    if not control_group.leave(record):
        return None
    rebinding.bind_again(directory)
    return Journal(directory, record)
