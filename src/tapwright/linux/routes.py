"""Routes: list, add, remove (RTM_*ROUTE, rtnetlink(7))."""

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import (
    Netlink,
    NetlinkError,
    NetlinkRequest,
    attribute,
    nested,
    pack_address,
    u32,
    unpack_address,
)

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_TABLE, RTA_VIA, RTA_NH_ID = 9, 15, 18, 30
RTAX_MTU, RTAX_ADVMSS = 2, 8
RTNH_F_ONLINK = 4
RTN_UNICAST = 1
RTPROT_KERNEL, RTPROT_BOOT = 2, 3
TABLE_MAIN, TABLE_LOCAL = 254, 255
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253

_RTMSG = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP = struct.Struct("=HBBi")


class Route(NamedTuple):
    """A unicast route. `destination` is `ADDRESS/PREFIX`, for a default route `0.0.0.0/0` or
    `::/0`. `device` is an interface index. `metric` 0 lets the kernel choose (IPv6: 1024).
    `nexthop` is the id of a next hop object, if the route leads to one; device and gateway are the
    object's then."""

    destination: str
    device: int
    gateway: str | None = None
    source: str | None = None
    scope: int = SCOPE_UNIVERSE
    metric: int = 0
    table: int = TABLE_MAIN
    onlink: bool = False
    protocol: int = RTPROT_BOOT
    mtu: int = 0
    advmss: int = 0
    nexthop: int = 0

    @property
    def family(self) -> int:
        return netlink.family_of(self.destination)

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        return f"{self.destination}{via}"


def decode(body: bytes) -> list[Route]:
    """Read the body of an RTM_NEWROUTE or RTM_DELROUTE message. Return a route for each next hop;
    none for other types than unicast (local, broadcast, multicast, blackhole), for routes without
    interfaces, and for routes of one type of service only."""
    family, length, _, tos, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    found = netlink.attributes(body, _RTMSG.size)
    if kind != RTN_UNICAST or tos:
        return []
    destination = found.get(RTA_DST, b"\0" * (16 if family == socket.AF_INET6 else 4))
    source = found.get(RTA_PREFSRC)
    metrics = netlink.attributes(found.get(RTA_METRICS, b""))
    return [
        Route(
            destination=f"{unpack_address(destination)}/{length}",
            device=device,
            gateway=unpack_address(gateway) if gateway else None,
            source=unpack_address(source) if source else None,
            scope=scope,
            metric=u32(found, RTA_PRIORITY),
            table=u32(found, RTA_TABLE, table),
            onlink=bool((flags | hop_flags) & RTNH_F_ONLINK),
            protocol=protocol,
            mtu=u32(metrics, RTAX_MTU),
            advmss=u32(metrics, RTAX_ADVMSS),
            nexthop=u32(found, RTA_NH_ID),
        )
        for device, gateway, hop_flags in _next_hops(found)
    ]


def _next_hops(found: netlink.Attributes) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield (interface index, packed gateway, flags) of each next hop."""
    if RTA_OIF in found:
        yield u32(found, RTA_OIF), _gateway(found), 0
    hops, offset = found.get(RTA_MULTIPATH, b""), 0
    while offset + _RTNEXTHOP.size <= len(hops):
        length, flags, _, device = _RTNEXTHOP.unpack_from(hops, offset)
        if length < _RTNEXTHOP.size:
            return
        more = netlink.attributes(hops[offset : offset + length], _RTNEXTHOP.size)
        yield device, _gateway(more), flags
        offset += (length + 3) & ~3


def _gateway(found: netlink.Attributes) -> bytes | None:
    """Return the packed gateway; one of the other family is in an attribute of its own (struct
    rtvia)."""
    return found.get(RTA_GATEWAY) or found.get(RTA_VIA, b"")[2:] or None


FAMILIES = (socket.AF_INET, socket.AF_INET6)


def listing(nl: Netlink, families: Iterable[int] = FAMILIES) -> list[Route]:
    """Return the unicast routes of all tables but the local one, in the kernel's order."""
    found: list[Route] = []
    for family in families:
        for body in nl.dump("list routes", RTM_GETROUTE, request_of(family)):
            found.extend(route for route in decode(body) if route.table != TABLE_LOCAL)
    return found


def request_of(family: int) -> bytes:
    """Return the body of a request for the unicast routes of a family, of all tables."""
    return _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, RTN_UNICAST, 0)


def add_many(nl: Netlink, some: Iterable[Route], append: bool = False) -> list[NetlinkError | None]:
    """Add routes, as far as the kernel accepts them; with `append`, after (IPv6: beside) others of
    the same destination and metric. Return for each None, or the reason of its refusal (EEXIST:
    such a route exists, or with `append` the very same)."""
    flags = netlink.NLM_F_CREATE | (netlink.NLM_F_APPEND if append else netlink.NLM_F_EXCL)
    return nl.request_many(
        [
            NetlinkRequest(f"add route {route}", RTM_NEWROUTE, encoded(route), flags)
            for route in some
        ]
    )


def remove_many(nl: Netlink, some: Iterable[Route]) -> list[NetlinkError | None]:
    """Remove routes. Return for each None, or the reason of its refusal; it is none if the route
    went away with another change."""
    refusals = nl.request_many(
        [NetlinkRequest(f"remove route {route}", RTM_DELROUTE, encoded(route)) for route in some]
    )
    return [None if error and error.errno == errno.ESRCH else error for error in refusals]


def encoded(route: Route) -> bytes:
    """Return the body of a message that adds, removes or reports the route."""
    address, _, length = route.destination.partition("/")
    flags = RTNH_F_ONLINK if route.onlink else 0
    parts = [
        _RTMSG.pack(
            *(route.family, int(length), 0, 0, min(route.table, 255)),
            *(route.protocol, route.scope, RTN_UNICAST, flags),
        ),
        attribute(RTA_TABLE, route.table),
        # The kernel takes no other way beside an object, and finds no route to one by another.
        attribute(RTA_NH_ID, route.nexthop) if route.nexthop else attribute(RTA_OIF, route.device),
    ]
    if int(length):
        parts.append(attribute(RTA_DST, pack_address(address)))
    if route.gateway and not route.nexthop:
        family, gateway = netlink.family_of(route.gateway), pack_address(route.gateway)
        if family == route.family:
            parts.append(attribute(RTA_GATEWAY, gateway))
        else:
            parts.append(attribute(RTA_VIA, struct.pack("=H", family) + gateway))
    if route.source:
        parts.append(attribute(RTA_PREFSRC, pack_address(route.source)))
    if route.metric:
        parts.append(attribute(RTA_PRIORITY, route.metric))
    metrics = [
        attribute(kind, value)
        for kind, value in ((RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss))
        if value
    ]
    if metrics:
        parts.append(nested(RTA_METRICS, metrics))
    return b"".join(parts)
