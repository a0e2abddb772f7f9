"""Finds the route that the kernel would take for a packet, among routes of all kinds.

It does what `ip route get` does: it sends nothing and changes nothing. Both host and guest use it.
"""

import socket
import struct
from typing import NamedTuple

from tapwright.linux.netlink import (
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    family_of,
    pack_address,
    u32,
    unpack_address,
)

_GET_ROUTE = 26
_DESTINATION, _SOURCE, _IIF, _OIF, _GATEWAY, _PREFERRED, _METRICS = 1, 2, 3, 4, 5, 7, 8
_PRIORITY, _TABLE, _VIA, _MTU = 6, 15, 18, 2
_RTMSG = struct.Struct("=BBBBBBBBI")
KINDS = {1: "unicast", 2: "local", 3: "broadcast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
SPECIAL = ("blackhole", "unreachable", "prohibit")


class Path(NamedTuple):
    """The route of a packet. `kind` is one of KINDS, or empty if there is no route; then `error` is
    the error number. `device` is an index; an `mtu` of 0 means the device's."""

    kind: str
    device: int = 0
    gateway: str = ""
    source: str = ""
    mtu: int = 0
    error: int = 0


class Entry(NamedTuple):
    """A route of any kind in a table; the default route is 0.0.0.0/0 or ::/0."""

    destination: str
    kind: str
    device: int
    gateway: str
    metric: int
    table: int


def path(
    nl: Netlink, destination: str, source: str = "", inside: int = 0, outside: int = 0
) -> Path:
    """Return the route of a packet that a program sends, or that arrives at the interface `inside`.
    Raises ValueError for an invalid address."""
    family, packed = family_of(destination), pack_address(destination)
    payload = attribute(_DESTINATION, packed)
    bits = len(packed) * 8
    if source:
        payload += attribute(_SOURCE, pack_address(source))
    if inside:
        payload += attribute(_IIF, inside)
    if outside:
        payload += attribute(_OIF, outside)
    head = _RTMSG.pack(family, bits, bits if source else 0, 0, 0, 0, 0, 0, 0)
    try:
        body = nl.get(f"find a route to {destination}", _GET_ROUTE, head + payload)
    except NetlinkError as error:
        return Path("", error=error.errno or 0)
    kind = _RTMSG.unpack_from(body)[7]
    found = attributes(body, _RTMSG.size)
    gateway = found.get(_GATEWAY) or found.get(_VIA, b"")[2:]
    preferred = found.get(_PREFERRED)
    return Path(
        KINDS.get(kind, str(kind)),
        u32(found, _OIF),
        unpack_address(gateway) if gateway else "",
        unpack_address(preferred) if preferred else "",
        u32(attributes(found.get(_METRICS, b"")), _MTU),
    )


def routes(nl: Netlink, version: int) -> list[Entry]:
    """Return all routes but those of the table `local`, with those that lead nowhere (blackhole,
    unreachable, prohibit)."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    found = []
    for body in nl.dump("list routes", _GET_ROUTE, _RTMSG.pack(family, *bytes(7), 0)):
        _, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(body)
        parts = attributes(body, _RTMSG.size)
        table = u32(parts, _TABLE, table)
        destination = parts.get(_DESTINATION, bytes(4 if version == 4 else 16))
        gateway = parts.get(_GATEWAY) or parts.get(_VIA, b"")[2:]
        if table != 255 and kind in KINDS and kind != 3:
            found.append(
                Entry(
                    f"{unpack_address(destination)}/{length}",
                    KINDS[kind],
                    u32(parts, _OIF),
                    unpack_address(gateway) if gateway else "",
                    u32(parts, _PRIORITY),
                    table,
                )
            )
    return found
