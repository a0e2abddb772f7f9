"""What plugins (or a person) left in a network namespace, and the same as orders to the agent."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from tapwright.linux import addresses, links, neighbours, netns, routes, tuntap
from tapwright.linux.addresses import Address
from tapwright.linux.links import Link
from tapwright.linux.neighbours import Neighbour
from tapwright.linux.netlink import Netlink
from tapwright.linux.routes import Route

Request = dict[str, Any]
Item = TypeVar("Item")

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


class Scan(NamedTuple):
    """The interfaces of a namespace that can be NICs of a VM, and their routes in the order of the
    kernel: of those to one destination with one metric it takes the first."""

    interfaces: list[Interface]
    routes: list[Route]


def scan(nl: Netlink) -> Scan:
    """What can be a NIC: Ethernet, not ours, no bridge. That leaves out loopback and the tunnels
    that kernels put into each new namespace."""
    found = [route for route in routes.listing(nl) if route.protocol not in _NOT_CARRIED]
    own_addresses = _by_index(addresses.listing(nl))
    own_routes = _by_index((route.device, route) for route in found)
    own_neighbours = _by_index((entry.device, entry) for entry in neighbours.listing(nl))
    interfaces = [
        Interface(
            link=link,
            addresses=tuple(a for a in own_addresses[link.index] if not a.is_made_from(link.mac)),
            routes=tuple(own_routes[link.index]),
            neighbours=tuple(own_neighbours[link.index]),
        )
        for link in links.listing(nl)
        if link.is_ethernet and link.alias != OUR_ALIAS and link.kind != "bridge"
    ]
    own = {interface.link.index for interface in interfaces}
    return Scan(interfaces, [route for route in found if route.device in own])


def _by_index(found: Iterable[tuple[int, Item]]) -> dict[int, list[Item]]:
    grouped: dict[int, list[Item]] = defaultdict(list)
    for index, item in found:
        grouped[index].append(item)
    return grouped


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
