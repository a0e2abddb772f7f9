"""What is left of the processes of a sandbox whose supervisor has ended.

Apart from `process`, because a deletion starts no QEMU and need not load what a start takes.
"""

import os
import re
from collections.abc import Collection
from functools import partial

from tapwright.hypervisor import users
from tapwright.linux import ending

_ORPHAN_SECONDS = 2.0
_PARENT_AND_USER = re.compile(rb"^PPid:\t(\d+)$.*?^Uid:\t(\d+)", re.MULTILINE | re.DOTALL)
_STATUS_BYTES = 4096


def end(supervisor: int) -> None:
    """Kill what QEMU is left of a supervisor that has ended, and wait for its end.

    It dies with the supervisor anyway; this makes sure, also of a QEMU that a guest has taken
    over. A new process may bear the supervisor's pid: that one's own QEMU is left alone.
    """
    uids = users.all_of(supervisor)
    processes = map(int, filter(str.isdecimal, os.listdir("/proc")))
    for pid in [pid for pid in processes if _is_orphan(pid, uids, supervisor)]:
        ending.end(pid, _ORPHAN_SECONDS, partial(_is_orphan, pid, uids, supervisor))


def _is_orphan(pid: int, uids: Collection[int], parent_not: int) -> bool:
    """Whether a process is of one of these users, and another parent's."""
    # All processes of the host are looked at: no more is done with each than must be (proc(5)).
    try:
        fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = _PARENT_AND_USER.search(os.read(fd, _STATUS_BYTES))
        finally:
            os.close(fd)
    except OSError:
        return False  # ended in the meantime
    return found is not None and int(found[2]) in uids and int(found[1]) != parent_not
