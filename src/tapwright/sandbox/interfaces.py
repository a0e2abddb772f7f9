"""The NICs of a running sandbox: joined with the host's interfaces, plugged, configured, removed.

Runs in the supervisor; the caller sees to it that one thing is done at a time. The record names a
NIC from the moment QEMU has it to the moment QEMU has given it up, so that it tells the truth
also about one that the guest does not let go of.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from tapwright.agent.client import AgentClient
from tapwright.endpoint import discovery, tap, tcfilter, vhost_user
from tapwright.errors import HypervisorError, NetworkError, TapwrightError
from tapwright.hypervisor.nics import Backend, Tap, VhostUser
from tapwright.hypervisor.qemu import Qemu
from tapwright.linux import netns
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.sandbox import ownership, teardown
from tapwright.sandbox.kata import InterfaceRequest, written_interface
from tapwright.sandbox.record import Interface, Journal

_TAP_TYPES = ("tap", "tun", "tuntap")

_log = logging.getLogger(__name__)

Entry = dict[str, Any]


class Interfaces:
    """The NICs of the sandbox of a journal."""

    def __init__(self, journal: Journal, qemu: Qemu, agent: AgentClient) -> None:
        self._journal = journal
        self._record = journal.record
        self._nics = qemu.nics
        self._uid = qemu.uid
        self._agent = agent
        self._nics.on_gone = self._gone

    async def carry(self, found: discovery.Interface, network: str) -> None:
        """Give an interface of the namespace a NIC of the same name, MAC and MTU; the guest is
        not told. Raises NetworkError, HypervisorError."""
        link = found.link
        interface = Interface(
            name=link.name,
            device=link.name,
            mac=link.mac,
            mtu=link.mtu,
            addresses=[str(address) for address in found.addresses],
            network=network,
        )
        await self._join(interface, link)

    async def add(self, request: InterfaceRequest) -> dict[str, Any]:
        """Plug a NIC in and configure it; return the interface as add-iface prints it.

        After a failure nothing has changed. Raises NetworkError, HypervisorError, AgentError.
        """
        self._check_unique(request)
        interface = Interface(
            name=request.name,
            device=request.device,
            mac=request.mac,
            mtu=request.mtu,
            addresses=[str(address) for address in request.addresses],
            queues=request.queues,
            vhost_user_socket=request.vhost_user_socket,
        )
        await self._attach(interface, request)
        try:
            await self._configure(request)
        except TapwrightError as error:
            try:
                await self._nics.unplug(interface.slot)
            except HypervisorError as stuck:
                raise type(error)(f"{error}; and the NIC could not be removed: {stuck}") from None
            raise
        return written_interface(interface)

    async def remove(self, name: str) -> None:
        """Take a NIC out; what it was joined with is as before.

        Raises NetworkError, HypervisorError: its `result` is the interface that is still there.
        """
        interface = next((nic for nic in self._record.interfaces if nic.name == name), None)
        if interface is None:
            names = ", ".join(nic.name for nic in self._record.interfaces) or "none"
            raise NetworkError(f"name: there is no interface {name!r}; there are: {names}")
        try:
            await self._nics.unplug(interface.slot)
        except HypervisorError as error:
            stuck = HypervisorError(f"{name} could not be removed: {error}")
            stuck.result = written_interface(interface)
            raise stuck from None

    async def listing(self) -> list[dict[str, Any]]:
        """The guest's NICs as list-ifaces prints them. Raises AgentError."""
        asked_for = {address for nic in self._record.interfaces for address in nic.addresses}
        listed = await self._agent.listing("interfaces")
        return [
            {
                "name": str(entry["name"]),
                "mac": str(entry["mac"]),
                "ip": [
                    text
                    for address in entry["addresses"]
                    for text in [f"{address['address']}/{address['prefix_length']}"]
                    # The kernel gives every NIC a link-local address of its own.
                    if text in asked_for or not text.startswith("fe80:")
                ],
                "mtu": int(entry["mtu"]),
            }
            for entry in listed
            if entry["mac"].strip("0:")
        ]

    async def _attach(self, interface: Interface, request: InterfaceRequest) -> None:
        """Find out what the device is, take it, and plug the NIC."""
        queues = max(request.queues, 1)
        if path := request.vhost_user_socket:
            if not self._record.spec.memory_directory:
                raise NetworkError(
                    "vhostUserSocket: a backend must share the guest's memory: set "
                    'file_mem_backend in [hypervisor.qemu], such as "/dev/shm", and make the '
                    "sandbox anew"
                )
            entry = await self._claim(
                interface, "vhost_user", socket=path, owner=vhost_user.owner_of(path)
            )
            with self._given_back_on_failure(entry):
                await self._plug(interface, vhost_user.attach(path, queues, self._uid))
            return
        place, link = self._find(request.device)
        found = tap.look_at(place, link)
        if request.link_type and (request.link_type in _TAP_TYPES) != bool(found):
            raise NetworkError(
                f"linkType: {request.link_type!r}, but {link.name} is a "
                f"{'tap' if found else link.kind or 'device of hardware'}"
            )
        if found:
            entry = await self._claim(interface, "tap", **found._asdict())
            with self._given_back_on_failure(entry):
                await self._plug(interface, Tap(tap.attach(found, queues)))
        elif place == self._record.netns:
            if queues > 1:
                raise NetworkError(
                    f"queues: {queues}: only a TAP can have several, not a {link.kind}"
                )
            await self._join(interface, link)
        else:
            raise NetworkError(
                f"device: {link.name} is no TAP but a {link.kind or 'device of hardware'}, and not "
                "in the sandbox's network namespace: move it there, or make a TAP"
            )

    def _find(self, device: str) -> tuple[str, Link]:
        try:
            found = discovery.find(device, (self._record.netns, netns.OWN))
        except OSError as error:
            raise NetworkError(
                f"the sandbox's network namespace {self._record.netns} is gone: {error.strerror}"
            ) from None
        if found is None:
            raise NetworkError(
                f"device: there is no {device} in the sandbox's network namespace "
                f"({self._record.netns}) nor in the host's"
            )
        return found

    async def _join(self, interface: Interface, link: Link) -> None:
        """Give an interface of the sandbox's namespace a TAP beside it, and that to the VM."""
        path = self._record.netns
        with netns.entered(path):
            nl = Netlink()
        with nl:
            tcfilter.check(nl, link)
            entry = await self._claim(interface, "tcfilter", netns=path, index=link.index)
            with self._given_back_on_failure(entry):
                await self._plug(interface, Tap([tcfilter.attach(nl, path, link)]))

    async def _claim(self, interface: Interface, kind: str, **what: Any) -> Entry:
        """Enter in the journal that the device is this sandbox's. Raises NetworkError."""
        entry = {"nic": interface.name, "device": interface.device, **what}
        try:
            return await asyncio.to_thread(ownership.claim_device, self._journal, kind, entry)
        except OSError as error:
            raise NetworkError(
                f"device: {interface.device} can't be entered in the journal: {error}"
            ) from None

    async def _plug(self, interface: Interface, backend: Backend) -> None:
        try:
            interface.slot = await self._nics.plug(backend, interface.mac)
        finally:
            for fd in [backend.fd] if isinstance(backend, VhostUser) else backend.fds:
                os.close(fd)
        self._record.interfaces.append(interface)
        try:
            self._journal.save()
        except OSError as error:
            await self._nics.unplug(interface.slot)
            raise NetworkError(f"the NIC can't be written down: {error}") from None

    async def _configure(self, request: InterfaceRequest) -> None:
        await self._agent.call(
            "set_interface",
            mac=request.mac,
            name=request.name,
            mtu=request.mtu,
            queues=request.queues,
            addresses=[
                {"address": str(address.ip), "prefix_length": address.network.prefixlen}
                for address in request.addresses
            ],
        )

    def _check_unique(self, request: InterfaceRequest) -> None:
        for nic in self._record.interfaces:
            if nic.name == request.name:
                raise NetworkError(
                    f"name: {request.name!r} is taken in this sandbox; choose another"
                )
            if nic.mac.lower() == request.mac.lower():
                raise NetworkError(f"hwAddr: {request.mac!r} is that of the sandbox's {nic.name}")

    @contextlib.contextmanager
    def _given_back_on_failure(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._give_back(entry)
            raise

    def _give_back(self, entry: Entry) -> None:
        if entry not in self._record.held:
            return
        try:
            teardown.undo(entry)
        except OSError as error:
            # The entry stays, and `delete` tries again.
            _log.error("%s was not given back: %s", entry["device"], error)
        else:
            self._journal.release(entry)

    def _gone(self, slot: int) -> None:
        """QEMU has given a NIC up."""
        for interface in [nic for nic in self._record.interfaces if nic.slot == slot]:
            self._record.interfaces.remove(interface)
            for entry in list(self._record.held):
                if entry.get("nic") == interface.name:
                    self._give_back(entry)
        self._journal.save()
