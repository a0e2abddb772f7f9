"""The kernel's table of connections: finds connections by their first destination, and removes
them.

The message layouts are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import struct
from typing import NamedTuple

from tapwright.linux.netlink import (
    Attributes,
    Netlink,
    NetlinkRequest,
    attribute,
    attributes,
    family_of,
    pack_address,
    unpack_address,
)

NETLINK_NETFILTER = 12
SEEN_REPLY, ASSURED = 1 << 1, 1 << 2

_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # of the subsystem 1, ctnetlink
_HEADER = struct.Struct("!BBH")
_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT, _MARK, _USE = 1, 2, 3, 4, 7, 8, 11
_ID, _ZONE = 12, 18
_IP, _PROTOCOL = 1, 2
_V4, _V6 = (1, 2), (3, 4)  # source, destination
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_TCP, _TCP_STATE = 1, 1
_NESTED = 0x8000


class Way(NamedTuple):
    """The ends of the packets of one direction."""

    source: str
    destination: str
    source_port: int
    destination_port: int


class Connection(NamedTuple):
    """An entry of the table. `seconds` is how long it stays without a packet; `state` is that of
    TCP (include/uapi/linux/netfilter/nf_conntrack_tcp.h); `status` has SEEN_REPLY and ASSURED."""

    protocol: int
    seconds: int
    state: int
    original: Way
    reply: Way
    status: int
    mark: int
    use: int


def remove(destination: str, protocol: int) -> list[Connection]:
    """Remove the connections that were begun to an address, by a protocol (IPPROTO_*); return the
    removed ones. Raises NetlinkError."""
    family, destination = family_of(destination), unpack_address(pack_address(destination))
    with Netlink(protocol=NETLINK_NETFILTER) as netlink:
        found = []
        header = _HEADER.pack(family, 0, 0)
        for body in netlink.dump("list connections", _GET, header):
            entry = attributes(body, _HEADER.size)
            connection = _connection(entry)
            if (connection.original.destination, connection.protocol) == (destination, protocol):
                found.append((connection, header + _key(entry)))
        refusals = netlink.request_many(
            [NetlinkRequest("remove a connection", _DELETE, payload) for _, payload in found]
        )
    gone = []
    for (connection, _), refusal in zip(found, refusals, strict=True):
        if refusal is None:
            gone.append(connection)
        elif refusal.errno != errno.ENOENT:  # the connection ended in the meantime
            raise refusal
    return gone


def _key(entry: Attributes) -> bytes:
    """Return what identifies exactly this entry, and not a later one of the same ends."""
    parts = [attribute(_ORIGINAL | _NESTED, entry[_ORIGINAL])]
    parts += [attribute(kind, entry[kind]) for kind in (_ID, _ZONE) if kind in entry]
    return b"".join(parts)


def _connection(entry: Attributes) -> Connection:
    protocol, original = _way(entry.get(_ORIGINAL, b""))
    _, reply = _way(entry.get(_REPLY, b""))
    info = attributes(attributes(entry.get(_PROTOCOL_INFO, b"")).get(_TCP, b""))
    state = info.get(_TCP_STATE, b"\0")[0]
    return Connection(
        protocol,
        _number(entry, _TIMEOUT),
        state,
        original,
        reply,
        *(_number(entry, kind) for kind in (_STATUS, _MARK, _USE)),
    )


def _way(data: bytes) -> tuple[int, Way]:
    parts = attributes(data)
    addresses = attributes(parts.get(_IP, b""))
    kinds = _V4 if _V4[0] in addresses else _V6
    protocol = attributes(parts.get(_PROTOCOL, b""))
    source, destination = (unpack_address(addresses[kind]) for kind in kinds)
    ports = (_number(protocol, kind) for kind in (_SOURCE_PORT, _DESTINATION_PORT))
    return protocol.get(_NUMBER, b"\0")[0], Way(source, destination, *ports)


def _number(found: Attributes, kind: int) -> int:
    """Return a number, which netfilter writes in network byte order."""
    return int.from_bytes(found.get(kind, b""), "big")
