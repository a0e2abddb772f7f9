"""Memory and CPUs that a running QEMU gets, and what it gives back of them.

Memory comes as DIMMs. A virtio-mem device gives back in smaller pieces, but what of it is not given
out lies open to the guest all the same: its memory is mapped as a whole (hw/virtio/virtio-mem.c),
so that only a control group would keep a guest from having all of it.

CPUs stay: a QEMU that emulates them (7.2) dies of taking one out. The guest uses fewer.
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
"""What a guest's kernel adds at a time (arch/x86/mm/init_64.c: memory_block_size_bytes)."""
_EJECTING = 0x84  # "Device ejection in progress" (ACPI 6.4, table 6.41)
_AT_ONCE = 16
_UNPLUG_SECONDS = 15.0
_PAUSE = 0.05

_log = logging.getLogger(__name__)


class Growth:
    """The memory and CPUs of one QEMU beyond those that it started with. Methods do not wait until
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
        """Set when the guest says that it can't use something that was plugged in."""
        qmp.on_event("DEVICE_DELETED", self._device_deleted)
        qmp.on_event("ACPI_DEVICE_OST", self._guest_answered)

    @property
    def memory_mib(self) -> int:
        """All that the guest has."""
        return self._machine.memory_mib + sum(self._dimms.values())

    @property
    def vcpus(self) -> int:
        """All that are plugged in."""
        return self._machine.vcpus + self._cpus

    def for_kernel(self, mib: int) -> int:
        """How much of so much more memory the guest's kernel is to have next for itself, too, which
        it can't give back: a quarter of all should be, as the kernel's own policy has it, that does
        not count what was added before (mm/memory_hotplug.c: auto_movable_ratio). It is not more
        than what the kernel has can describe (64 bytes for each page)."""
        have = self._machine.memory_mib + sum(self._dimms[name] for name in self._lasting)
        lacking = (self.memory_mib + mib) // 4 - have
        return min(mib, _AT_ONCE * have, -(-max(0, lacking) // UNIT_MIB) * UNIT_MIB)

    async def add_memory(self, mib: int, lasting: bool = False) -> list[str]:
        """Plug in so much, in pieces of which any smaller amount can be taken out again, unless it
        is `lasting`; return their names. After a failure nothing of it is left."""
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
        """Plug one in."""
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
        """What to take out next, for the guest to have no less memory: the largest DIMM that is
        neither lasting nor `refused`; empty when there is none."""
        surplus, kept = self.memory_mib - mib, self._lasting.union(refused)
        fitting = [name for name, size in self._dimms.items() if size <= surplus]
        return max((n for n in fitting if n not in kept), key=self._dimms.__getitem__, default="")

    async def remove(self, name: str) -> bool:
        """Take out a DIMM; return whether the guest has let go of it. One that does not answer may
        do so later."""
        future = self._leaving.setdefault(name, asyncio.get_running_loop().create_future())
        try:
            await self._qmp.execute("device_del", id=name)
            is_gone = await asyncio.wait_for(asyncio.shield(future), _UNPLUG_SECONDS)
        except TimeoutError:
            raise HypervisorError(
                f"the guest has not said within {_UNPLUG_SECONDS:g} s whether it gives back {name}"
            ) from None
        except QmpError as error:
            # Of an attempt before, which the guest has not answered yet.
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
        """1, 2, 4, … units and a rest, of which any part can be given back; one piece where slots
        are few."""
        free = self._machine.memory_slots - len(self._dimms)
        pieces, left = [], mib
        size = UNIT_MIB
        while left > 0:
            pieces.append(min(size, left))
            left -= size
            size *= 2
        return pieces if 2 * len(pieces) <= free else [mib]

    async def _release(self, name: str) -> None:
        """Give the host the memory of a DIMM that has gone, and wait until it has it."""
        mapped = self._mapped.pop(name)
        try:
            async with asyncio.timeout(_UNPLUG_SECONDS):
                # QEMU tells of the end of a device before it lets go of what that had.
                while not await self._is_deleted(f"{name}-memory"):
                    await asyncio.sleep(_PAUSE)
                # It unmaps memory when none of its threads can be using it any more.
                while mapped & self._memories():
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            _log.error("QEMU has not released %s within %g s", name, _UNPLUG_SECONDS)
        except HypervisorError:
            pass  # it has ended

    async def _is_deleted(self, name: str) -> bool:
        try:
            await self._qmp.execute("object-del", id=name)
        except QmpError:
            return False
        return True

    def _memories(self) -> set[str]:
        """The memory that QEMU shares with others, by inode; none where that can't be seen."""
        with contextlib.suppress(OSError), open(f"/proc/{self._pid}/maps") as file:
            return {line.split()[4] for line in file if "/memfd:" in line}
        return set()

    def _device_deleted(self, data: dict[str, Any]) -> None:
        """The guest has let go of it, maybe late."""
        name = str(data.get("device"))
        if self._dimms.pop(name, 0):
            self._lasting.discard(name)
            task = asyncio.create_task(self._release(name))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)
            self._answered(name, True)

    def _guest_answered(self, data: dict[str, Any]) -> None:
        """What the guest says of a device that came, or is to go (_OST, ACPI 6.4, 6.3.5)."""
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
