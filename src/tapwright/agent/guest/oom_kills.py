"""Reports processes of containers that the guest's kernel killed because memory was used up. The
host's end of the container gets the report, so the platform can see the kill in a control group of
the host.

The kernel counts the kills in a group and in the groups below it, and reports each change of the
count (Documentation/admin-guide/cgroup-v2.rst: memory.events).
"""

import contextlib
import os
import select
from collections.abc import Callable

from tapwright.agent.guest import cgroups
from tapwright.agent.guest.events import Watcher
from tapwright.linux import libc

_MODIFY = 0x2  # include/uapi/linux/inotify.h
_READ_BYTES = 64 * 1024


class OomKills:
    """Raises OSError."""

    def __init__(self, watch: Watcher) -> None:
        self._fd = libc.inotify_init(os.O_NONBLOCK | os.O_CLOEXEC)
        self._followed: dict[str, tuple[int, Callable[[int], None]]] = {}
        watch.add(self._fd, select.EPOLLIN, self._changed)

    def follow(self, cgroup: str, tell: Callable[[int], None]) -> None:
        """Call `tell` with the number of kills so far, whenever it has grown. A guest without the
        memory controller counts none."""
        with contextlib.suppress(OSError):
            libc.inotify_add_watch(self._fd, cgroups.memory_events(cgroup), _MODIFY)
        self._followed[cgroup] = 0, tell

    def forget(self, cgroup: str) -> None:
        self._followed.pop(cgroup, None)  # the watch ends with the file

    def look(self, cgroup: str) -> None:
        """Read the count at once: the kernel reports a change some time later."""
        if cgroup not in self._followed:
            return
        known, tell = self._followed[cgroup]
        found = cgroups.oom_kills(cgroup)
        if found > known:
            self._followed[cgroup] = found, tell
            tell(found)

    def _changed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _READ_BYTES):
                pass
        for cgroup in list(self._followed):
            self.look(cgroup)
