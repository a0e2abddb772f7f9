"""Keeps the guest's NICs equal to the interfaces of the namespace.

Each look reads the whole namespace, so it does not matter which changes were reported, in which
order, or how often. A failure is logged, and tried again later; the rest goes on. NICs that were
plugged by request, and routes added so, stay as they are.

Runs in the supervisor; the caller makes one call at a time.
"""

import asyncio
import errno
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.agent.requests import Request
from tapwright.cni import namespaces
from tapwright.endpoint import discovery
from tapwright.endpoint.discovery import Interface, Scan
from tapwright.errors import AgentError
from tapwright.linux import entries, links, netns, settings
from tapwright.linux.entries import Entry
from tapwright.linux.netlink import Netlink, pack_address
from tapwright.nics import guest_settings, rulesets
from tapwright.nics.attempts import Attempts
from tapwright.nics.guest_settings import GuestSettings
from tapwright.nics.guest_table import GuestTable
from tapwright.nics.interfaces import Followers, Interfaces
from tapwright.nics.rulesets import Rulesets
from tapwright.nics.taken_over import change_request, first_request, is_taken_over
from tapwright.state.record import Nic

_MOST_STATES = 8
"""How many failed changes in a row are remembered."""

_log = logging.getLogger(__name__)


class Look(NamedTuple):
    """What the namespace contains."""

    scan: Scan
    settings: guest_settings.Found


class Following:
    """The NICs of a sandbox that follow the interfaces of the namespace at `path`. NICs that are
    added later get the indexes of their interfaces. The NICs of the start get them only where
    `indexed`, because each takes milliseconds."""

    def __init__(
        self,
        path: str,
        interfaces: Interfaces,
        agent: AgentClient,
        rulesets: str = rulesets.REQUIRED,
        indexed: bool = True,
    ) -> None:
        self._path = path
        self._indexed = indexed
        self._namespace = namespaces.at(path)
        self._interfaces = interfaces
        self._agent = agent
        # The interfaces as the guest has them, loopback too; and their indexes there.
        self._carried: dict[int, Interface] = {}
        self._indexes: dict[int, int] = {}
        # Those that may be another state in the guest, because a change failed.
        self._unsure: dict[int, tuple[Interface, ...]] = {}
        # A request has replaced the addresses of their NICs.
        self._readdressed: set[int] = set()
        self.refused: list[str] = []
        """What the guest's kernel refused when this began, in words."""
        self._table = GuestTable(agent)
        self._settings = GuestSettings(agent)
        # What of the beginning is looked at while the guest wakes up.
        self._first: Scan | None = None
        self._begun: list[int] = []
        self._reading: asyncio.Future[guest_settings.Found] | None = None
        # Their NICs were removed by request: they stay away until they themselves are gone.
        self._dismissed: set[int] = set()
        # Their NICs were removed because others are to take their places.
        self._replaced: set[int] = set()
        self._attempts = Attempts()
        self._rulesets = Rulesets(path, agent, rulesets)

    async def begin(self, networks: dict[str, str]) -> list[Request]:
        """Give each interface of the namespace that is up a NIC; return the agent's requests that
        configure them. Call `fill` after those. `networks` maps interfaces to CNI networks: such an
        interface gets a NIC even if it is down, or is a TAP in a bridge.

        Raises NetworkError, HypervisorError.
        """
        self._first = self._scan()
        found = [
            interface.settled()
            for interface in self._first.interfaces
            if interface.is_ready or (interface.link.name in networks and interface.can_be_named)
        ]
        names = [interface.link.name for interface in self._first.interfaces]
        self._reading = asyncio.ensure_future(asyncio.to_thread(self._read_settings, names))
        for interface in found:
            await self._interfaces.carry(interface, networks.get(interface.link.name, ""))
            _tell_cut(interface)
        self._carried = {interface.link.index: interface for interface in found}
        loopback = self._first.loopback
        if loopback.addresses or loopback.special_settings or not loopback.link.is_usual_loopback:
            found.append(loopback)
        self._carried[loopback.link.index] = loopback
        self._begun = [interface.link.index for interface in found]
        nics = self._interfaces.followers()
        made = [self._request(one, nics.get(one.link.index), ()) for one in found]
        return [each | ({} if self._indexed else {"index": 0}) for each in made]

    async def fill(self, answers: Iterable[Any]) -> None:
        """Give the guest the table entries (routes, rules, neighbours) of the interfaces that
        `begin` found, and the packet rules. `answers` are the guest's to requests for interfaces,
        first those of `begin`. Entries that the guest refuses are logged.

        Raises NetworkError, AgentError, AgentRefusedError.
        """
        if self._first is None or self._reading is None:
            return
        for own, answer in zip(self._begun, answers, strict=False):
            self._note_index(own, answer)
        found = await self._reading
        self._reading = None
        interfaces = {one.link.index: one for one in self._first.interfaces}
        await self._change_settings(found, interfaces, self._first.loopback)
        await self._fill_table(self._first.entries)
        self.refused += self._attempts.reasons()
        self._first = None
        await self._rulesets.load(self._nics())

    def _note_index(self, own: int, answer: Any) -> None:
        """Learn from an answer to `set_interface` which index the NIC of the interface with the
        index `own` has in the guest."""
        self.refused += guest_settings.tell_refused(answer)
        index = answer.get("index") if isinstance(answer, dict) else None
        if not isinstance(index, int) or not 0 < index < 1 << 31:
            raise AgentError("the agent's answer to set_interface has no proper index")
        self._indexes[own] = index

    def dismiss(self, index: int) -> None:
        """Leave an interface alone whose NIC was removed by request."""
        self._dismissed.add(index)

    def doubt(self, index: int) -> None:
        """A request has changed the addresses of an interface's NIC: the next `sync` adds the
        routes and neighbours again that went with the old addresses."""
        self._doubt(index, self._befores(index))
        self._readdressed.add(index)

    async def sync(self, at_once: bool = False) -> float | None:
        """Make the guest's network equal to the namespace's; return the seconds after which to try
        again what failed, None if nothing failed. With `at_once`, interfaces that are up get their
        NICs even without a carrier; and it is an error when the guest refuses packet rules that are
        required.

        Raises OSError when the namespace is gone, AgentError when the guest does not answer.
        """
        self.refused.clear()
        scan, own = await asyncio.to_thread(self._look)
        scanned = self._interfaces.as_carried(scan.interfaces)
        found = {interface.link.index: interface.settled() for interface in scanned}
        self._dismissed &= found.keys()
        self._replaced &= found.keys()
        try:
            await self._unplug_gone(found)
            # What is switched off is off before anything comes up.
            await self._change_settings(own, found, scan.loopback)
            await self._carry_loopback(scan.loopback)
            # Those that are there first: one may give up the name of a new one.
            await self._configure_interfaces(found)
            await self._plug_new(found, at_once)
            await self._configure_interfaces(found)
            await self._change_settings(own, found, scan.loopback)
            await self._fill_table(scan.entries)
            look = await self._rulesets.follow(self._nics(), self._attempts, strictly=at_once)
        finally:
            again = self._attempts.end_round()
        return min((s for s in (again, look) if s is not None), default=None)

    def _nics(self) -> Followers:
        names = {index: nic.name for index, nic in self._interfaces.followers().items()}
        return Followers(names, self._interfaces.seen_by_hooks())

    def _scan(self) -> Scan:
        if self._namespace and not namespaces.leads_to(self._path, self._namespace):
            raise OSError(errno.ENOENT, f"{self._path} does not lead to it any more")
        with netns.entered(self._path), Netlink() as nl:
            return discovery.scan(nl)

    def _read_settings(self, names: list[str]) -> guest_settings.Found:
        defaults = settings.defaults()
        with netns.entered(self._path):
            return guest_settings.read(names, defaults)

    def _look(self) -> Look:
        scan = self._scan()
        return Look(scan, self._read_settings([one.link.name for one in scan.interfaces]))

    async def _unplug_gone(self, found: dict[int, Interface]) -> None:
        """Unplug NICs whose interface has gone, or has been out of the namespace in the meantime:
        the latter gets another NIC at once, whatever its state."""
        leaving = []
        for index, nic in self._interfaces.followers().items():
            if index not in found:
                leaving.append(nic)
            elif not self._interfaces.is_joined(nic, found[index].link):
                _log.warning("%s is not joined with its NIC any more; it gets another", nic.name)
                leaving.append(nic)
                self._replaced.add(index)
        await asyncio.gather(*map(self._unplug, leaving))

    async def _unplug(self, nic: Nic) -> None:
        unplug = partial(self._interfaces.remove, nic)
        if await self._attempts.make(nic.index, None, unplug, f"{nic.name} has gone"):
            self._forget(nic.index)

    def _forget(self, index: int) -> None:
        self._carried.pop(index, None)
        self._indexes.pop(index, None)
        self._unsure.pop(index, None)
        self._readdressed.discard(index)
        self._table.forget(index)
        self._settings.forget(index)
        self._rulesets.doubt()

    async def _plug(self, interface: Interface) -> None:
        # Its NIC may have gone by itself.
        self._forget(interface.link.index)
        await self._interfaces.carry(interface)
        self._replaced.discard(interface.link.index)

    async def _plug_new(self, found: dict[int, Interface], at_once: bool) -> None:
        left_alone = self._interfaces.joined_by_request() | self._dismissed
        left_alone |= self._interfaces.followers().keys()
        for index, interface in found.items():
            if index in left_alone:
                continue
            replaced = index in self._replaced and interface.can_be_named
            if replaced or (interface.is_ready and (at_once or interface.is_running)):
                plug = partial(self._plug, interface)
                event = f"{interface.link.name} is new"
                await self._attempts.make(index, interface, plug, event)

    async def _fill_table(self, wanted: list[Entry]) -> None:
        indexes = {own: index for own, index in self._indexes.items() if self._befores(own)}
        own = entries.of_devices(wanted, indexes)
        change = partial(self._table.change, own, indexes, self._has_source)
        event = "routes, rules or neighbours have changed"
        await self._attempts.make("table", self._table.wish(own), change, event)

    def _has_source(self, route: Entry) -> bool:
        source = entries.route_facts(route).source
        return any(
            source == pack_address(address.address)
            for index in route.devices
            for before in self._befores(index)
            for address in before.addresses
        )

    async def _change_settings(
        self, found: guest_settings.Found, interfaces: Mapping[int, Interface], loopback: Interface
    ) -> None:
        nics = {
            nic.name: interfaces[index]
            for index, nic in self._interfaces.followers().items()
            if index in self._indexes and index in interfaces
        }
        nics[loopback.link.name] = loopback
        change = partial(self._settings.change, found, nics, self.refused)
        await self._attempts.make("settings", None, change, "settings have changed")

    async def _carry_loopback(self, loopback: Interface) -> None:
        index = loopback.link.index
        before = self._carried.get(index)
        if is_taken_over(before, loopback) or not (self._befores(index) or loopback.addresses):
            self._carried[index] = loopback
            return

        async def carry_over() -> None:
            await self._set_interface(loopback)
            self._has_become(loopback)

        await self._attempts.make(index, loopback, carry_over, "loopback has changed")

    async def _configure_interfaces(self, found: dict[int, Interface]) -> None:
        followers = self._interfaces.followers()
        changed = {
            index: found[index]
            for index in followers
            if index in found and not is_taken_over(self._carried.get(index), found[index])
        }
        await self._make_way(changed, followers)
        for index, interface in changed.items():
            carry_over = partial(self._carry_over, followers[index], interface)
            event = f"{interface.link.name} has changed"
            await self._attempts.make(index, interface, carry_over, event)

    async def _make_way(self, changed: dict[int, Interface], followers: dict[int, Nic]) -> None:
        """Rename a NIC away first when another one takes its name."""
        holders = {nic.name: index for index, nic in followers.items()}
        for index, interface in changed.items():
            holder = holders.get(interface.link.name, index)
            if holder != index and holder in changed:
                passing = changed[holder]
                passing = passing._replace(link=passing.link._replace(name=f"tw{holder}"))
                carry_over = partial(self._carry_over, followers[holder], passing)
                event = f"{followers[holder].name} has changed"
                await self._attempts.make(("way", holder), passing, carry_over, event)

    async def _carry_over(self, nic: Nic, interface: Interface) -> None:
        """Make the guest's NIC, its record and its endpoint what the interface is."""
        befores = self._befores(nic.index)
        without = interface.without_carrier()
        if not befores or not all(is_taken_over(b.without_carrier(), without) for b in befores):
            await self._set_interface(interface, nic)
        await self._interfaces.follow(nic, interface)
        if not befores or befores[0].own_mtu != interface.own_mtu:
            _tell_cut(interface)
        self._has_become(interface)

    def _befores(self, index: int) -> Sequence[Interface]:
        """The states of which the guest has one; none where it has not been set yet."""
        carried = self._carried.get(index)
        return self._unsure.get(index) or ((carried,) if carried else ())

    def _has_become(self, interface: Interface) -> None:
        """All of the interface has been carried over."""
        self._carried[interface.link.index] = interface
        self._unsure.pop(interface.link.index, None)

    def _request(
        self, interface: Interface, nic: Nic | None, befores: Sequence[Interface]
    ) -> Request:
        """The agent's request that makes a NIC equal to its interface; `nic` is None for loopback.
        The host's side of a NIC may have another MAC, where two interfaces share one."""
        link = interface.link
        own = self._settings.of_interface(interface, link.name)
        identity = "lo" if link.is_loopback else nic.identity if nic else link.mac
        if befores or link.is_loopback:
            befores = befores or (_fresh(interface),)
            is_readdressed = link.index in self._readdressed
            return change_request(identity, interface, befores, own, is_readdressed)
        address = nic.mac if nic and nic.permanent else None
        return first_request(identity, interface, address, own)

    async def _set_interface(self, interface: Interface, nic: Nic | None = None) -> None:
        own = interface.link.index
        befores = self._befores(own)
        request = self._request(interface, nic, befores)
        # Until it is done the guest's state is not known: it may fail half way.
        self._carried.pop(own, None)
        if befores:
            self._unsure[own] = (*befores[-_MOST_STATES:], interface)
        try:
            answer = await self._agent.call(requests.batch(request))
            replies = answer.get("replies")
            if not isinstance(replies, list) or len(replies) != 1:
                raise AgentError("the agent's answer to set_interface is none")
            self._note_index(own, replies[0])
        except AgentError:
            self._settings.forget(own)
            self._doubt(own, befores)
            raise
        if replies[0].get("lost"):
            # A change of addresses alone loses no neighbours.
            self._doubt(own, befores, routes_alone=not request.keys() & {"address", "name", "up"})
        self._readdressed.discard(own)
        self._unsure[own] = (interface,)

    def _doubt(self, index: int, befores: Iterable[Interface], routes_alone: bool = False) -> None:
        """The guest's kernel drops entries when their interface is renamed, goes down, or loses an
        address; with an address, also routes of other interfaces that have it as their source."""
        self._table.doubt(index, routes_alone)
        lost = {pack_address(one.address) for before in befores for one in before.addresses}
        self._table.doubt_source(lost)


def _tell_cut(interface: Interface) -> None:
    if interface.own_mtu:
        _log.warning(
            "%s has an MTU of %d; the guest's is %d, because a TAP takes no larger one",
            *(interface.link.name, interface.own_mtu, interface.link.mtu),
        )


def _fresh(loopback: Interface) -> Interface:
    """Loopback as it is in a guest where nothing has been set yet."""
    mtu, txqlen = links.USUAL_LOOPBACK
    return loopback._replace(link=loopback.link._replace(mtu=mtu, txqlen=txqlen), addresses=())
