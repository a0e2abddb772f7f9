"""The guest's network: what the agent does to interfaces, routes, neighbours and resolv.conf.

Each request states what shall be, so doing one twice is doing it once. One that needs a NIC
which the kernel has not found yet raises NotThereYetError, and is done again at the next change of
an interface.
"""

import errno
import os
from collections.abc import Iterable
from typing import Any

from tapwright.linux import addresses, ethtool, links, neighbours, routes
from tapwright.linux.announcement import announce
from tapwright.linux.netlink import Netlink, NetlinkError, record

RESOLV_CONF = "/etc/resolv.conf"
_ROUTE_ORDER = 3


class RefusedError(Exception):
    """A request that can't be done, with the reason for the caller."""


class NotThereYetError(Exception):
    """The NIC with this MAC address has not been found by the kernel so far."""


def prepare(nl: Netlink) -> None:
    """Once at start: loopback up, and no wait for duplicate address detection anywhere: the
    guest's addresses were given out, and checked, by the host's plugins."""
    for scope in ("all", "default"):
        write(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad", "0")
    links.set_up(nl, 1)


def set_interface(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Make the NIC with a MAC address what the request says: name, MTU, queues, addresses, up.

    Addresses not named go, but for link-local ones, which are the kernel's.
    """
    mac = str(request["mac"]).lower()
    wanted = [record(addresses.Address, item) for item in request.get("addresses", [])]
    link = _find_by_mac(nl, mac)
    if link is None:
        raise NotThereYetError(mac)
    name = request.get("name") or link.name
    if name != link.name:
        _make_way(nl, name)
        if link.is_up:
            links.set_down(nl, link.index)
        links.rename(nl, link.index, name)
    mtu = int(request.get("mtu") or link.mtu)
    if mtu != link.mtu:
        links.set_mtu(nl, link.index, mtu)
    if queues := int(request.get("queues") or 0):
        ethtool.set_queues(name, queues)
    links.set_up(nl, link.index)
    present = [address for index, address in addresses.listing(nl) if index == link.index]
    for address in present:
        if not address.is_link_local and _identity(address) not in map(_identity, wanted):
            addresses.remove(nl, link.index, address)
    for address in wanted:
        addresses.add(nl, link.index, address)
        announce(name, link.mac, address.address)
    return {"name": name, "index": link.index}


def replace_routes(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Make the routes of the guest those of the request. Routes of the kernel itself stay."""
    wanted = [_route(nl, item) for item in request["routes"]]
    present = [r for r in routes.listing(nl) if r.protocol != routes.RTPROT_KERNEL]
    # Networks that each bring a default route give several of one metric, in an order that counts.
    _change(nl, _without(present, wanted), _without(wanted, present), append=True)
    return {}


def change_routes(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Remove some routes, then add some. Removing what is not there, and adding what is, is no
    failure."""
    remove = [_route(nl, item) for item in request.get("remove", [])]
    add = [_route(nl, item) for item in request.get("add", [])]
    present = routes.listing(nl)
    kept = _without(present, remove)
    _change(nl, _without(present, kept), _without(add, kept))
    return {}


def set_neighbours(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Make the static neighbour entries of the guest those of the request."""
    wanted = []
    for item in request["neighbours"]:
        device = _device(nl, item["device"])
        wanted.append(record(neighbours.Neighbour, {**item, "device": device.index}))
    for entry in neighbours.listing(nl):
        if entry not in wanted:
            neighbours.remove(nl, entry)
    for entry in wanted:
        neighbours.add(nl, entry)
    return {}


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


def write(path: str, content: str) -> None:
    """Replace a file's content; /proc files included."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, content.encode())
    finally:
        os.close(fd)


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


def _identity(address: addresses.Address) -> tuple[str, int, str | None]:
    return address.address, address.prefix_length, address.peer


def _device(nl: Netlink, name: str) -> links.Link:
    link = links.find(nl, name)
    if link is None:
        raise RefusedError(f"the guest has no interface called {name!r}")
    return link


def _route(nl: Netlink, item: dict[str, Any]) -> routes.Route:
    device = _device(nl, item["device"])
    route: routes.Route = record(routes.Route, {**item, "device": device.index})
    return route


def _without(some: Iterable[routes.Route], others: Iterable[routes.Route]) -> list[routes.Route]:
    """Those of some routes that the others have not."""
    keys = set(map(_route_key, others))
    return [route for route in some if _route_key(route) not in keys]


def _change(
    nl: Netlink, remove: list[routes.Route], add: list[routes.Route], append: bool = False
) -> None:
    """Do both; after a failure the routes are as before."""
    removed: list[routes.Route] = []
    added: list[routes.Route] = []
    try:
        for route in remove:
            routes.remove(nl, route)
            removed.append(route)
        _add(nl, add, added, append)
    except NetlinkError:
        for route in reversed(added):
            routes.remove(nl, route)
        _add(nl, removed, [], append=True)
        raise


def _add(nl: Netlink, pending: list[routes.Route], added: list[routes.Route], append: bool) -> None:
    """Add routes, those that were added to `added` too.

    A gateway must be reachable when its route is added: routes without one go first, and a list
    in an order that still does not fit is tried again.
    """
    pending = sorted(pending, key=lambda route: route.gateway is not None)
    for attempt in range(_ROUTE_ORDER):
        failed = []
        for route in pending:
            try:
                routes.add(nl, route, append)
                added.append(route)
            except NetlinkError as error:
                if error.errno == errno.EEXIST and _is_the_kernels(nl, route):
                    continue
                if attempt == _ROUTE_ORDER - 1:
                    raise
                failed.append(route)
        pending = failed


def _is_the_kernels(nl: Netlink, route: routes.Route) -> bool:
    """Whether an address has brought the route with it."""
    return any(
        found.protocol == routes.RTPROT_KERNEL
        and (found.destination, found.device) == (route.destination, route.device)
        for found in routes.listing(nl)
        if not route.gateway
    )


def _route_key(route: routes.Route) -> routes.Route:
    """A route as the kernel would report it, to compare with those that are there."""
    metric = route.metric
    if not metric and ":" in route.destination:
        metric = 1024  # IP6_RT_PRIO_USER, include/net/ip6_route.h
    scope = 0 if ":" in route.destination else route.scope
    return route._replace(metric=metric, scope=scope, protocol=0)
