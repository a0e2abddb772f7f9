"""Protects the agent from the kernel's OOM killer. Containers can use up the memory, and the end of
the agent would end all containers."""

import contextlib
import os

from tapwright.agent.guest.files import write

_SCORE = "/proc/self/oom_score_adj"
_NEVER = "-1000"
AS_OTHERS = 0
_ROOT = "/sys/fs/cgroup"
_GROUP = f"{_ROOT}/tapwright-agent"
# The kernel leaves the agent's group so much memory; the agent itself needs half of it.
_KEPT_BYTES = 32 << 20


def spare() -> None:
    """Keep the kernel from killing this process for memory, and keep some memory for it."""
    with contextlib.suppress(OSError):
        write(_SCORE, _NEVER)
    with contextlib.suppress(OSError):
        write(f"{_ROOT}/cgroup.subtree_control", "+memory")
        os.makedirs(_GROUP, exist_ok=True)
        write(f"{_GROUP}/memory.min", str(_KEPT_BYTES))
        write(f"{_GROUP}/cgroup.procs", "0")


def may_be_killed(pid: int, score: int = AS_OTHERS) -> None:
    """Let the kernel kill a child that was just started, and what the child starts, with this score
    (`oom_score_adj`). A child starts with the agent's score, so the agent sets the child's score.
    The agent's own score never changes: while it had another one, the kernel could kill the agent.
    (A child stays in the agent's group and shares its kept memory, unless the child goes to a group
    of its own, as containers do: moving it takes the kernel longer than starting it.)"""
    with contextlib.suppress(OSError):
        write(f"/proc/{pid}/oom_score_adj", str(score))
