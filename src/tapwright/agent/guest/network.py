"""The guest's network: what the agent does to interfaces and resolv.conf; `routing` has the rest.

Each request states what shall be, so doing one twice is doing it once. One that needs a NIC
which the kernel has not found yet raises NotThereYetError.
"""

import errno
from typing import Any

from tapwright.agent.guest.files import write
from tapwright.agent.guest.refusal import NotThereYetError, RefusedError
from tapwright.linux import addresses, ethtool, links, neighbours, routes
from tapwright.linux.addresses import Address
from tapwright.linux.announcement import announce
from tapwright.linux.netlink import Netlink, NetlinkError, pack_address, record

RESOLV_CONF = "/etc/resolv.conf"


def prepare(nl: Netlink) -> None:
    """Once at start: loopback up; no wait for duplicate address detection anywhere, for the
    guest's addresses were given out, and checked, by the host's plugins; and when the first
    address of a subnet goes the others stay."""
    for scope in ("all", "default"):
        write(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad", "0")
        write(f"/proc/sys/net/ipv4/conf/{scope}/promote_secondaries", "1")
    links.set_up(nl, 1)


def set_interface(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Make the NIC with a MAC address what the request says: name, MTU, txqlen, queues, addresses
    (IPv4 in their order), and up, unless `up` is false.

    Addresses not named go, but for the link-local one that the kernel makes. A NIC that gets
    another name, or goes down, loses its routes: the caller adds them again.
    """
    mac = str(request["mac"]).lower()
    wanted = [record(Address, item) for item in request.get("addresses", [])]
    link = _find_by_mac(nl, mac)
    if link is None:
        raise NotThereYetError(f"the NIC {mac}")
    name, up = request.get("name") or link.name, bool(request.get("up", True))
    was_up = link.is_up
    if name != link.name:
        _make_way(nl, name)
    if was_up and (name != link.name or not up):
        links.set_down(nl, link.index)
        was_up = False
    if name != link.name:
        _rename(nl, link.index, name)
    _set_sizes(nl, link._replace(name=name), request)
    if up and not was_up:
        links.set_up(nl, link.index)
    new = _set_addresses(nl, link, list(dict.fromkeys(map(_comparable, wanted))))
    if up:
        # When it has just come up, nobody has heard of the others either.
        for address in new if was_up else wanted:
            announce(name, link.mac, address.address)
    return {"name": name, "index": link.index}


def set_dns(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Write resolv.conf from nameservers, domain, search and options (as in a CNI result)."""
    lines = [f"nameserver {server}" for server in request.get("nameservers", [])]
    if request.get("domain"):
        lines.append(f"domain {request['domain']}")
    for key in ("search", "options"):
        if request.get(key):
            lines.append(f"{key} {' '.join(request[key])}")
    write(RESOLV_CONF, "".join(line + "\n" for line in lines))
    return {}


def list_network(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Interfaces with their addresses, routes and static neighbours, devices by name."""
    found = links.listing(nl)
    names = {link.index: link.name for link in found}
    by_index: dict[int, list[dict[str, Any]]] = {}
    for index, address in addresses.listing(nl):
        by_index.setdefault(index, []).append(address._asdict())
    return {
        "interfaces": [
            {
                "name": link.name,
                "mac": link.mac,
                "mtu": link.mtu,
                "up": link.is_up,
                "addresses": by_index.get(link.index, []),
            }
            for link in found
        ],
        "routes": [
            {**route._asdict(), "device": names.get(route.device, "")}
            for route in routes.listing(nl)
        ],
        "neighbours": [
            {**entry._asdict(), "device": names.get(entry.device, "")}
            for entry in neighbours.listing(nl)
        ],
    }


def _set_sizes(nl: Netlink, link: links.Link, request: dict[str, Any]) -> None:
    mtu = int(request.get("mtu") or link.mtu)
    if mtu != link.mtu:
        links.set_mtu(nl, link.index, mtu)
    txqlen = int(request.get("txqlen") or link.txqlen)
    if txqlen != link.txqlen:
        links.set_txqlen(nl, link.index, txqlen)
    if queues := int(request.get("queues") or 0):
        ethtool.set_queues(link.name, queues)


def _set_addresses(nl: Netlink, link: links.Link, wanted: list[Address]) -> list[Address]:
    """Make an interface's addresses those, all comparable; return the ones that are new.

    When the new ones would not come to be where they belong, an IPv4 address stays only as far as
    the order is right. IPv6 addresses have none: whichever came last is the first.
    """
    index = link.index
    present = list(map(_comparable, addresses.of(nl, index)))
    keys = set(wanted)
    gone = [a for a in present if a not in keys and not a.is_made_from(link.mac)]
    for address in reversed(gone):  # first what else would be put in the place of another
        addresses.remove(nl, index, address)
    if gone:  # the kernel may have put another in the place of one
        present = list(map(_comparable, addresses.of(nl, index)))
    ours = [a for a in present if a.is_ipv4]
    right = _rightly_placed(ours, [a for a in wanted if a.is_ipv4])
    for address in reversed(ours[right:]):
        addresses.remove(nl, index, address)
    kept = set(present).difference(ours[right:])
    new = [a for a in wanted if a not in kept]
    for address in new:
        addresses.add(nl, index, address)
    return new


def _rightly_placed(ours: list[Address], wanted: list[Address]) -> int:
    """How many of our IPv4 addresses, all of them wanted, can stay."""
    present = set(ours)
    order = _kernels_order(wanted)
    if _kernels_order(ours + [a for a in wanted if a not in present]) == order:
        return len(ours)
    differing = (n for n, (a, b) in enumerate(zip(ours, order, strict=False)) if a != b)
    return next(differing, len(ours))


def _kernels_order(wanted: list[Address]) -> list[Address]:
    """IPv4 addresses in the order in which the kernel lists them when they are added in this one:
    first the first ones of each subnet, by scope (__inet_insert_ifa in net/ipv4/devinet.c)."""
    subnets: set[tuple[int, int]] = set()
    first: list[Address] = []
    further: list[Address] = []
    for address in wanted:
        packed = int.from_bytes(pack_address(address.peer or address.address), "big")
        subnet = address.prefix_length, packed >> max(0, 32 - address.prefix_length)
        (further if subnet in subnets else first).append(address)
        subnets.add(subnet)
    return sorted(first, key=lambda address: -address.scope) + further


def _find_by_mac(nl: Netlink, mac: str) -> links.Link | None:
    for link in links.listing(nl):
        if link.mac == mac and not link.is_loopback:
            return link
    return None


def _make_way(nl: Netlink, name: str) -> None:
    """Free a name that another NIC bears by chance (the kernel called it eth0 on its own)."""
    holder = links.find(nl, name)
    if holder is None:
        return
    if holder.is_up:
        raise RefusedError(f"the name {name} is taken by the NIC {holder.mac}")
    links.rename(nl, holder.index, f"tw{holder.index}")


def _rename(nl: Netlink, index: int, name: str) -> None:
    """The kernel may give the name to a NIC that it finds meanwhile: that makes way, too."""
    while True:
        try:
            links.rename(nl, index, name)
        except NetlinkError as error:
            if error.errno != errno.EEXIST or links.find(nl, name) is None:
                raise
            _make_way(nl, name)
        else:
            return


def _comparable(address: Address) -> Address:
    """An address without what the kernel knows by itself, so that one that is wanted and one that
    is there are equal when they mean the same."""
    own, length, peer, broadcast, scope, flags = address
    if not address.is_ipv4:
        scope = 0
    return Address(own, length, peer, broadcast, scope, flags & ~addresses.IFA_F_NODAD)
