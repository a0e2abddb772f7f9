"""Keeps the guest's NICs equal to the interfaces of the namespace.

Each look reads the whole namespace, so it does not matter which changes were reported, in which
order, or how often. A failure is logged, and tried again later; the rest goes on. NICs that were
plugged by request, and routes added so, stay as they are.

Runs in the supervisor; the caller makes one call at a time.
"""

import asyncio
import errno
import logging
from collections.abc import Iterable, Mapping
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
from tapwright.linux.addresses import Address
from tapwright.linux.entries import Entry
from tapwright.linux.netlink import Netlink, pack_address
from tapwright.nics import guest_settings, rulesets
from tapwright.nics.attempts import Attempts
from tapwright.nics.guest_settings import GuestSettings
from tapwright.nics.guest_table import GuestTable
from tapwright.nics.interfaces import Followers, Interfaces
from tapwright.nics.rulesets import Rulesets
from tapwright.state.record import Nic

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
        # Addresses that their NICs were given, whatever else programs of the guest have added.
        self._given: dict[int, tuple[Address, ...]] = {}
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
        made = [self._request(one, nics.get(one.link.index)) for one in found]
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
        self._doubt(index, self._carried.get(index))
        self._given.pop(index, None)

    async def sync(self, at_once: bool = False) -> float | None:
        """Make the guest's network equal to the namespace's; return the seconds after which to try
        again what failed, None if nothing failed. With `at_once`, interfaces that are up get their
        NICs even without a carrier; and it is an error when the guest refuses packet rules that are
        required.

        Raises OSError when the namespace is gone, AgentError when the guest does not answer.
        """
        self.refused.clear()
        scan, own = await asyncio.to_thread(self._look)
        scanned = self._interfaces.without_our_flags(scan.interfaces)
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
        """Unplug NICs whose interface has gone, has been out of the namespace in the meantime, or
        has another MAC: the last two get another NIC at once, whatever their state."""
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
        self._given.pop(index, None)
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
        indexes = {own: index for own, index in self._indexes.items() if own in self._carried}
        own = entries.of_devices(wanted, indexes)
        change = partial(self._table.change, own, indexes, self._has_source)
        event = "routes, rules or neighbours have changed"
        await self._attempts.make("table", self._table.wish(own), change, event)

    def _has_source(self, route: Entry) -> bool:
        source = entries.route_facts(route).source
        return any(
            source == pack_address(address.address)
            for index in route.devices
            if index in self._carried
            for address in self._carried[index].addresses
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
        if _is_carried(before, loopback) or not (before or loopback.addresses):
            self._carried[index] = loopback
            return

        async def carry_over() -> None:
            before = self._carried.pop(index, None)
            self._doubt(index, before)
            await self._set_interface(loopback, before=before)
            self._carried[index] = loopback

        await self._attempts.make(index, loopback, carry_over, "loopback has changed")

    async def _configure_interfaces(self, found: dict[int, Interface]) -> None:
        followers = self._interfaces.followers()
        changed = {
            index: found[index]
            for index in followers
            if index in found and not _is_carried(self._carried.get(index), found[index])
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
        # Until it is done the guest's state is unknown: it may fail half way.
        before = self._carried.pop(nic.index, None)
        if not _is_carried(before and before.without_carrier(), interface.without_carrier()):
            self._doubt(nic.index, before)
            await self._set_interface(interface, nic, before)
        await self._interfaces.follow(nic, interface)
        self._carried[nic.index] = interface
        if before is None or before.own_mtu != interface.own_mtu:
            _tell_cut(interface)

    def _request(
        self, interface: Interface, nic: Nic | None, before: Interface | None = None
    ) -> Request:
        """The agent's request that makes a NIC equal to its interface; `nic` is None for loopback.
        The host's side of a NIC may have another MAC, where two interfaces share one. The guest
        leaves out what its kernel refuses.

        Of an interface that was carried as it was `before`, only changes of sizes and addresses
        are sent: otherwise what a program of the guest has set would be lost, which it is not in
        the namespace."""
        link = interface.link
        given = self._given.get(link.index, () if link.is_loopback else None)
        wanted = interface.addresses if given is None else interface.lasting
        self._given[link.index] = tuple(dict.fromkeys((*(given or ()), *wanted)))
        ended = before.link.flags & ~link.flags & links.FLAGS_OF_RECEPTION if before else 0
        return requests.set_interface(
            "lo" if link.is_loopback else nic.identity if nic else link.mac,
            link.name,
            [address.relative() for address in wanted],
            unwanted=None if given is None else _without(given, wanted),
            address=nic.mac if nic and nic.permanent else None,
            looks=discovery.looks(link),
            settings=self._settings.of_interface(interface, link.name),
            index=link.index,
            mtu=None if before and before.link.mtu == link.mtu else link.mtu,
            txqlen=None if before and before.link.txqlen == link.txqlen else link.txqlen,
            up=link.is_up or link.is_loopback,
            running=None if link.is_loopback else interface.is_running,
            as_far_as_possible=True,
            ended=ended or None,
        )

    async def _set_interface(
        self, interface: Interface, nic: Nic | None = None, before: Interface | None = None
    ) -> None:
        own = interface.link.index
        request = self._request(interface, nic, before)
        try:
            answer = await self._agent.call(requests.batch(request))
            replies = answer.get("replies")
            if not isinstance(replies, list) or len(replies) != 1:
                raise AgentError("the agent's answer to set_interface is none")
            self._note_index(own, replies[0])
            self._given[own] = interface.lasting
        except AgentError:
            self._settings.forget(own)
            raise

    def _doubt(self, index: int, before: Interface | None) -> None:
        """The guest's kernel drops entries when their interface is renamed, goes down, or loses an
        address; with an address, also routes of other interfaces that have it as their source."""
        self._table.doubt(index)
        if before:
            self._table.doubt_source({pack_address(one.address) for one in before.addresses})


def _tell_cut(interface: Interface) -> None:
    if interface.own_mtu:
        _log.warning(
            "%s has an MTU of %d; the guest's is %d, because a TAP takes no larger one",
            *(interface.link.name, interface.own_mtu, interface.link.mtu),
        )


def _without(given: Iterable[Address], wanted: Iterable[Address]) -> list[dict[str, Any]]:
    """Return the addresses that were given and are not wanted any more, for the agent."""
    kept = {one.timeless for one in wanted}
    timeless = dict.fromkeys(one.timeless for one in given)
    return [one.relative() for one in timeless if one not in kept and not one.is_advertised]


def _is_carried(before: Interface | None, found: Interface) -> bool:
    """Whether a NIC has all that it takes over from its interface, but for settings and entries in
    tables."""
    return (
        before is not None
        and _taken_over(before) == _taken_over(found)
        and all(
            one.ends_with(other) for one, other in zip(before.lasting, found.lasting, strict=True)
        )
    )


def _taken_over(interface: Interface) -> object:
    link = interface.link
    state = link.is_up, interface.is_running
    timeless = [one.timeless for one in interface.lasting]
    own = interface.own_link_local, interface.settings.makes_link_local
    return link.name, link.mtu, link.txqlen, state, timeless, own, discovery.looks(link)
