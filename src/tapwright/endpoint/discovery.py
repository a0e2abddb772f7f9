"""What plugins (or a person) left in a network namespace, and the same as orders to the agent."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from tapwright.linux import addresses, links, neighbours, netns, routes, tuntap
from tapwright.linux.addresses import Address
from tapwright.linux.links import Link
from tapwright.linux.neighbours import Neighbour
from tapwright.linux.netlink import Netlink
from tapwright.linux.routes import Route

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


def scan(nl: Netlink) -> list[Interface]:
    """The interfaces of the namespace that can become NICs of a VM: Ethernet, up, not ours, and
    ends of their own: no bridge, no port of one, no TAP of somebody else.

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
                if index == link.index and not address.is_link_local
            ),
            routes=tuple(
                route
                for route in all_routes
                if route.device == link.index and route.protocol not in _NOT_CARRIED
            ),
            neighbours=tuple(entry for entry in all_neighbours if entry.device == link.index),
        )
        for link in links.listing(nl)
        if link.is_ethernet
        and link.is_up
        and link.alias != OUR_ALIAS
        and not link.master
        and link.kind not in ("bridge", tuntap.KIND)
    ]


def find(name: str, netns_paths: Iterable[str]) -> tuple[str, Link] | None:
    """The interface of that name and the path of its namespace, the first of some that has it."""
    for path in netns_paths:
        with netns.entered(path), Netlink() as nl:
            if link := links.find(nl, name):
                return path, link
    return None


def guest_requests(interfaces: Iterable[Interface]) -> list[dict[str, Any]]:
    """The agent's requests that give the guest these interfaces, routes and neighbours."""
    found = list(interfaces)
    names = {interface.link.index: interface.link.name for interface in found}
    requests: list[dict[str, Any]] = [
        {
            "op": "set_interface",
            "mac": interface.link.mac,
            "name": interface.link.name,
            "mtu": interface.link.mtu,
            "addresses": [address._asdict() for address in interface.addresses],
        }
        for interface in found
    ]
    # Neighbours first: a route may need none, but its gateway may be known by nothing else.
    for op, key in (("set_neighbours", "neighbours"), ("replace_routes", "routes")):
        entries = [entry for interface in found for entry in getattr(interface, key)]
        requests.append(
            {"op": op, key: [{**e._asdict(), "device": names[e.device]} for e in entries]}
        )
    return requests
