"""Keeps the guest's NICs what the interfaces of the namespace are.

The namespace is looked at as a whole each time, so it does not matter which changes were told of,
in which order, or how often. What fails is said, and tried again later; the rest goes on. NICs that
were plugged by request, and routes added so, are left alone.

Runs in the supervisor; the caller sees to it that one thing is done at a time.
"""

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from tapwright.agent.client import AgentClient
from tapwright.endpoint import discovery
from tapwright.endpoint.discovery import Interface
from tapwright.linux import netns
from tapwright.linux.neighbours import Neighbour
from tapwright.linux.netlink import Netlink
from tapwright.linux.routes import Route
from tapwright.sandbox import record
from tapwright.sandbox.attempts import Attempts
from tapwright.sandbox.guest_table import GuestTable
from tapwright.sandbox.interfaces import Interfaces

_log = logging.getLogger(__name__)

Nic = record.Interface
Table = GuestTable[Route] | GuestTable[Neighbour]


class Following:
    """The NICs of a sandbox that follow the interfaces of the namespace at `path`."""

    def __init__(self, path: str, interfaces: Interfaces, agent: AgentClient) -> None:
        self._path = path
        self._interfaces = interfaces
        self._agent = agent
        # The interfaces as the guest has them.
        self._carried: dict[int, Interface] = {}
        # Several routes of one metric, such as next hops of one, are one after another.
        self._routes = GuestTable[Route](agent, "routes", _alternatives, append=True)
        self._order: list[Route] = []  # that of the namespace
        self._neighbours = GuestTable[Neighbour](agent, "neighbours")
        # Their NICs were removed by request: they stay away until they themselves are gone.
        self._dismissed: set[int] = set()
        self._attempts = Attempts()

    async def begin(self, networks: dict[str, str]) -> list[discovery.Request]:
        """Give each interface of the namespace that is up a NIC; return the agent's requests that
        configure them, to be followed by `fill_tables`. `networks` are the names of CNI networks by
        interface.

        Raises NetworkError, HypervisorError.
        """
        found = [interface for interface in self._scan() if interface.is_ready]
        for interface in found:
            await self._interfaces.carry(interface, networks.get(interface.link.name, ""))
        # A new NIC has its carrier, also where the interface has none.
        self._carried = {interface.link.index: interface.with_carrier() for interface in found}
        return [discovery.interface_request(interface) for interface in found]

    async def fill_tables(self) -> None:
        """Give the guest the routes and neighbours of the interfaces that `begin` found.

        Raises AgentError, AgentRefusedError.
        """
        names = {index: interface.link.name for index, interface in self._carried.items()}
        # Neighbours first: a route may need none, but its gateway may be known by nothing else.
        for table, entries in self._tables(self._carried):
            await table.change(entries, names)

    def _tables(self, interfaces: dict[int, Interface]) -> Iterator[tuple[Table, list[Any]]]:
        """The guest's tables, and what of the interfaces belongs there."""
        found = interfaces.values()
        yield self._neighbours, [entry for one in found for entry in one.neighbours]
        yield self._routes, [route for route in self._order if route.device in interfaces]

    def dismiss(self, index: int) -> None:
        """Leave an interface alone whose NIC was removed by request."""
        self._dismissed.add(index)

    async def sync(self, at_once: bool = False) -> float | None:
        """Bring the guest to what the namespace is; return the seconds after which to try again
        what failed, None where nothing did. With `at_once` interfaces that are up get their NICs
        also where they have no carrier so far: the kernel may tell of it only later.

        Raises OSError when the namespace is gone, AgentError when the guest does not answer.
        """
        scanned = self._scan()
        if at_once:
            scanned = [interface.with_carrier() for interface in scanned]
        found = {interface.link.index: interface for interface in scanned}
        self._dismissed &= found.keys()
        try:
            await self._unplug_gone(found)
            # Those that are there first: one may give up the name of a new one.
            await self._configure_interfaces(found)
            await self._plug_new(found)
            await self._configure_interfaces(found)
            await self._fill_tables_anew(found)
        finally:
            again = self._attempts.end_round()
        return again

    def _scan(self) -> list[Interface]:
        with netns.entered(self._path), Netlink() as nl:
            interfaces, self._order = discovery.scan(nl)
        return interfaces

    async def _unplug_gone(self, found: dict[int, Interface]) -> None:
        """Also of what has been out of the namespace in the meantime, or has another MAC: that
        comes as new."""
        leaving = []
        for index, nic in self._interfaces.followers().items():
            if index not in found:
                leaving.append(nic)
            elif not self._interfaces.is_joined(nic, found[index].link):
                _log.warning("%s is not joined with its NIC any more; it gets another", nic.name)
                leaving.append(nic)
        await asyncio.gather(*map(self._unplug, leaving))

    async def _unplug(self, nic: Nic) -> None:
        unplug = partial(self._interfaces.remove, nic)
        if await self._attempts.make(nic.index, None, unplug, f"{nic.name} has gone"):
            self._forget(nic.index)

    def _forget(self, index: int) -> None:
        self._carried.pop(index, None)
        self._routes.forget(index)
        self._neighbours.forget(index)

    async def _plug(self, interface: Interface) -> None:
        # Its NIC may have gone by itself.
        self._forget(interface.link.index)
        await self._interfaces.carry(interface)

    async def _plug_new(self, found: dict[int, Interface]) -> None:
        left_alone = self._interfaces.joined_by_request() | self._dismissed
        left_alone |= self._interfaces.followers().keys()
        for index, interface in found.items():
            if index not in left_alone and interface.is_ready and interface.is_running:
                plug = partial(self._plug, interface)
                told = f"{interface.link.name} is new"
                await self._attempts.make(index, interface, plug, told)

    async def _fill_tables_anew(self, found: dict[int, Interface]) -> None:
        followers = self._interfaces.followers()
        names = {index: nic.name for index, nic in followers.items() if index in self._carried}
        wanted = {index: found[index] for index in names if index in found}
        for table, entries in self._tables(wanted):
            change = partial(table.change, entries, names)
            told = f"{table.what} have changed"
            await self._attempts.make(table.what, table.wish(entries), change, told)

    async def _configure_interfaces(self, found: dict[int, Interface]) -> None:
        followers = self._interfaces.followers()
        changed = {
            index: found[index]
            for index in followers
            if index in found and _settings(self._carried.get(index)) != _settings(found[index])
        }
        await self._make_way(changed, followers)
        for index, interface in changed.items():
            carry_over = partial(self._carry_over, followers[index], interface)
            told = f"{interface.link.name} has changed"
            await self._attempts.make(index, interface, carry_over, told)

    async def _make_way(self, changed: dict[int, Interface], followers: dict[int, Nic]) -> None:
        """Where one takes the name that another gives up, have that one give it up first."""
        holders = {nic.name: index for index, nic in followers.items()}
        for index, interface in changed.items():
            holder = holders.get(interface.link.name, index)
            if holder != index and holder in changed:
                passing = changed[holder]
                passing = passing._replace(link=passing.link._replace(name=f"tw{holder}"))
                carry_over = partial(self._carry_over, followers[holder], passing)
                told = f"{followers[holder].name} has changed"
                await self._attempts.make(("way", holder), passing, carry_over, told)

    async def _carry_over(self, nic: Nic, interface: Interface) -> None:
        """Make the guest's NIC, its record and its endpoint what the interface is."""
        # Until it is done nobody knows what the guest has: it may fail half way.
        before = self._carried.pop(nic.index, None)
        self._doubt(nic.index, before)
        request = discovery.interface_request(interface)
        # The host's side of a NIC may have had to take another MAC.
        await self._agent.call("batch", requests=[{**request, "mac": nic.mac}])
        await self._interfaces.follow(nic, interface)
        self._carried[nic.index] = interface

    def _doubt(self, index: int, before: Interface | None) -> None:
        """The guest's kernel drops entries when their interface is renamed, goes down, or loses an
        address; and with an address the routes of others too that have it as their source."""
        self._routes.doubt(index)
        self._neighbours.doubt(index)
        lost = {address.address for address in before.addresses} if before else set()
        for route in self._routes.present:
            if route.source in lost:
                self._routes.doubt(route.device)


def _alternatives(route: Route) -> object:
    """What is the same for routes of which the kernel takes the first."""
    return route.destination, route.metric, route.table


def _settings(interface: Interface | None) -> object:
    """What a NIC takes over from its interface, but for its entries in tables."""
    if interface is None:
        return None
    link = interface.link
    state = link.is_up, interface.is_running
    return link.name, link.mtu, link.txqlen, state, interface.addresses
