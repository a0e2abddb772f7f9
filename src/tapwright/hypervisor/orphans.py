"""Ends the processes that are left of a sandbox whose supervisor has ended.

The module is apart from `process`, because a deletion starts no QEMU and should not load what a
start needs.
"""

import os
import re
from collections.abc import Collection
from functools import partial

from tapwright.hypervisor import users
from tapwright.linux import ending
from tapwright.linux.files import closing

_ORPHAN_SECONDS = 2.0
_PARENT_AND_USER = re.compile(rb"^PPid:\t(\d+)$.*?^Uid:\t(\d+)", re.MULTILINE | re.DOTALL)
_STATUS_BYTES = 4096


def end(supervisor: int) -> None:
    """Kill the QEMU that is left of an ended supervisor, and wait for its end.

    QEMU dies with its supervisor anyway. This makes sure, also of a QEMU that a guest has taken
    over. A new process may have the supervisor's pid by now; that process's own QEMU stays.
    """
    ending.await_exit(supervisor, _ORPHAN_SECONDS)  # until then it is QEMU's parent
    uids = users.all_of(supervisor)
    processes = map(int, filter(str.isdecimal, os.listdir("/proc")))
    for pid in [pid for pid in processes if _is_orphan(pid, uids, supervisor)]:
        ending.end(pid, _ORPHAN_SECONDS, partial(_is_orphan, pid, uids, supervisor))


def _is_orphan(pid: int, uids: Collection[int], parent_not: int) -> bool:
    """Whether a process belongs to one of these users, and to another parent."""
    # This looks at all processes of the host, so it does as little as possible with each (proc(5)).
    try:
        with closing(os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)) as fd:
            found = _PARENT_AND_USER.search(os.read(fd, _STATUS_BYTES))
    except OSError:
        return False  # the process ended in the meantime
    return found is not None and int(found[2]) in uids and int(found[1]) != parent_not
