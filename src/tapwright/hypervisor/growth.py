"""Adds memory and CPUs to a running QEMU, and removes memory again.

Memory comes as DIMMs. A virtio-mem device could remove smaller pieces. But the guest could use the
removed memory all the same, because the device's memory is mapped as a whole
(hw/virtio/virtio-mem.c), and only a control group would keep the guest from using all of it.

CPUs stay: QEMU 7.2 crashes when an emulated CPU is removed. The guest uses fewer of them instead.
Emulated ones are all there from the start (`Machine.present_vcpus`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection
from typing import Any

from tapwright.errors import HypervisorError
from tapwright.hypervisor.machine import Machine, check_hugepages
from tapwright.hypervisor.qmp import Qmp, QmpError

UNIT_MIB = 128
"""The piece of memory that a guest's kernel adds at a time (arch/x86/mm/init_64.c:
memory_block_size_bytes)."""
_EJECTING = 0x84  # "Device ejection in progress" (ACPI 6.4, table 6.41)
_AT_ONCE = 16
_UNPLUG_SECONDS = 15.0
_PAUSE = 0.05

_log = logging.getLogger(__name__)


class Growth:
    """The memory and CPUs of one QEMU beyond those with which it started. Methods do not wait until
    the guest uses them; call one at a time. Each method raises HypervisorError."""

    def __init__(self, qmp: Qmp, machine: Machine, pid: int) -> None:
        self._qmp = qmp
        self._pid = pid
        self._machine = machine
        self._dimms: dict[str, int] = {}
        self._lasting: set[str] = set()
        self._mapped: dict[str, set[str]] = {}
        self._cpus = 0
        self._leaving: dict[str, asyncio.Future[bool]] = {}
        self._releasing: set[asyncio.Task[None]] = set()
        self.is_refused = asyncio.Event()
        """Set when the guest reports that it can't use something that was plugged in."""
        qmp.on_event("DEVICE_DELETED", self._device_deleted)
        qmp.on_event("ACPI_DEVICE_OST", self._guest_answered)

    @property
    def memory_mib(self) -> int:
        """All memory of the guest."""
        return self._machine.memory_mib + sum(self._dimms.values())

    @property
    def vcpus(self) -> int:
        """All CPUs that are plugged in, whether the guest uses them or not."""
        return self._machine.present_vcpus + self._cpus

    def for_kernel(self, mib: int) -> int:
        """Return how many of the next `mib` of memory the guest's kernel should use for itself,
        too. It can't give these back. A quarter of all memory should be the kernel's, as its own
        policy says, which does not count memory added before (mm/memory_hotplug.c:
        auto_movable_ratio). The result is at most what the kernel's present memory can describe (64
        bytes for each page)."""
        have = self._machine.memory_mib + sum(self._dimms[name] for name in self._lasting)
        lacking = (self.memory_mib + mib) // 4 - have
        return min(mib, _AT_ONCE * have, -(-max(0, lacking) // UNIT_MIB) * UNIT_MIB)

    async def add_memory(self, mib: int, lasting: bool = False) -> list[str]:
        """Plug in memory; return the names of the DIMMs. Their sizes allow any smaller amount to be
        removed again, unless the memory is `lasting`. After a failure none of it is left."""
        sizes = [mib] if lasting else self._pieces(mib)
        if self._machine.hugepages:
            check_hugepages(mib)
        added: list[str] = []
        try:
            for size in sizes:
                added.append(await self._plug_dimm(size))
                if lasting:
                    self._lasting.add(added[-1])
        except BaseException:
            with contextlib.suppress(HypervisorError):
                for name in added:
                    await self.remove(name)
            raise
        return added

    async def add_cpu(self) -> None:
        places = await self._qmp.execute("query-hotpluggable-cpus")
        free = [place for place in places if "qom-path" not in place]
        if not free:
            raise HypervisorError(f"all {self.vcpus} CPUs that it can have are plugged in")
        # QEMU lists the last one first.
        place = min(free, key=lambda place: sorted(place["props"].items()))
        name = f"cpu{self.vcpus}"
        await self._qmp.execute("device_add", driver=place["type"], id=name, **place["props"])
        self._cpus += 1

    def spare(self, mib: int, refused: Collection[str] = ()) -> str:
        """Return the DIMM to remove next, so that the guest keeps at least `mib`: the largest one
        that is neither lasting nor `refused`; empty if there is none."""
        surplus, kept = self.memory_mib - mib, self._lasting.union(refused)
        fitting = [name for name, size in self._dimms.items() if size <= surplus]
        return max((n for n in fitting if n not in kept), key=self._dimms.__getitem__, default="")

    async def remove(self, name: str) -> bool:
        """Remove a DIMM; return whether the guest has released it. A guest that does not answer may
        still release it later."""
        future = self._leaving.setdefault(name, asyncio.get_running_loop().create_future())
        try:
            await self._qmp.execute("device_del", id=name)
            is_gone = await asyncio.wait_for(asyncio.shield(future), _UNPLUG_SECONDS)
        except TimeoutError:
            raise HypervisorError(
                f"the guest has not said within {_UNPLUG_SECONDS:g} s whether it releases {name}"
            ) from None
        except QmpError as error:
            # An earlier attempt failed in this way, and the guest has not answered it yet.
            _log.warning("%s", error)
            return False
        await asyncio.gather(*self._releasing)
        return is_gone

    async def _plug_dimm(self, mib: int) -> str:
        slots = self._machine.memory_slots
        if len(self._dimms) >= slots:
            raise HypervisorError(
                f"all {slots} slots for memory are taken; have more in new sandboxes (memory_slots "
                "in [hypervisor.qemu])"
            )
        name = next(n for n in map("dimm{}".format, range(1000)) if n not in self._dimms)
        # Shared, because the server of the guest's devices (virtiofsd, a vhost-user backend) maps
        # it.
        huge = {"hugetlb": True} if self._machine.hugepages else {}
        before = self._memories()
        await self._qmp.execute(
            "object-add",
            **{"qom-type": "memory-backend-memfd", "id": f"{name}-memory"},
            size=mib << 20,
            share=True,
            **huge,
        )
        try:
            await self._qmp.execute(
                "device_add", driver="pc-dimm", id=name, memdev=f"{name}-memory"
            )
        except HypervisorError:
            with contextlib.suppress(HypervisorError):
                await self._qmp.execute("object-del", id=f"{name}-memory")
            raise
        self._dimms[name] = mib
        self._mapped[name] = self._memories() - before
        return name

    def _pieces(self, mib: int) -> list[int]:
        """Return pieces of 1, 2, 4, … units and a rest, so that any part can be removed; one piece
        if there are few slots."""
        free = self._machine.memory_slots - len(self._dimms)
        pieces, left = [], mib
        size = UNIT_MIB
        while left > 0:
            pieces.append(min(size, left))
            left -= size
            size *= 2
        return pieces if 2 * len(pieces) <= free else [mib]

    async def _release(self, name: str) -> None:
        """Give a removed DIMM's memory back to the host, and wait until the host has it."""
        mapped = self._mapped.pop(name)
        try:
            async with asyncio.timeout(_UNPLUG_SECONDS):
                # QEMU reports the end of a device before it releases the device's memory.
                while not await self._is_deleted(f"{name}-memory"):
                    await asyncio.sleep(_PAUSE)
                # QEMU unmaps memory when none of its threads can be using it any more.
                while mapped & self._memories():
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            _log.error("QEMU has not released %s within %g s", name, _UNPLUG_SECONDS)
        except HypervisorError:
            pass  # QEMU has ended

    async def _is_deleted(self, name: str) -> bool:
        try:
            await self._qmp.execute("object-del", id=name)
        except QmpError:
            return False
        return True

    def _memories(self) -> set[str]:
        """Return the memory that QEMU shares with other processes, by inode; none if it can't be
        read."""
        with contextlib.suppress(OSError), open(f"/proc/{self._pid}/maps") as file:
            return {line.split()[4] for line in file if "/memfd:" in line}
        return set()

    def _device_deleted(self, data: dict[str, Any]) -> None:
        """Note that the guest has released a device, perhaps late."""
        name = str(data.get("device"))
        if self._dimms.pop(name, 0):
            self._lasting.discard(name)
            task = asyncio.create_task(self._release(name))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)
            self._answered(name, True)

    def _guest_answered(self, data: dict[str, Any]) -> None:
        """Take the guest's report of a device that was added, or is to be removed (_OST, ACPI 6.4,
        6.3.5)."""
        info = data.get("info", {})
        if info.get("status") not in (0, _EJECTING):
            name = str(info.get("device"))
            if name in self._leaving:
                self._answered(name, False)
            else:
                self.is_refused.set()

    def _answered(self, name: str, is_gone: bool) -> None:
        future = self._leaving.pop(name, None)
        if future and not future.done():
            future.set_result(is_gone)
