"""Keeps the guest's NICs what the interfaces of the namespace are.

The namespace is looked at as a whole each time, so it does not matter which changes were told of,
in which order, or how often. What fails is said, and tried again later; the rest goes on. NICs that
were plugged by request, and routes added so, are left alone.

Runs in the supervisor; the caller sees to it that one thing is done at a time.
"""

import asyncio
from functools import partial

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

Nic = record.Interface


class Following:
    """The NICs of a sandbox that follow the interfaces of the namespace at `path`."""

    def __init__(self, path: str, interfaces: Interfaces, agent: AgentClient) -> None:
        self._path = path
        self._interfaces = interfaces
        self._agent = agent
        # The interfaces as the guest has them.
        self._carried: dict[int, Interface] = {}
        self._routes = GuestTable[Route](agent, "change_routes")
        self._neighbours = GuestTable[Neighbour](agent, "change_neighbours")
        # Their NICs were removed by request: they stay away until they themselves are gone.
        self._dismissed: set[int] = set()
        self._attempts = Attempts()

    async def begin(self, networks: dict[str, str]) -> list[discovery.Request]:
        """Give each interface of the namespace that is up a NIC; return the agent's requests that
        configure them. `networks` are the names of CNI networks by interface.

        Raises NetworkError, HypervisorError.
        """
        found = [interface for interface in self._scan() if interface.is_ready]
        for interface in found:
            await self._interfaces.carry(interface, networks.get(interface.link.name, ""))
        # A new NIC has its carrier, also where the interface has none.
        self._carried = {interface.link.index: interface.with_carrier() for interface in found}
        self._routes.present = {route for interface in found for route in interface.routes}
        self._neighbours.present = {e for interface in found for e in interface.neighbours}
        return discovery.guest_requests(found)

    def dismiss(self, index: int) -> None:
        """Leave an interface alone whose NIC was removed by request."""
        self._dismissed.add(index)
        self._forget(index)

    async def sync(self) -> float | None:
        """Bring the guest to what the namespace is; return the seconds after which to try again
        what failed, None where nothing did. Raises OSError when the namespace is gone."""
        found = {interface.link.index: interface for interface in self._scan()}
        self._dismissed &= found.keys()
        await self._unplug_gone(found)
        await self._plug_new(found)
        await self._configure(found)
        nics = found.keys() | self._interfaces.followers().keys()
        self._attempts.forget_all_but([*nics, "routes", "neighbours"])
        return self._attempts.seconds_to_next()

    def _scan(self) -> list[Interface]:
        with netns.entered(self._path), Netlink() as nl:
            return discovery.scan(nl)

    async def _unplug_gone(self, found: dict[int, Interface]) -> None:
        """Also of what has been out of the namespace in the meantime, or has another MAC: that
        comes as new."""
        leaving = [
            nic
            for index, nic in self._interfaces.followers().items()
            if index not in found or not self._interfaces.is_joined(nic, found[index].link)
        ]
        await asyncio.gather(*map(self._unplug, leaving))

    async def _unplug(self, nic: Nic) -> None:
        unplug = partial(self._interfaces.unplug, nic)
        if await self._attempts.make(nic.index, None, unplug, f"{nic.name} has gone"):
            self._forget(nic.index)

    def _forget(self, index: int) -> None:
        self._carried.pop(index, None)
        self._routes.forget(index)
        self._neighbours.forget(index)

    async def _plug_new(self, found: dict[int, Interface]) -> None:
        left_alone = self._interfaces.joined_by_request() | self._dismissed
        left_alone |= self._interfaces.followers().keys()
        for index, interface in found.items():
            if index not in left_alone and interface.is_ready and interface.is_running:
                carry = partial(self._interfaces.carry, interface)
                told = f"{interface.link.name} is new"
                await self._attempts.make(index, interface, carry, told)

    async def _configure(self, found: dict[int, Interface]) -> None:
        followers = self._interfaces.followers()
        wanted = {index: found[index] for index in followers if index in found}
        touched = await self._configure_interfaces(wanted, followers)
        names = {index: nic.name for index, nic in followers.items() if index in self._carried}
        neighbours = {e for interface in wanted.values() for e in interface.neighbours}
        change = partial(self._neighbours.change, neighbours, names, touched)
        await self._attempts.make("neighbours", neighbours, change, "neighbours have changed")
        routes = {route for interface in wanted.values() for route in interface.routes}
        change = partial(self._routes.change, routes, names, touched)
        await self._attempts.make("routes", routes, change, "routes have changed")

    async def _configure_interfaces(
        self, wanted: dict[int, Interface], followers: dict[int, Nic]
    ) -> set[int]:
        """Return the indices of those that were changed."""
        changed = {
            index: interface
            for index, interface in wanted.items()
            if _settings(self._carried.get(index)) != _settings(interface)
        }
        await self._make_way(changed, followers)
        touched = set()
        for index, interface in changed.items():
            carry_over = partial(self._carry_over, followers[index], interface)
            told = f"{interface.link.name} has changed"
            if await self._attempts.make(index, interface, carry_over, told):
                touched.add(index)
        return touched

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
                await self._attempts.make(holder, passing, carry_over, told)

    async def _carry_over(self, nic: Nic, interface: Interface) -> None:
        """Make the guest's NIC, its record and its endpoint what the interface is."""
        request = discovery.interface_request(interface)
        # The host's side of a NIC may have had to take another MAC.
        await self._agent.call("batch", requests=[{**request, "mac": nic.mac}])
        await self._interfaces.follow(nic, interface)
        self._carried[nic.index] = interface


def _settings(interface: Interface | None) -> object:
    """What a NIC takes over from its interface, but for its entries in tables."""
    if interface is None:
        return None
    link = interface.link
    state = link.is_up, interface.is_running
    return link.name, link.mtu, link.txqlen, state, interface.addresses
