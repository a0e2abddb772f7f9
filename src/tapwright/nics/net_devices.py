"""Interfaces of the host that move into the namespace of a running sandbox, and get NICs.

At the end of a sandbox that made its namespace, `teardown` gives them back. A caller's namespace
keeps them, because its owner got them (runtime-spec, config-linux.md, "Namespace Lifecycle and
Container Termination"); but not after a failure.
"""

import asyncio
from typing import Any

from tapwright.endpoint import discovery, host_device, kinds
from tapwright.endpoint.host_device import HostDevice
from tapwright.errors import NetworkError, TapwrightError, UsageError
from tapwright.linux import netns
from tapwright.linux.netlink import Netlink
from tapwright.nics.following import Following
from tapwright.nics.interfaces import Interfaces
from tapwright.state.record import Journal, Nic, Place


class NetDevices:
    """The network devices of a journal's sandbox."""

    def __init__(self, journal: Journal, interfaces: Interfaces, following: Following) -> None:
        self._journal = journal
        self._record = journal.record
        self._interfaces = interfaces
        self._following = following

    async def take(self, devices: Any) -> None:
        """Move interfaces in, and give them NICs. `devices` maps names on the host to names in the
        namespace. After a failure all are back on the host. Raises NetworkError, HypervisorError,
        AgentError, UsageError."""
        if not _are_names(devices):
            raise UsageError("devices must be an object that maps names to names")
        path = self._record.netns
        if self._record.place is Place.HOST:
            raise NetworkError("this sandbox has no network namespace to move interfaces into")
        look = asyncio.to_thread
        found = [
            await look(host_device.look, device, name, path) for device, name in devices.items()
        ]
        taken: list[tuple[HostDevice, dict[str, Any]]] = []
        try:
            for device in found:
                fields = host_device.entry_of(device)
                taken.append((device, self._journal.hold(kinds.HOST_DEVICE, **fields)))
                await self._take(device)
            await self._following.sync(at_once=True)
        except (TapwrightError, OSError):
            await self._give_back(taken)
            raise
        if self._record.place is not Place.MADE:
            for _, entry in taken:
                self._journal.release(entry)

    async def _take(self, device: HostDevice) -> None:
        index = await asyncio.to_thread(device.move_in)
        with netns.entered(device.netns), Netlink() as nl:
            scanned = {one.link.index: one for one in discovery.scan(nl).interfaces}
        if index not in scanned:
            raise NetworkError(f"{device.device} has gone from {device.netns}")
        await self._interfaces.carry(scanned[index].settled())

    async def _give_back(self, taken: list[tuple[HostDevice, dict[str, Any]]]) -> None:
        for nic in [self._nic_of(device) for device, _ in taken]:
            if nic:
                await self._interfaces.remove(nic)
        for device, entry in reversed(taken):
            await asyncio.to_thread(device.move_back)
            self._journal.release(entry)

    def _nic_of(self, device: HostDevice) -> Nic | None:
        followers = self._interfaces.followers().values()
        return next((nic for nic in followers if nic.mac == device.mac), None)


def _are_names(devices: object) -> bool:
    return isinstance(devices, dict) and all(
        isinstance(word, str) for pair in devices.items() for word in pair
    )
