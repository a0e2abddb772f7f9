"""Routes: list, add, remove (RTM_*ROUTE, rtnetlink(7))."""

import errno
import socket
import struct
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import (
    Netlink,
    NetlinkError,
    attribute,
    nested,
    pack_address,
    u32,
    unpack_address,
)

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_TABLE = 15
RTAX_MTU, RTAX_ADVMSS = 2, 8
RTNH_F_ONLINK = 4
RTN_UNICAST = 1
RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC = 2, 3, 4
TABLE_MAIN, TABLE_LOCAL = 254, 255
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255

_RTMSG = struct.Struct("=BBBBBBBBI")


class Route(NamedTuple):
    """A unicast route. `destination` is `ADDRESS/PREFIX`, the default one `0.0.0.0/0` or `::/0`;
    `device` is an interface index. `metric` 0 lets the kernel choose (IPv6: 1024)."""

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

    @property
    def family(self) -> int:
        return netlink.family_of(self.destination)

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        return f"{self.destination}{via}"


def decode(body: bytes) -> Route | None:
    """Read an RTM_NEWROUTE or RTM_DELROUTE body; None when it is not a plain unicast route
    through one interface (local, broadcast, multicast, blackhole, multipath)."""
    family, length, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    found = netlink.attributes(body, _RTMSG.size)
    if kind != RTN_UNICAST or RTA_OIF not in found:
        return None
    destination = found.get(RTA_DST, b"\0" * (16 if family == socket.AF_INET6 else 4))
    gateway, source = found.get(RTA_GATEWAY), found.get(RTA_PREFSRC)
    metrics = netlink.attributes(found.get(RTA_METRICS, b""))
    return Route(
        destination=f"{unpack_address(destination)}/{length}",
        device=u32(found, RTA_OIF),
        gateway=unpack_address(gateway) if gateway else None,
        source=unpack_address(source) if source else None,
        scope=scope,
        metric=u32(found, RTA_PRIORITY),
        table=u32(found, RTA_TABLE, table),
        onlink=bool(flags & RTNH_F_ONLINK),
        protocol=protocol,
        mtu=u32(metrics, RTAX_MTU),
        advmss=u32(metrics, RTAX_ADVMSS),
    )


def listing(nl: Netlink) -> list[Route]:
    """The unicast routes of all tables but the local one, in the order the kernel keeps them."""
    found: list[Route] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        payload = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for body in nl.dump("list routes", RTM_GETROUTE, payload):
            route = decode(body)
            if route and route.table != TABLE_LOCAL:
                found.append(route)
    return found


def add(nl: Netlink, route: Route) -> None:
    """Add a route. Raises NetlinkError (EEXIST: one to the same destination and of the same
    metric is there)."""
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    nl.request(f"add route {route}", RTM_NEWROUTE, _encode(route), flags)


def remove(nl: Netlink, route: Route) -> None:
    """Remove a route. One that went away with another change is not an error."""
    try:
        nl.request(f"remove route {route}", RTM_DELROUTE, _encode(route))
    except NetlinkError as error:
        if error.errno != errno.ESRCH:
            raise


def _encode(route: Route) -> bytes:
    address, _, length = route.destination.partition("/")
    flags = RTNH_F_ONLINK if route.onlink else 0
    parts = [
        _RTMSG.pack(
            *(route.family, int(length), 0, 0, min(route.table, 255)),
            *(route.protocol, route.scope, RTN_UNICAST, flags),
        ),
        attribute(RTA_OIF, route.device),
        attribute(RTA_TABLE, route.table),
    ]
    if int(length):
        parts.append(attribute(RTA_DST, pack_address(address)))
    if route.gateway:
        parts.append(attribute(RTA_GATEWAY, pack_address(route.gateway)))
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
