"""Makes the VM of a platform's containers large enough.

A VM needs room for its containers' limits, and for the guest itself. It starts with the limits that
are known then, and grows or shrinks when a container joins, changes its limits, or ends. The limits
of its control group on the host follow.

Runs in the supervisor.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.errors import AgentError, AgentRefusedError, HypervisorError
from tapwright.hypervisor.qemu import Qemu
from tapwright.linux import cgroups
from tapwright.sandbox.needs import MIB, Claim, Size, most, wanted
from tapwright.state.record import Journal

_TAKE_SECONDS, _MIB_A_SECOND, _MOST_SECONDS = 10.0, 256, 60.0
"""How long a guest may take to use new memory: a fixed time, more for each MiB, and a maximum."""
_UPDATE_SECONDS = 60.0
_PAUSE_SECONDS = 10.0
"""After the end of a container, before its room is given back: platforms may start another one."""

_log = logging.getLogger(__name__)


class Room:
    """The room in one VM. `spec.first` is the container that started the VM; with `spec.is_pod` it
    is a pause container, whose limits are the whole pod's."""

    def __init__(self, journal: Journal, qemu: Qemu, agent: AgentClient) -> None:
        self._journal = journal
        self._spec = journal.record.spec
        self._growth = qemu.growth
        self._agent = agent
        self._claims: dict[str, Claim] = {}
        self._pod = Claim(self._spec.pod_memory, self._spec.pod_cpus)
        self._host = -1, -1
        self._host = self._host_limits(self._spec.machine.memory_mib)
        self._vcpus = self._spec.machine.vcpus  # those that the guest uses
        self._turn = asyncio.Lock()
        self._later: asyncio.Task[None] | None = None

    def by_name(self) -> dict[str, Callable[..., Coroutine[Any, Any, Any]]]:
        return {"update_container": self.update_container}

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Let the VM shrink during the block; no work goes on after it."""
        try:
            yield
        finally:
            if self._later:
                self._later.cancel()
                await asyncio.gather(self._later, return_exceptions=True)

    async def admit(self, container: str, config: Any) -> None:
        """Make room for a new container. Raises HypervisorError."""
        if self._is_pod(container):
            return
        linux = config.get("linux") if isinstance(config, dict) else None
        resources = linux.get("resources") if isinstance(linux, dict) else None
        async with self._turn:
            self._claims[container] = Claim().changed(resources)
            if container == self._spec.first:
                self._host = self._host_limits(
                    self._spec.machine.memory_mib
                )  # it has been bound already
            try:
                await self._grow()
            except BaseException:
                del self._claims[container]
                self._bound_host(self._growth.memory_mib)
                raise

    def leave(self, container: str) -> None:
        """A container has ended."""
        if self._claims.pop(container, None) and not self._later:
            self._later = asyncio.create_task(self._shrink_later())

    async def update_container(self, **which: Any) -> dict[str, Any]:
        """Change the limits of the container `id` to `resources`, an OCI object. The VM grows
        before that, and shrinks after it; `warnings` name what the guest has not released. A
        failure changes nothing. Raises HypervisorError, AgentError, ContainerError."""
        container, resources = str(which.get("id")), which.get("resources")
        async with self._turn:
            before = self._claims.get(container), self._pod
            if self._is_pod(container):
                self._pod = self._pod.changed(resources)
            elif before[0]:
                self._claims[container] = before[0].changed(resources)
            try:
                warnings = await self._grow()
                await self._agent.call(requests.of("update_container", **which), _UPDATE_SECONDS)
            except BaseException:
                self._pod = before[1]
                if before[0] and container in self._claims:
                    self._claims[container] = before[0]
                await asyncio.shield(self._shrink())
                raise
            return {"warnings": [*warnings, *await self._shrink()]}

    def _is_pod(self, container: str) -> bool:
        return self._spec.is_pod and container == self._spec.first

    def _wanted(self) -> tuple[Size, list[str]]:
        """(the size that the VM needs, as far as it can have that; warnings)."""
        size = wanted(self._spec, self._pod, list(self._claims.values()))
        limit = most(self._spec)
        found = []
        if size.memory_mib > limit.memory_mib:
            found.append(
                f"the VM has {limit.memory_mib} MiB at most, and its containers may use "
                f"{size.memory_mib} MiB (default_maxmemory in [hypervisor.qemu])"
            )
        return Size(min(size.memory_mib, limit.memory_mib), min(size.vcpus, limit.vcpus)), found

    async def _grow(self) -> list[str]:
        """Let the VM grow to the needed size; return warnings. After a failure it has its old size,
        unless the guest keeps what it got. Raises HypervisorError."""
        size, warnings = self._wanted()
        for warning in warnings:
            _log.warning("%s", warning)
        growth = self._growth
        mib, cpus = max(0, size.memory_mib - growth.memory_mib), size.vcpus > self._vcpus
        self._bound_host(max(size.memory_mib, growth.memory_mib), raising=True)
        if not mib and not cpus:
            return warnings
        try:
            await self._use(0, self._vcpus)
        except AgentRefusedError as error:  # an agent that does not know the request
            return [*warnings, f"the VM stays as large as it is: {error}"]
        except AgentError as error:
            raise HypervisorError(f"the VM can't grow: {error}") from None
        growth.is_refused.clear()
        before, added = self._vcpus, list[str]()
        try:
            while mib:
                of_kernel = growth.for_kernel(mib)
                found = await self._agent.call(requests.expect_memory(bool(of_kernel)))
                added += await growth.add_memory(of_kernel or mib, lasting=bool(of_kernel))
                await self._take(_count(found, "memory") + (of_kernel or mib) * MIB, self._vcpus)
                mib -= of_kernel or mib
            while growth.vcpus < size.vcpus:
                await growth.add_cpu()
            if cpus:
                await self._take(0, size.vcpus)
                self._vcpus = size.vcpus
        except BaseException as error:
            await asyncio.shield(self._take_back(added, before))
            if isinstance(error, AgentError | HypervisorError):
                raise HypervisorError(
                    f"the VM can't grow to {size.memory_mib} MiB and {size.vcpus} "
                    f"CPU{'s' if size.vcpus > 1 else ''}: {error}"
                ) from None
            raise
        self._note()
        return warnings

    async def _use(self, memory: int, cpus: int) -> None:
        """Make the guest use so many CPUs; wait until it has so many bytes of memory."""
        seconds = min(_TAKE_SECONDS + memory / MIB / _MIB_A_SECOND, _MOST_SECONDS)
        await self._agent.call(requests.take_room(memory, cpus), seconds)

    async def _take(self, memory: int, cpus: int) -> None:
        """Make the guest use new memory and CPUs. Raises HypervisorError when the guest refuses
        them."""
        using = asyncio.create_task(self._use(memory, cpus))
        refused = asyncio.create_task(self._growth.is_refused.wait())
        try:
            await asyncio.wait((using, refused), return_when=asyncio.FIRST_COMPLETED)
            if not using.done():
                raise HypervisorError("the guest's kernel does not take what it is given")
            await using
        finally:
            for task in (using, refused):
                task.cancel()
            await asyncio.gather(using, refused, return_exceptions=True)

    async def _shrink(self) -> list[str]:
        """Make the guest give back what no container needs; return warnings."""
        size, _ = self._wanted()
        growth, refused = self._growth, set[str]()
        found = []
        try:
            if self._vcpus > size.vcpus:
                await self._use(0, size.vcpus)
                self._vcpus = size.vcpus
            while name := growth.spare(size.memory_mib, refused):
                if not await growth.remove(name):
                    refused.add(name)
        except (AgentError, HypervisorError) as error:
            found.append(f"the VM is larger than it need be: {error}")
        if failures := self._bound_host(growth.memory_mib):
            found.append(f"control group: {cgroups.summed(failures)}")
        self._note()
        if growth.memory_mib > size.memory_mib:
            found.append(
                f"the VM keeps {growth.memory_mib - size.memory_mib} MiB more than it needs, "
                "because the guest's kernel uses them"
            )
        return found

    async def _shrink_later(self) -> None:
        await asyncio.sleep(_PAUSE_SECONDS)
        async with self._turn:
            self._later = None
            for warning in await self._shrink():
                _log.warning("%s", warning)

    async def _take_back(self, added: list[str], cpus: int) -> None:
        with contextlib.suppress(AgentError, HypervisorError):
            for name in reversed(added):
                if not await self._growth.remove(name):
                    _log.warning("the guest keeps %s", name)
            if self._vcpus != cpus or self._growth.vcpus > cpus:
                await self._use(0, cpus)
                self._vcpus = cpus
        self._note()

    def _note(self) -> None:
        record, growth = self._journal.record, self._growth
        now = growth.memory_mib, self._vcpus
        machine = record.spec.machine
        if now != (record.memory_mib or machine.memory_mib, record.vcpus or machine.vcpus):
            record.memory_mib, record.vcpus = now
            self._journal.save_if_possible()

    def _host_limits(self, mib: int) -> tuple[int, int]:
        """(bytes, microseconds of each `cgroups.PERIOD`) that the whole sandbox may use on the
        host, -1 for no limit: as much as its containers may, or the VM's size if that is larger.
        The limits stay when the first container has ended, whose control group it is."""
        spec, claims = self._spec, list(self._claims.values())
        first = self._pod if spec.is_pod else self._claims.get(spec.first)
        if first is None:
            return self._host
        memory = cpus = -1
        if first.memory:
            total = max(self._pod.memory, sum(claim.memory for claim in claims))
            memory = max(total, mib * MIB) + spec.overhead_memory * MIB
        if first.cpus:
            total_cpus = max(self._pod.cpus, sum(claim.cpus for claim in claims))
            cpus = int((total_cpus + spec.overhead_cpu / 100) * cgroups.PERIOD)
        return memory, cpus

    def _bound_host(self, mib: int, raising: bool = False) -> list[str]:
        """Set the limits of the control group for a VM of this size; with `raising`, lower none.
        Return in words what could not be set."""
        record = self._journal.record
        if not record.spec.bounds_host:
            return []
        memory, quota = (
            now if now == -1 or not raising or now > before > -1 else before
            for now, before in zip(self._host_limits(mib), self._host, strict=True)
        )
        limits = cgroups.Limits()
        if memory != self._host[0]:
            limits.memory = memory
        if quota != self._host[1]:
            limits.cpu_quota, limits.cpu_period = quota, cgroups.PERIOD
        self._host = memory, quota
        failures = cgroups.limit(record.cgroup, limits)
        if failures:
            _log.warning("control group: %s", cgroups.summed(failures))
        return failures


def _count(found: dict[str, Any], key: str) -> int:
    """A number from the guest, which is hostile. Raises AgentError."""
    value = found.get(key)
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise AgentError(f"the agent's answer has no proper number {key!r}")
    return value
