"""What plugins (or a person) left in a network namespace, and the same as orders to the agent."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tapwright.linux import addresses, links, neighbours, netns, routes, tuntap
from tapwright.linux.addresses import Address
from tapwright.linux.links import Link
from tapwright.linux.neighbours import Neighbour
from tapwright.linux.netlink import Netlink
from tapwright.linux.routes import Route

Request = dict[str, Any]

OUR_ALIAS = "tapwright"
"""The alias of every device that Tapwright makes in a namespace, by which it is known as ours."""

# Routes of these origins appear by themselves in the guest: the kernel makes them from the
# addresses, and router advertisements and redirects reach the guest's own stack.
_RTPROT_REDIRECT, _RTPROT_RA = 1, 9
_NOT_CARRIED = (routes.RTPROT_KERNEL, _RTPROT_REDIRECT, _RTPROT_RA)


class Interface(NamedTuple):
    """An interface of a namespace with all that the guest's NIC takes over from it."""

    link: Link
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]

    @property
    def is_ready(self) -> bool:
        """Whether it can become a NIC now: up, no port of a bridge (or the like), and no TAP that
        somebody else holds."""
        tap = tuntap.settings(self.link)
        return self.link.is_up and not self.link.master and not (tap and tap.taken)

    @property
    def is_running(self) -> bool:
        """Whether it has a carrier. A TAP gets that from whoever holds it."""
        return self.link.is_running or self.link.kind == tuntap.KIND

    def with_carrier(self) -> "Interface":
        """The same, as if it had a carrier."""
        return self._replace(link=self.link._replace(flags=self.link.flags | links.IFF_RUNNING))


def scan(nl: Netlink) -> list[Interface]:
    """The interfaces of the namespace that can be NICs of a VM: Ethernet, not ours, no bridge.

    That leaves out loopback and the tunnels that kernels put into each new namespace.
    """
    all_addresses = addresses.listing(nl)
    all_routes = routes.listing(nl)
    all_neighbours = neighbours.listing(nl)
    return [
        Interface(
            link=link,
            addresses=tuple(
                address
                for index, address in all_addresses
                if index == link.index and not address.is_made_from(link.mac)
            ),
            routes=tuple(
                route
                for route in all_routes
                if route.device == link.index and route.protocol not in _NOT_CARRIED
            ),
            neighbours=tuple(entry for entry in all_neighbours if entry.device == link.index),
        )
        for link in links.listing(nl)
        if link.is_ethernet and link.alias != OUR_ALIAS and link.kind != "bridge"
    ]


def find(name: str, netns_paths: Iterable[str]) -> tuple[str, Link] | None:
    """The interface of that name and the path of its namespace, the first of some that has it."""
    for path in netns_paths:
        with netns.entered(path), Netlink() as nl:
            if link := links.find(nl, name):
                return path, link
    return None


def interface_request(interface: Interface) -> Request:
    """The agent's request that makes a NIC of the guest what the interface is."""
    link = interface.link
    return {
        "op": "set_interface",
        "mac": link.mac,
        "name": link.name,
        "mtu": link.mtu,
        "txqlen": link.txqlen,
        "up": link.is_up,
        "addresses": [address._asdict() for address in interface.addresses],
    }


def entries(found: Iterable[Route | Neighbour], names: Mapping[int, str]) -> list[Request]:
    """Routes or neighbours as the agent takes them, devices by name."""
    return [{**entry._asdict(), "device": names[entry.device]} for entry in found]


def guest_requests(interfaces: Iterable[Interface]) -> list[Request]:
    """The agent's requests that give a new guest these interfaces, routes and neighbours."""
    found = list(interfaces)
    names = {interface.link.index: interface.link.name for interface in found}
    requests = [interface_request(interface) for interface in found]
    # Neighbours first: a route may need none, but its gateway may be known by nothing else.
    for op, key in (("set_neighbours", "neighbours"), ("replace_routes", "routes")):
        every = [entry for interface in found for entry in getattr(interface, key)]
        requests.append({"op": op, key: entries(every, names)})
    return requests
