"""Gives the guest's kernel the host's settings that belong to a whole host, and the time.

A container by runc has the host's. `nics.guest_settings` has those of the network, which belong to
a namespace. Runs in the supervisor.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.errors import AgentError, AgentRefusedError

SETTINGS = (
    *("vm/max_map_count", "vm/overcommit_memory"),
    *("fs/inotify/max_queued_events", "fs/inotify/max_user_instances"),
    *("fs/inotify/max_user_watches", "fs/epoll/max_user_watches"),
    *("fs/file-max", "fs/aio-max-nr", "fs/pipe-max-size"),
    *("fs/pipe-user-pages-hard", "fs/pipe-user-pages-soft"),
    *("fs/protected_fifos", "fs/protected_hardlinks", "fs/protected_regular"),
    *("fs/protected_symlinks", "fs/suid_dumpable", "fs/lease-break-time"),
    *("kernel/core_pattern", "kernel/core_uses_pid", "kernel/pid_max", "kernel/threads-max"),
    *("kernel/keys/maxbytes", "kernel/keys/maxkeys"),
    *("kernel/keys/root_maxbytes", "kernel/keys/root_maxkeys"),
    *("kernel/randomize_va_space", "kernel/yama/ptrace_scope", "kernel/perf_event_paranoid"),
    *("net/core/rmem_default", "net/core/rmem_max", "net/core/wmem_default", "net/core/wmem_max"),
    *("net/core/netdev_max_backlog", "net/core/optmem_max", "net/ipv4/tcp_max_orphans"),
    *(f"net/{ip}/neigh/default/gc_thresh{n}" for ip in ("ipv4", "ipv6") for n in (1, 2, 3)),
    "net/netfilter/nf_conntrack_max",
    *(
        f"user/max_{kind}_namespaces"
        for kind in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
    ),
)
"""Below /proc/sys. Without settings of hardware that the guest lacks (vm/swappiness, kernel/numa_…)
and fs/nr_open, which is as high in the guest as any container may want."""

_SECONDS = 30.0
_MOST_OFF = 0.1
"""Seconds by which the guest's clock may be off, besides the time that the question takes."""
_LAST_SECOND = 1 << 62
"""No clock reaches this second, and arithmetic with it does not fail."""
_STRICT = "2"  # vm/overcommit_memory: the guest has no memory for what is never used

_log = logging.getLogger(__name__)


class HostKernel:
    """Follows the host's kernel, whose settings are in the directory `settings`."""

    def __init__(self, agent: AgentClient, settings: Path = Path("/proc/sys")) -> None:
        self._agent = agent
        self._settings = settings
        self._reported: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Give the guest the settings before the block, and changes soon after they happen. The
        guest has the time already."""
        await self.carry()
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def carry(self) -> None:
        """Give the guest those settings that it has not been given, or that have changed since."""
        await self._try(self._change_settings)

    async def look(self) -> None:
        """Carry what has changed into the guest. Raises AgentError, AgentRefusedError."""
        await self._change_settings()
        await self._set_clock()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS)
            await self._try(self.look)

    async def _try(self, work: Callable[[], Awaitable[None]]) -> None:
        # The agent may be restarting, or older than these requests.
        try:
            await work()
        except (AgentError, AgentRefusedError) as error:
            _log.info("the guest does not follow the host's kernel: %s", error)

    async def _change_settings(self) -> None:
        """Send only settings that have changed on the host: a value that a program in the guest has
        set stays, as it would on the host."""
        found = self._read()
        changed = [
            [path, value] for path, value in found.items() if self._reported.get(path) != value
        ]
        if not changed:
            return
        answer = await self._agent.call(requests.change_kernel_settings(changed))
        self._reported |= found
        _log.debug("not for the guest's kernel: %s", answer.get("refused"))

    def _read(self) -> dict[str, str]:
        found = {}
        for path in SETTINGS:
            with contextlib.suppress(OSError):  # kernels differ, and namespaces
                found[path] = (self._settings / path).read_text().strip()
        if found.get("kernel/core_pattern", "").startswith("|"):
            del found["kernel/core_pattern"]  # a program of the host
        if found.get("vm/overcommit_memory") == _STRICT:
            del found["vm/overcommit_memory"]
        return found

    async def _set_clock(self) -> None:
        before = time.time()
        answer = await self._agent.call(requests.tell_time())
        after = time.time()
        seconds = answer.get("seconds")
        if not isinstance(seconds, int | float) or not abs(seconds) < _LAST_SECOND:
            raise AgentError("the agent's answer has no time")
        if not before - _MOST_OFF <= seconds <= after + _MOST_OFF:
            _log.info("the guest's clock was off by %.1f s", seconds - after)
            await self._agent.call(requests.set_clock(time.time()))
