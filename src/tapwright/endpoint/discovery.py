"""Reads what plugins, or a person, left in a network namespace."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from tapwright.endpoint import carried
from tapwright.errors import NetworkError
from tapwright.linux import addresses, entries, links, netns, routes, settings, tuntap
from tapwright.linux.addresses import Address
from tapwright.linux.entries import Entry, TooManyError
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.linux.routes import Route
from tapwright.linux.settings import OfInterface

OUR_ALIAS = "tapwright"
"""The alias that marks every device which Tapwright makes in a namespace."""

MOST_ROUTES = 32768
"""More routes are not carried: they would keep the guest busy."""
_MOST_OTHERS = 8192
_LEAST_IPV6 = 1280  # the MTU of a link (RFC 8200, section 5)


class Interface(NamedTuple):
    """An interface of a namespace with everything that the guest's NIC takes over from it, except
    for entries in tables. Its MTU is one that a TAP supports."""

    link: Link
    addresses: tuple[Address, ...]
    settings: OfInterface = OfInterface()
    own_mtu: int = 0
    """The interface's own MTU, if it is larger."""
    own_link_local: bool = False
    """Whether it lacks the link-local address that the kernel should have made from its MAC
    address: the MAC address came later, or a program removed the address."""

    @property
    def is_ready(self) -> bool:
        """Whether the interface can become a NIC now: it is up, and no port of a bridge (or the
        like)."""
        return self.link.is_up and not self.link.is_port

    @property
    def can_be_named(self) -> bool:
        """Whether the interface can become a NIC even while it is down, where something says that
        it shall."""
        return not why_not(self.link)

    @property
    def is_running(self) -> bool:
        """Whether the interface has a carrier, as far as the kernel has taken note of it."""
        return self.link.is_running or _gets_a_carrier(self.link)

    @property
    def lasting(self) -> tuple[Address, ...]:
        """Return the addresses that the guest has as long as the namespace: without those that a
        kernel makes, from the MAC address or from router advertisements, which go to the guest from
        now on."""
        makes = self.settings.makes_link_local
        return tuple(
            address
            for address in self.addresses
            if not (address.is_advertised or (makes and address.is_made_from(self.link.mac)))
        )

    def without_carrier(self) -> "Interface":
        """Return the same interface, as if it had none."""
        flags = self.link.flags & ~(links.IFF_RUNNING | links.IFF_LOWER_UP)
        return self._replace(link=self.link._replace(flags=flags))

    @property
    def special_settings(self) -> dict[str, str]:
        """Return the settings in `conf` that differ from a new interface's, by PROTOCOL/NAME."""
        special = self.settings.special(self.link.is_loopback)
        if self.link.mtu < _LEAST_IPV6:
            special.pop(settings.IPV6_OFF, None)  # no kernel has IPv6 on such an interface
        # Otherwise the guest's kernel would make one from the MAC address when the NIC comes up, or
        # from a secret of its own.
        makes_others = special.get(settings.ADDRESS_GENERATION) in settings.BY_SECRET
        is_own = self.own_link_local or makes_others
        return special | ({settings.ADDRESS_GENERATION: settings.NO_ADDRESS} if is_own else {})

    def settled(self) -> "Interface":
        """Return the same interface as it is when the kernel has taken note of its carrier."""
        running = links.IFF_RUNNING if has_carrier(self.link) else 0
        flags = self.link.flags & ~links.IFF_RUNNING | running
        return self._replace(link=self.link._replace(flags=flags))


def has_carrier(link: Link) -> bool:
    """Return whether an interface has a carrier at this moment."""
    return link.has_carrier or _gets_a_carrier(link)


def _gets_a_carrier(link: Link) -> bool:
    """Return whether an interface has its carrier from the process that holds it: a TAP."""
    return link.kind == tuntap.KIND


def why_not(link: Link) -> str:
    """Return why an interface can't become a NIC, not even by name and while it is down; empty if
    it can. A TAP can, even as a port of a bridge, if its other end is free for the NIC."""
    if not link.is_port:
        return ""
    if tuntap.is_held(link):
        return "it is a TAP that another process holds"
    if not tuntap.settings(link):
        return f"it is a port of a {link.master_kind}, whose frames its are"
    return ""


class Scan(NamedTuple):
    """The interfaces of a namespace that can be NICs of a VM, its loopback, and the routes, rules,
    next hops and static neighbours that no kernel makes by itself. Routes are in the kernel's
    order: of routes to one destination with one metric, it takes the first."""

    interfaces: list[Interface]
    loopback: Interface
    entries: list[Entry]

    def routes(self) -> list[Route]:
        """The routes through the interfaces, without those that the kernel makes."""
        own = {interface.link.index for interface in self.interfaces}
        return [
            route
            for entry in self.entries
            if entry.kind == entries.ROUTE and not entry.absent
            for route in routes.decode(entry.body)
            if route.device in own
        ]


def scan(nl: Netlink) -> Scan:
    """Return what can be a NIC: Ethernet, not made by Tapwright, no bridge. That leaves out the
    tunnels that kernels put into each new namespace.

    Raises NetworkError if the namespace has more than is carried.
    """
    own_addresses: dict[int, list[tuple[int, Address]]] = defaultdict(list)
    of_all = addresses.listing_with_state(nl, _MOST_OTHERS)
    if len(of_all) > _MOST_OTHERS:
        raise _too_many(f"more than {_MOST_OTHERS} addresses")
    listed = [(link, settings.of_interface(of)) for link, of in links.listing_with_settings(nl)]
    if _lacking(listed, of_all):
        # A kernel may just have been about to make them.
        of_all = addresses.listing_with_state(nl, _MOST_OTHERS)
    lacking = _lacking(listed, of_all)
    for index, state, address in of_all:
        own_addresses[index].append((state, address))
    found, loopback = [], None
    for link, of_link in listed:
        own = own_addresses[link.index]
        is_cut = link.mtu > tuntap.LARGEST_MTU and not link.is_loopback
        interface = Interface(
            link=link._replace(mtu=tuntap.LARGEST_MTU) if is_cut else link,
            addresses=tuple(a for _, a in own if not _is_kernels(a, link, of_link)),
            settings=of_link,
            own_mtu=link.mtu if is_cut else 0,
            own_link_local=link.index in lacking,
        )
        if link.is_loopback:
            loopback = interface
        elif link.is_ethernet and link.alias != OUR_ALIAS and link.kind != "bridge":
            found.append(interface)
    if loopback is None:
        raise NetworkError("the network namespace has no loopback")
    with_addresses = [(interface, own_addresses[interface.link.index]) for interface in found]
    try:
        return Scan(found, loopback, _entries(nl, with_addresses))
    except TooManyError as error:
        raise _too_many(str(error)) from None


def _too_many(what: str) -> NetworkError:
    return NetworkError(
        f"the network namespace has {what}, which a guest is not given; remove some"
    )


def _lacking(
    listed: Iterable[tuple[Link, OfInterface]], found: Iterable[tuple[int, int, Address]]
) -> set[int]:
    """Return the indexes of interfaces without the link-local address that a kernel makes from
    their MAC address, although they have another one, or are running and may have one."""
    local: dict[int, list[Address]] = defaultdict(list)
    for index, _, address in found:
        if address.address.startswith("fe80:"):
            local[index].append(address)
    return {
        link.index
        for link, of_link in listed
        if link.is_ethernet
        and not link.is_loopback
        and (local[link.index] or (link.is_running and not link.master))
        and not any(address.is_made_from(link.mac) for address in local[link.index])
        and of_link.makes_link_local
    }


def _is_kernels(address: Address, link: Link, of_link: OfInterface) -> bool:
    """Whether the guest's kernel makes the address by itself: a link-local address when the NIC
    gets its carrier."""
    if link.is_loopback:
        return str(address) in ("127.0.0.1/8", "::1/128")
    return address.is_made_from(link.mac) and of_link.makes_link_local and has_carrier(link)


def _entries(
    nl: Netlink, interfaces: list[tuple[Interface, list[tuple[int, Address]]]]
) -> list[Entry]:
    connected = _connected(interfaces)
    found, missing = carried.routes(entries.routes(nl, MOST_ROUTES), connected)
    others = [*entries.neighbours(nl, _MOST_OTHERS), *entries.next_hops(nl, _MOST_OTHERS)]
    rules = carried.rules(entries.rules(nl, _MOST_OTHERS))
    if missing:
        # The kernel may still be making routes: an address is visible before its route.
        found, missing = carried.routes(entries.routes(nl, MOST_ROUTES), connected)
    return [*missing, *others, *found, *rules]


def _connected(
    interfaces: list[tuple[Interface, list[tuple[int, Address]]]],
) -> list[carried.Connected]:
    """Return the addresses for which the guest's kernel makes routes."""
    return [
        carried.Connected(interface.link.index, address)
        for interface, own in interfaces
        if interface.link.is_up and not interface.link.master
        for state, address in own
        if carried.makes_a_route(state, address)
    ]


def find(name: str, netns_paths: Iterable[str]) -> tuple[str, Link] | None:
    """Return the interface of this name, and the path of its namespace: the first of the paths that
    has it."""
    for path in netns_paths:
        with netns.entered(path), Netlink() as nl:
            if link := links.find(nl, name):
                return path, link
    return None


def looks(link: Link) -> dict[str, Any]:
    """Return the further properties of an interface that differ from a new interface's."""
    if link.is_loopback:
        return {}
    looks: dict[str, Any] = {}
    if link.alias:
        looks["alias"] = link.alias
    if link.altnames:
        looks["altnames"] = link.altnames
    if link.group:
        looks["group"] = link.group
    if (flags := link.flags & links.FLAGS_OF_USERS) != links.IFF_MULTICAST:
        looks["flags"] = flags
    return looks
