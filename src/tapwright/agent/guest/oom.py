"""Whom the guest's kernel may kill when its memory is used up, which containers can use up: not the
agent. When that starts anew, all containers have ended."""

import contextlib
import os

from tapwright.agent.guest.files import write

_SCORE = "/proc/self/oom_score_adj"
_NEVER, _AS_OTHERS = "-1000", "0"
_ROOT = "/sys/fs/cgroup"
_GROUP = f"{_ROOT}/tapwright-agent"
# Of its memory so much is not taken from it for others: the agent's own takes half of that.
_KEPT_BYTES = 32 << 20


def spare() -> None:
    """Have this process never killed for want of memory, and its memory kept for it."""
    with contextlib.suppress(OSError):
        write(_SCORE, _NEVER)
    with contextlib.suppress(OSError):
        write(f"{_ROOT}/cgroup.subtree_control", "+memory")
        os.makedirs(_GROUP, exist_ok=True)
        write(f"{_GROUP}/memory.min", str(_KEPT_BYTES))
        write(f"{_GROUP}/cgroup.procs", "0")


def may_be_killed(pid: int) -> None:
    """Of a process that was just started, and has our score: from here on it can be killed, and so
    can what it starts. Our own score stays as it is: while it were another one, for a child to
    begin with, we could be killed. (A child stays in the group, where what is kept is shared with
    it, unless it goes to one of its own, as containers do: to move it takes the kernel longer than
    to start it.)"""
    with contextlib.suppress(OSError):
        write(f"/proc/{pid}/oom_score_adj", _AS_OTHERS)
