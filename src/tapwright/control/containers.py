"""Containers in a sandbox's guest: the requests of the control socket about them. Runs in the
supervisor. This module checks what comes from the guest, so callers can rely on it.
"""

import re
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from tapwright import shapes
from tapwright.agent.client import AgentClient
from tapwright.agent.requests import of
from tapwright.errors import AgentError

_DEVICE = re.compile(r"\d{1,9}:\d{1,9}", re.ASCII)

_PROCESS: dict[str, Any] = {
    "pid": int,
    "ppid": int,
    "uid": int,
    "gid": int,
    "state": str,
    "started": float,
    "cpu": float,
    "command": list[str],
}

Operation = Callable[..., Coroutine[Any, Any, Any]]


# Requests without a result, and the seconds that each may take. Arguments: `id`, and
#   signal_container: `signal`; with `all` it goes to all processes, not only to the first one
#   update_container: `resources`, an OCI LinuxResources object
#   delete_container: with `force` a running one, too; one that does not exist is no failure
#   set_sysctls: `sysctls` instead of `id`
_DEEDS = {
    "start_container": 60.0,
    "signal_container": 60.0,
    "pause_container": 60.0,
    "resume_container": 60.0,
    "update_container": 60.0,
    "delete_container": 120.0,
    "set_sysctls": 60.0,
}


class Containers:
    """The requests that get one answer, by name. Each takes the `id` of a container, except
    `set_sysctls`, for the network that all containers share. Each raises AgentError,
    ContainerError. `on_kill` gets the id of a container to which SIGKILL goes."""

    def __init__(self, agent: AgentClient, on_kill: Callable[[str], None]) -> None:
        self._agent = agent
        self._on_kill = on_kill

    def by_name(self) -> dict[str, Operation]:
        questions = (self.container_processes, self.container_statistics)
        return {
            **{op: partial(self._do, op, seconds) for op, seconds in _DEEDS.items()},
            **{question.__name__: question for question in questions},
        }

    async def container_processes(self, **which: Any) -> list[dict[str, Any]]:
        """pid, ppid, uid, gid, state (a letter, proc(5)), started (seconds after the guest's boot),
        cpu (seconds) and command (words) of each process; pids are those of the guest."""
        found = (await self._agent.call(of("container_processes", **which))).get("processes")
        if not isinstance(found, list) or not all(map(_is_process, found)):
            raise AgentError("the agent's answer has no proper list of processes")
        return [{key: process[key] for key in _PROCESS} for process in found]

    async def container_statistics(self, **which: Any) -> dict[str, Any]:
        """Numbers of the container's control group (cgroup v2), by the names of the kernel's files:
        `cpu`, `memory` (with `stat` and `events`), `pids`, `io` (by device); None for "max". Also
        numbers of the guest's network: `interfaces` (by name), and sockets: `tcp`, `tcp6`, `udp`,
        `udp6`."""
        found = await self._agent.call(of("container_statistics", **which))
        if not _is_numbers(found) or not _are_statistics(found):
            raise AgentError("the agent's answer has no proper numbers")
        return found

    async def _do(self, op: str, seconds: float, **arguments: Any) -> None:
        if op == "signal_container" and arguments.get("signal") == signal.SIGKILL:
            self._on_kill(str(arguments.get("id")))
        await self._agent.call(of(op, **arguments), seconds)


def _is_process(entry: object) -> bool:
    return isinstance(entry, dict) and not shapes.mistake(entry, _PROCESS)


def _is_numbers(content: object, depth: int = 3) -> bool:
    """Whether it is a table of numbers, or of such tables."""
    if isinstance(content, dict):
        return depth > 0 and all(_is_numbers(value, depth - 1) for value in content.values())
    return content is None or _is_count(content)


def _is_count(value: object) -> bool:
    """Whether it is a number that a counter of a kernel can have."""
    return type(value) is int and 0 <= value < 1 << 64


def _are_statistics(found: dict[str, Any]) -> bool:
    """Whether the numbers that exist have the form of a control group's."""
    tables = [found.get(name, {}) for name in ("cpu", "memory", "pids", "io")]
    if not all(isinstance(table, dict) for table in tables):
        return False
    cpu, memory, pids, devices = tables
    inner = [memory.get(name, {}) for name in ("stat", "events")]
    inner += [cpu, *devices.values()]
    limits = [value for name, value in memory.items() if name not in ("stat", "events")]
    return (
        all(isinstance(table, dict) and all(map(_is_count, table.values())) for table in inner)
        and all(value is None or _is_count(value) for value in [*limits, *pids.values()])
        and all(_DEVICE.fullmatch(device) for device in devices)
    )
