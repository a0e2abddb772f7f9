"""Says which of a namespace's routes and rules the guest gets: all but those that its kernel makes
itself. If the namespace lacks one of those, the guest must lack it, too."""

import socket
from collections.abc import Iterable
from typing import NamedTuple

from tapwright.linux import addresses, entries, netlink
from tapwright.linux.addresses import Address
from tapwright.linux.entries import Entry

# Router advertisements and redirects reach the guest's own stack, which makes these.
_OF_THE_GUEST = frozenset((entries.RTPROT_REDIRECT, entries.RTPROT_RA))


class Connected(NamedTuple):
    """An address of an interface, by the interface's index, for which a kernel makes a route to the
    subnet."""

    device: int
    address: Address

    def place(self) -> tuple[int, bytes, int, int, bytes, int]:
        """(family, packed subnet, its length, device, packed source, metric) of that route."""
        address = self.address
        packed = netlink.pack_address(address.peer or address.address)
        bits = len(packed) * 8
        length = address.prefix_length
        mask = (1 << bits) - (1 << (bits - length))
        subnet = (int.from_bytes(packed, "big") & mask).to_bytes(bits // 8, "big")
        if address.is_ipv4:
            source = netlink.pack_address(address.address)
            return socket.AF_INET, subnet, length, self.device, source, address.metric
        return socket.AF_INET6, subnet, length, self.device, b"", address.metric or 256


def makes_a_route(state: int, address: Address) -> bool:
    """Whether a kernel makes a route at once with an address whose flags are `state`
    (fib_add_ifaddr in net/ipv4/fib_frontend.c, inet6_addr_add in net/ipv6/addrconf.c)."""
    if state & addresses.IFA_F_NOPREFIXROUTE:
        return False
    if not address.is_ipv4:
        # The route to a peer comes when duplicate address detection has ended.
        return not state & addresses.IFA_F_DADFAILED and address.peer is None
    is_first = not state & addresses.IFA_F_SECONDARY
    return is_first and (address.prefix_length < 32 or address.peer is not None)


def routes(
    found: Iterable[Entry], connected: Iterable[Connected]
) -> tuple[list[Entry], list[Entry]]:
    """Return the routes of a namespace that the guest gets, and the routes that the guest's kernel
    will make and the namespace lacks."""
    expected = {one.place() for one in connected}
    given = []
    for entry in found:
        protocol = entry.body[_PROTOCOL]
        if protocol in _OF_THE_GUEST:
            continue
        if protocol != entries.RTPROT_KERNEL:
            given.append(entry)
            continue
        facts, key = entries.route_facts(entry), entries.route_key(entry)
        if key.table == entries.TABLE_LOCAL or facts.type != entries.RTN_UNICAST:
            continue
        if key.table != entries.TABLE_MAIN:
            given.append(entry)  # a kernel makes no route in these by itself
            continue
        subnet = key.destination or bytes(4 if facts.family == socket.AF_INET else 16)
        device = entry.devices[0] if entry.devices else 0
        place = facts.family, subnet, key.length, device, facts.source, key.metric
        if place in expected:
            expected.remove(place)
        elif _is_somebodys(entry, facts, key.metric):
            given.append(entry)
    return given, [entries.connected_route(*place) for place in sorted(expected)]


_PROTOCOL = 5  # its offset in struct rtmsg


def _is_somebodys(entry: Entry, facts: entries.RouteFacts, metric: int) -> bool:
    """Whether a route claims to be the kernel's, but is none that a kernel makes."""
    if entry.has_gateway:
        return True
    return facts.family == socket.AF_INET6 and metric != 256


def rules(found: Iterable[Entry]) -> list[Entry]:
    """Return the rules that a new namespace lacks, and the rules that a new namespace has and this
    one lacks."""
    given = list(found)
    missing = []
    for family in entries.FAMILIES:
        own = [entry for entry in given if entry.body[0] == family]
        if not own:
            continue  # the kernel has no such rules
        for rule in entries.default_rules(family):
            if rule in given:
                given.remove(rule)
            else:
                missing.append(rule._replace(absent=True))
    return given + missing
