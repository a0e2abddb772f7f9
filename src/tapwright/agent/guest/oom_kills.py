"""Processes of containers that the guest's kernel has killed for want of memory: who stands for the
container on the host is told, as its platform would see it there in a control group of the host.

The kernel counts them, in a group and those below it, and says when the count changes
(Documentation/admin-guide/cgroup-v2.rst: memory.events).
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
        """Have `tell` called with how many there were by then, whenever that is more than before;
        a guest without the controller has none."""
        with contextlib.suppress(OSError):
            libc.inotify_add_watch(self._fd, cgroups.memory_events(cgroup), _MODIFY)
        self._followed[cgroup] = 0, tell

    def forget(self, cgroup: str) -> None:
        self._followed.pop(cgroup, None)  # the watch ends with the file

    def look(self, cgroup: str) -> None:
        """At once, for what the kernel says comes some time later."""
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
