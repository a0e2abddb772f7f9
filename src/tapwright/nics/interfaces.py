"""The NICs of a running sandbox: joined with the host's interfaces, plugged, configured, removed.

It runs in the supervisor; the caller makes sure that one thing is done at a time. The record names
a NIC from the moment QEMU has it to the moment QEMU has removed it, so the record is right even
about a NIC that the guest does not release.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.agent.requests import Request
from tapwright.endpoint import discovery, host_tap, kinds, vhost_user
from tapwright.endpoint.companion import Waiting
from tapwright.endpoint.kinds import Endpoint
from tapwright.endpoint.limits import Limits
from tapwright.endpoint.tcfilter import TcFilter
from tapwright.endpoint.vhost_user import VhostUserSocket
from tapwright.errors import (
    HypervisorError,
    NetworkError,
    SandboxStateError,
    TapwrightError,
)
from tapwright.hypervisor.backends import Backend, VhostUser
from tapwright.hypervisor.qemu import Qemu
from tapwright.linux import links, netns, tuntap
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.nics.request import Address, InterfaceRequest, any_mac
from tapwright.state import joins, ownership, teardown
from tapwright.state.entries import HostTap, Port
from tapwright.state.record import Journal, Nic, TapRequest

_TAP_TYPES = ("tap", "tun", "tuntap")
_SEEN_BY_HOOKS = ("macvtap", "existing_macvtap", "tap")

_log = logging.getLogger(__name__)

Entry = dict[str, Any]


@dataclass(frozen=True)
class WaitingNic:
    """A NIC that was plugged in, and used, before its network was known."""

    slot: int
    mac: str
    tap: Waiting


@dataclass(frozen=True)
class Listed:
    """A NIC that the guest lists, with the addresses to report, as ADDRESS/PREFIX; `nic` is its
    entry in the record."""

    name: str
    mac: str
    mtu: int
    addresses: list[str]
    nic: Nic | None


class Followers(NamedTuple):
    """The NICs that follow interfaces of the namespace: names by the index of that. Frames of those
    `unhooked` pass the hooks of the device in the namespace: they need no hooks in the guest."""

    names: Mapping[int, str]
    unhooked: frozenset[str] = frozenset()


class Interfaces:
    """The NICs of the sandbox of a journal."""

    def __init__(self, journal: Journal, qemu: Qemu, agent: AgentClient) -> None:
        self._journal = journal
        self._record = journal.record
        self._nics = qemu.nics
        self._uid = qemu.uid
        self._agent = agent
        self._nics.on_gone = self._gone
        self._waiting: WaitingNic | None = None
        self._without_carrier: set[int] = set()  # slots

    def expect(self, nic: WaitingNic) -> None:
        """Keep a NIC that is plugged already for the first interface whose endpoint can take it."""
        self._waiting = nic

    async def settle(self) -> None:
        """Call this when the first interfaces are joined: it unplugs the waiting NIC if none of
        them took it. Raises HypervisorError."""
        waiting, self._waiting = self._waiting, None
        if waiting:
            await self._nics.unplug(waiting.slot)

    async def carry(self, found: discovery.Interface, network: str = "") -> None:
        """Give an interface of the namespace a NIC of the same name, MAC, MTU and carrier, which
        follows it; send nothing to the guest. Raises NetworkError, HypervisorError."""
        link = found.link
        self._check_name(link.name)
        twins = [nic for nic in self._record.interfaces if nic.mac.lower() == link.mac]
        for nic in twins:
            self._check_apart(link, nic)
        # A NIC that has had the address before is still known by it.
        is_taken = any(link.mac == nic.identity.lower() for nic in self._record.interfaces)
        interface = Nic(
            name=link.name,
            device=link.name,
            mac=link.mac,
            mtu=link.mtu,
            addresses=[str(address) for address in found.addresses],
            queues=0 if tuntap.is_held(link) else self._queues(link),
            network=network,
            index=link.index,
            permanent=any_mac() if twins or is_taken else "",
        )
        # A program at the other end of a TAP (slirp4netns, pasta) is the network that it gives.
        await self._join(interface, self._endpoint(link, self._record.netns, whole=False))
        await self.set_carrier(interface, found.is_running)

    def _check_apart(self, link: Link, nic: Nic) -> None:
        """Two interfaces with one MAC address must have frames of their own. A VLAN has not: its
        frames come with those of the interface below it. Raises NetworkError."""
        try:
            with netns.entered(self._record.netns), Netlink() as nl:
                other = links.at(nl, nic.index)
        except OSError as error:
            raise NetworkError(f"{nic.name} can't be looked at: {error.strerror}") from None
        if other and (other.index == link.parent or link.index == other.parent):
            raise NetworkError(
                f"{link.name} has the MAC address of {nic.name}, {link.mac}, and one of them is on "
                "the other: only one can be a NIC; give it another one, or move one elsewhere"
            )

    def followers(self) -> dict[int, Nic]:
        """The NICs that follow interfaces of the namespace, by the index of those."""
        return {nic.index: nic for nic in self._record.interfaces if nic.index}

    async def follow(self, nic: Nic, found: discovery.Interface) -> None:
        """Bring carrier, endpoint and record of a NIC up to date with its interface.

        Raises HypervisorError, OSError.
        """
        link = found.link
        await self.set_carrier(nic, found.is_running)
        if link.mac != nic.mac:
            self._follow_mac(nic, link.mac)
        for entry in joins.held_for(self._record, nic):
            entry["nic"] = entry["device"] = link.name
            if link.mtu != nic.mtu:
                kinds.of_entry(entry).set_mtu(link.mtu)
        nic.name = nic.device = link.name
        nic.mtu = link.mtu
        nic.addresses = [str(address) for address in found.addresses]
        self._journal.save_if_possible()

    def _follow_mac(self, nic: Nic, mac: str) -> None:
        """Raises OSError."""
        held = joins.held_for(self._record, nic)
        for entry in held:
            if entry.get("mac"):
                entry["mac"] = mac  # which the interface gets back
        nic.permanent, nic.mac = nic.identity, mac
        self._journal.save()
        for entry in held:
            kinds.of_entry(entry).set_mac(mac)

    async def set_carrier(self, nic: Nic, on: bool) -> None:
        """Give a NIC a carrier, which a new NIC has, or remove it. Raises HypervisorError."""
        if on == (nic.slot in self._without_carrier):
            await self._nics.set_link(nic.slot, on)
            (self._without_carrier.discard if on else self._without_carrier.add)(nic.slot)

    def is_joined(self, nic: Nic, link: Link) -> bool:
        """Whether the endpoint of a NIC is as it was made, with the interface as it is now, and can
        be kept with the interface's MAC address. Raises OSError."""
        held = joins.held_for(self._record, nic)
        return all(kinds.of_entry(entry).is_joined(link) for entry in held) and (
            link.mac == nic.mac or self._can_have(nic, link)
        )

    def _can_have(self, nic: Nic, link: Link) -> bool:
        try:
            for other in self._record.interfaces:
                if other is not nic and other.mac.lower() == link.mac:
                    self._check_apart(link, other)
        except NetworkError:
            return False
        return True

    def as_carried(self, found: Iterable[discovery.Interface]) -> list[discovery.Interface]:
        """Return the interfaces of the namespace without the flag for all multicast where an
        endpoint has set it, and with the MAC addresses that their NICs shall have."""
        own = [entry for entry in self._record.held if entry.get("netns") == self._record.netns]
        given = {entry["index"] for entry in own if entry.get("took_all_multicast") is False}
        macs = self._macs({one.link.index: one.link for one in found})
        return [
            one._replace(
                link=one.link._replace(
                    flags=one.link.flags & ~(links.IFF_ALLMULTI if one.link.index in given else 0),
                    mac=macs.get(one.link.index, one.link.mac),
                )
            )
            for one in found
        ]

    def _macs(self, found: Mapping[int, Link]) -> dict[int, str]:
        return {
            nic.index: kinds.of_entry(entry).mac_for(found[nic.index], nic.mac)
            for nic in self._record.interfaces
            if nic.index in found
            for entry in joins.held_for(self._record, nic)
            if kinds.is_endpoint(entry)
        }

    def joined_by_request(self) -> set[int]:
        """The indices of the namespace's interfaces that NICs were plugged for by request."""
        return {
            entry["index"]
            for nic in self._record.interfaces
            for entry in joins.held_for(self._record, nic)
            if not nic.index and entry.get("netns") == self._record.netns
        }

    def seen_by_hooks(self) -> frozenset[str]:
        """The names of NICs whose frames pass the ingress and egress hooks of the namespace's
        device: macvtaps and TAPs. With `tcfilter`, traffic control takes the frames away before."""
        return frozenset(
            nic.name
            for nic in self._record.interfaces
            if nic.index
            and (join := joins.of_nic(self._record, nic))
            and join.kind in _SEEN_BY_HOOKS
        )

    async def add(self, request: InterfaceRequest) -> Nic:
        """Plug a NIC in and configure it.

        After a failure nothing has changed. Raises NetworkError, HypervisorError, AgentError.
        """
        interface, configuration = await self.plug(request)
        try:
            await self._agent.call(requests.batch(configuration))
        except TapwrightError as error:
            try:
                await self._nics.unplug(interface.slot)
            except HypervisorError as stuck:
                raise type(error)(f"{error}; and the NIC could not be removed: {stuck}") from None
            raise
        return interface

    async def plug(self, request: InterfaceRequest, network: str = "") -> tuple[Nic, Request]:
        """Plug a NIC in; return it, and the agent's request that configures it.

        Raises NetworkError, HypervisorError.
        """
        self._check_name(request.name)
        self._check_mac(request.mac)
        interface = Nic(
            name=request.name,
            device=request.device,
            mac=request.mac,
            mtu=request.mtu,
            addresses=[str(address) for address in request.addresses],
            queues=request.queues,
            vhost_user_socket=request.vhost_user_socket,
            network=network,
        )
        await self._attach(interface, request)
        return interface, _configuration(request)

    async def add_host_tap(self, tap: TapRequest) -> Request:
        """Give a TAP of the host's a NIC; return the agent's request that configures it.

        Raises NetworkError, HypervisorError.
        """
        self._check_name(tap.name)
        self._check_mac(tap.mac)
        mark = f"tapwright-{self._record.id}-{self._record.created * 1e3:.0f}"
        port = {"bridge": tap.bridge, "ovs": tap.ovs}
        # In a thread, because Open vSwitch may take long to answer.
        connected = await asyncio.to_thread(host_tap.is_connected, tap.device, **port)
        mtu = tap.mtu or host_tap.mtu(tap.device, tap.bridge or tap.ovs)
        interface = Nic(tap.name, tap.device, tap.mac, mtu, list(tap.addresses))
        with contextlib.ExitStack() as undo:
            if not host_tap.exists(tap.device):
                entry = self._journal.enter(HostTap(tap.device, mark, tap.name))
                undo.enter_context(self._given_back_on_failure(entry))
                host_tap.make(tap.device, mtu, mark)
            place, link = self._find(tap.device, [netns.OWN])
            if not connected:
                entry = self._journal.enter(
                    Port(tap.device, mark, link.index, tap.bridge, tap.ovs, tap.name)
                )
                undo.enter_context(self._given_back_on_failure(entry))
                await asyncio.to_thread(host_tap.connect, tap.device, **port, mark=mark)
            await self._join(interface, self._endpoint(link, place))
        addresses = tuple(map(ipaddress.ip_interface, tap.addresses))
        return _configuration(InterfaceRequest(tap.device, tap.name, tap.mac, addresses, mtu))

    def named(self, name: str) -> Nic:
        """Raises NetworkError."""
        interface = next((nic for nic in self._record.interfaces if nic.name == name), None)
        if interface is None:
            names = ", ".join(nic.name for nic in self._record.interfaces) or "none"
            raise NetworkError(f"name: there is no interface {name!r}; there are: {names}")
        return interface

    def leaving(self, name: str, mac: str) -> Nic:
        """The NIC of that name; where there is none, that with the MAC address, if it is given.
        Raises NetworkError."""
        known = self._record.interfaces
        if mac and all(nic.name != name for nic in known):
            found = [nic for nic in known if nic.mac.lower() == mac.lower()]
            if len(found) == 1:
                return found[0]
            if not name:
                how_many = "several interfaces have" if found else "no interface has"
                raise NetworkError(f"hwAddr: {how_many} {mac}; give the name, too")
        return self.named(name)

    async def remove(self, interface: Nic) -> None:
        """Take a NIC out; what it was joined with is as before.

        Raises HypervisorError: the NIC is still there.
        """
        try:
            await self._nics.unplug(interface.slot)
        except HypervisorError as error:
            raise HypervisorError(f"{interface.name} could not be removed: {error}") from None

    async def set_addresses(self, nic: Nic, addresses: Sequence[Address]) -> None:
        """Replace a NIC's addresses; an empty list changes nothing. After a failure the NIC has its
        old addresses. Raises AgentError."""
        if addresses:
            before = [ipaddress.ip_interface(text) for text in nic.addresses]
            try:
                await self._agent.call(_with_addresses(nic, addresses))
            except TapwrightError:
                with contextlib.suppress(TapwrightError):
                    await self._agent.call(_with_addresses(nic, before))
                raise
            nic.addresses = [str(address) for address in addresses]
            self._journal.save_if_possible()

    def give_back_all(self) -> None:
        """Undo what the NICs were joined with, when QEMU has ended."""
        for interface in list(self._record.interfaces):
            self._give_back_all_of(interface)

    async def listing(self) -> list[Listed]:
        """The guest's NICs. Raises AgentError."""
        asked_for = {address for nic in self._record.interfaces for address in nic.addresses}
        listed = await self._agent.listing("interfaces")
        return [
            self._listed(
                entry,
                [
                    text
                    for address in entry["addresses"]
                    for text in [f"{address['address']}/{address['prefix_length']}"]
                    # The kernel gives every NIC a link-local address of its own.
                    if text in asked_for or not text.startswith("fe80:")
                ],
            )
            for entry in listed
            if entry["mac"].strip("0:")
        ]

    def _listed(self, entry: dict[str, Any], addresses: list[str]) -> Listed:
        mac, permanent = str(entry["mac"]), str(entry["permanent"]).lower()
        nics = self._record.interfaces
        nic = next((nic for nic in nics if nic.identity.lower() == permanent), None)
        return Listed(str(entry["name"]), mac, int(entry["mtu"]), addresses, nic)

    async def _attach(self, interface: Nic, request: InterfaceRequest) -> None:
        """Find out what the device is, take it, and plug the NIC."""
        if path := request.vhost_user_socket:
            await self._join(interface, vhost_user.of(request.device, path))
            return
        own = self._record.netns
        place, link = self._find(request.device, [own, netns.OWN] if own else [netns.OWN])
        is_tap = tuntap.settings(link) is not None
        if request.link_type and (request.link_type in _TAP_TYPES) != is_tap:
            raise NetworkError(
                f"linkType: {request.link_type!r}, but {link.name} is a "
                f"{'tap' if is_tap else link.kind or 'device of hardware'}"
            )
        if not is_tap and place != own:
            what = f"device: {link.name} is no TAP but a {link.kind or 'device of hardware'}"
            raise NetworkError(
                f"{what}, and not in the sandbox's network namespace: move it there, or make a TAP"
                if own
                else f"{what}, and this sandbox has no network namespace: make a TAP"
            )
        await self._join(interface, self._endpoint(link, place))

    def _queues(self, link: Link) -> int:
        """The queues of an interface's NIC: one for each processor where a TAP can have several, as
        many as the guest's driver uses."""
        tap = tuntap.settings(link)
        vcpus = self._record.spec.machine.vcpus
        return min(vcpus, tuntap.MOST_QUEUES) if tap and tap.multi_queue and vcpus > 1 else 0

    def _endpoint(self, link: Link, place: str, whole: bool = True) -> Endpoint:
        spec = self._record.spec
        return kinds.choose(link, place, spec.model, Limits(spec.rx_limit, spec.tx_limit), whole)

    def _find(self, device: str, places: Sequence[str]) -> tuple[str, Link]:
        try:
            found = discovery.find(device, places)
        except OSError as error:
            raise NetworkError(
                f"the sandbox's network namespace {places[0]} is gone: {error.strerror}"
            ) from None
        if found is None:
            own = [f"the sandbox's network namespace ({place})" for place in places[:-1]]
            where = " nor in ".join([*own, "the host's" if own else "the host's namespace"])
            raise NetworkError(f"device: there is no {device} in {where}")
        return found

    async def _join(self, interface: Nic, endpoint: Endpoint) -> None:
        """Enter the endpoint in the journal, make it, and plug the NIC."""
        self._check_possible(endpoint)
        self._nics.free_slot()
        endpoint.check()
        entry = await self._claim(interface, endpoint)
        with self._given_back_on_failure(entry):
            if self._waiting and isinstance(endpoint, TcFilter) and interface.queues <= 1:
                self._adopt(interface, endpoint, self._waiting)
            else:
                await self._plug(interface, endpoint.attach(interface.queues, self._uid))

    def _check_possible(self, endpoint: Endpoint) -> None:
        spec = self._record.spec
        if not isinstance(endpoint, VhostUserSocket):
            return
        if not (spec.machine.memory_directory or spec.machine.hugepages):
            raise NetworkError(
                "vhostUserSocket: a backend must share the guest's memory: set "
                'file_mem_backend in [hypervisor.qemu], such as "/dev/shm", or enable_hugepages, '
                "and make the sandbox anew"
            )
        if spec.rx_limit or spec.tx_limit:
            raise NetworkError(
                "vhostUserSocket: its frames do not pass this kernel, which could limit their "
                "rate; set rx_rate_limiter_max_rate and tx_rate_limiter_max_rate to 0, and a limit "
                "in the switch"
            )

    async def _claim(self, interface: Nic, endpoint: Endpoint) -> Entry:
        """Enter in the journal that the device is this sandbox's. Raises NetworkError."""
        kind, fields = kinds.entry_of(endpoint)
        entry = {"nic": interface.name, "follows": interface.index, **fields}
        try:
            return await asyncio.to_thread(ownership.claim_device, self._journal, kind, entry)
        except SandboxStateError as error:
            raise NetworkError(
                f"device: {interface.device} can't be entered in the journal: {error}"
            ) from None

    async def _plug(self, interface: Nic, backend: Backend) -> None:
        try:
            interface.slot = await self._nics.plug(backend, interface.identity)
        finally:
            for fd in [backend.fd] if isinstance(backend, VhostUser) else backend.fds:
                os.close(fd)
        self._record.interfaces.append(interface)
        try:
            self._journal.save()
        except SandboxStateError as error:
            await self._nics.unplug(interface.slot)
            raise NetworkError(f"the NIC can't be written down: {error}") from None

    def _adopt(self, interface: Nic, endpoint: TcFilter, nic: WaitingNic) -> None:
        """Make the NIC that is there the interface's. Raises HypervisorError."""
        try:
            endpoint.adopt(nic.tap)
        except (NetworkError, OSError) as error:
            raise HypervisorError(f"the spare's NIC is of no use: {error}") from None
        self._waiting = None
        interface.slot = nic.slot
        self._record.interfaces.append(interface)
        interface.permanent = nic.mac
        # The next change writes the record: the guest learns of this NIC only then, and the journal
        # already has the endpoint.

    def _check_name(self, name: str) -> None:
        if any(nic.name == name for nic in self._record.interfaces):
            raise NetworkError(f"name: {name!r} is taken in this sandbox; choose another")

    def _check_mac(self, mac: str) -> None:
        for nic in self._record.interfaces:
            if mac.lower() in (nic.mac.lower(), nic.permanent):
                raise NetworkError(f"hwAddr: {mac!r} is that of the sandbox's {nic.name}")

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
        self._without_carrier.discard(slot)
        for interface in [nic for nic in self._record.interfaces if nic.slot == slot]:
            self._give_back_all_of(interface)

    def _give_back_all_of(self, interface: Nic) -> None:
        self._record.interfaces.remove(interface)
        for entry in reversed(joins.held_for(self._record, interface)):
            self._give_back(entry)
        self._journal.save_if_possible()


def _configuration(nic: InterfaceRequest) -> Request:
    """The agent's request that configures a NIC."""
    addresses = _for_agent(nic.addresses)
    return requests.set_interface(nic.mac, nic.name, addresses, mtu=nic.mtu, queues=nic.queues)


def _with_addresses(nic: Nic, addresses: Sequence[Address]) -> Request:
    made = requests.set_interface(nic.identity, nic.name, _for_agent(addresses))
    return requests.batch(made)


def _for_agent(addresses: Iterable[Address]) -> list[dict[str, Any]]:
    return [
        {"address": str(address.ip), "prefix_length": address.network.prefixlen}
        for address in addresses
    ]
