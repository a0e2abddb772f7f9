"""Routes, policy rules, next hops and static neighbours as data: one kernel's message becomes a
request to another kernel.

An entry is the body of a message (rtnetlink(7)) without what belongs to its kernel alone: counters,
ages, states. An attribute that this module does not know stays in the entry, if it can't change the
entry's meaning. Only indexes of interfaces differ between kernels, so an entry says where they are.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import Netlink, attribute, unpack_address

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106

ROUTE, NEIGHBOUR, RULE, NEXTHOP = RTM_NEWROUTE, RTM_NEWNEIGH, RTM_NEWRULE, RTM_NEWNEXTHOP
FAMILIES = socket.AF_INET, socket.AF_INET6
LOOPBACK = 1
"""The index of every namespace's loopback."""

_NAMES = {ROUTE: "route", NEIGHBOUR: "neighbour", RULE: "rule", NEXTHOP: "next hop"}

RTA_DST, RTA_IIF, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 3, 4, 5, 6, 7
RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_VIA = 9, 12, 15, 18
RTA_ENCAP_TYPE, RTA_ENCAP, RTA_EXPIRES, RTA_NH_ID = 21, 22, 23, 30
RTN_UNICAST, RTN_BLACKHOLE = 1, 6
RTPROT_REDIRECT, RTPROT_KERNEL, RTPROT_RA = 1, 2, 9
TABLE_MAIN, TABLE_LOCAL = 254, 255
SCOPE_LINK = 253
_NOBODYS_METRIC = 0xFFFFFFF7
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP = struct.Struct("=HBBi")
_USERS_FLAGS = 0x02 | 0x04  # RTNH_F_PERVASIVE, RTNH_F_ONLINK
_OF_ONE_KERNEL = frozenset((RTA_IIF, RTA_CACHEINFO, RTA_EXPIRES))
# Attributes that the kernel reports of a route with a next hop object, and refuses in a request.
_OF_THE_NEXT_HOP = frozenset(
    (RTA_OIF, RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH, RTA_ENCAP_TYPE, RTA_ENCAP)
)

_GATEWAYS = frozenset((RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH, RTA_NH_ID))

FRA_PRIORITY, FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE = 6, 13, 14, 15
FRA_PAD, FRA_PROTOCOL, FRA_DPORT_RANGE = 18, 21, 24
_FRA_SPORT_MASK, _FRA_DPORT_MASK = 28, 29
FR_ACT_TO_TBL = 1
_RULE = struct.Struct("=BBBBBBBBI")
_RULE_INVERT = 0x2
_NO_SUPPRESSION = b"\xff\xff\xff\xff"

NHA_ID, NHA_GROUP, NHA_OIF, NHA_GATEWAY, NHA_RES_GROUP, NHA_OP_FLAGS = 1, 2, 5, 6, 12, 14
_NHA_RES_GROUP_UNBALANCED_TIME = 4
_NHMSG = struct.Struct("=BBBBI")

NDA_DST, NDA_LLADDR, NDA_PROTOCOL = 1, 2, 12
NUD_PERMANENT, NTF_PROXY = 0x80, 0x08
_NDMSG = struct.Struct("=BxxxiHBB")

_HEADERS = {ROUTE: _RTMSG, NEIGHBOUR: _NDMSG, RULE: _RULE, NEXTHOP: _NHMSG}

_ATTRIBUTE = struct.Struct("=HH")
_INDEX = struct.Struct("=i")


class Entry(NamedTuple):
    """One entry. `kind` is ROUTE, NEIGHBOUR, RULE or NEXTHOP. `devices` are the indexes of the
    interfaces with which the entry goes away, `places` the offsets of indexes in the body. An
    `absent` entry must not exist, although a kernel makes it by itself. A route that `has_gateway`
    needs another route to the gateway."""

    kind: int
    body: bytes
    devices: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    absent: bool = False
    has_gateway: bool = False

    @property
    def attributes(self) -> netlink.Attributes:
        return netlink.attributes(self.body, _HEADERS[self.kind].size)

    def __str__(self) -> str:
        return _described(self)


class TooManyError(Exception):
    """There are more entries than the caller can take; the argument says of which kind."""


# --- reading -----------------------------------------------------------------------------------


def routes(nl: Netlink, at_most: int) -> Iterator[Entry]:
    """Yield all routes of all tables, in the kernel's order. Raises TooManyError."""
    for family in FAMILIES:
        payload = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for body in _dump(nl, "routes", RTM_GETROUTE, payload, at_most):
            if body[0] == family:  # a kernel without IPv6 returns all other routes instead
                yield route(body)


def rules(nl: Netlink, at_most: int) -> list[Entry]:
    """Return all policy rules, in the kernel's order. Raises TooManyError."""
    found: list[Entry] = []
    for family in FAMILIES:
        payload = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        bodies = _dump(nl, "rules", RTM_GETRULE, payload, at_most)
        found += [rule(body) for body in bodies if body[0] == family]
    return found


def next_hops(nl: Netlink, at_most: int) -> list[Entry]:
    """Return all next hop objects, groups last. Raises TooManyError."""
    payload = _NHMSG.pack(0, 0, 0, 0, 0)
    found = [next_hop(b) for b in _dump(nl, "next hops", RTM_GETNEXTHOP, payload, at_most)]
    return sorted(found, key=lambda entry: NHA_GROUP in entry.attributes)


def neighbours(nl: Netlink, at_most: int) -> list[Entry]:
    """Return the static neighbours, and the proxy entries. Raises TooManyError."""
    found: list[Entry] = []
    for flags in (0, NTF_PROXY):
        payload = _NDMSG.pack(0, 0, 0, flags, 0)
        # The dump includes neighbours that the kernel learned, which may be many.
        for body in _dump(nl, "neighbours", RTM_GETNEIGH, payload, at_most * 16):
            if entry := neighbour(body):
                found.append(entry)
    if len(found) > at_most:
        raise TooManyError(f"more than {at_most} static neighbours")
    return found


def _dump(nl: Netlink, what: str, kind: int, payload: bytes, at_most: int) -> list[bytes]:
    try:
        found = nl.dump(f"list {what}", kind, payload, at_most=at_most)
    except netlink.NetlinkError as error:
        # The kernel has no IPv6, no policy rules or no next hop objects.
        if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
            return []
        raise
    if len(found) > at_most:
        raise TooManyError(f"more than {at_most} {what}")
    return found


def route(body: bytes) -> Entry:
    """Read the body of an RTM_NEWROUTE message."""
    family, length, source, tos, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    kept, places, devices = [], [], []
    offset = _RTMSG.size
    found = list(_attributes(body, offset))
    numbers = {number for number, _, _ in found}
    by_object = RTA_NH_ID in numbers
    for number, start, end in found:
        if number == RTA_OIF:
            devices.append(_INDEX.unpack_from(body, start + 4)[0])
        elif number == RTA_MULTIPATH:
            devices += (device for _, device in _hops(body, start + 4, end))
        if number in _OF_ONE_KERNEL or (by_object and number in _OF_THE_NEXT_HOP):
            continue
        part = body[start : (end + 3) & ~3]
        if number == RTA_OIF:
            places.append(offset + 4)
        elif number == RTA_MULTIPATH:
            part, at = _own_hops(part, end - start)
            places += (offset + place for place in at)
        kept.append(part)
        offset += len(part)
    if by_object and kind == RTN_BLACKHOLE:
        kind = RTN_UNICAST  # the next hop may be a blackhole; the route to it is unicast
    header = family, length, source, tos, table, protocol, scope, kind, flags & _USERS_FLAGS
    return Entry(
        ROUTE,
        _RTMSG.pack(*header) + b"".join(kept),
        tuple(devices),
        tuple(places),
        has_gateway=not numbers.isdisjoint(_GATEWAYS),
    )


def _hops(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, interface index) of each hop of a multipath route."""
    while offset + _RTNEXTHOP.size <= end:
        length, _, _, device = _RTNEXTHOP.unpack_from(data, offset)
        if length < _RTNEXTHOP.size:
            return
        yield offset, device
        offset += (length + 3) & ~3


def _own_hops(part: bytes, length: int) -> tuple[bytes, list[int]]:
    """Return an RTA_MULTIPATH without the kernel's flags, and the offsets of indexes in it."""
    changed, places = bytearray(part), []
    for offset, _ in _hops(part, 4, length):
        changed[offset + 2] &= _USERS_FLAGS
        places.append(offset + 4)
    return bytes(changed), places


def rule(body: bytes) -> Entry:
    """Read the body of an RTM_NEWRULE message. Default values are left out, so equal rules of two
    kernels compare as equal."""
    header = list(_RULE.unpack_from(body))
    header[-1] &= _RULE_INVERT
    parts = {
        number: body[start : (end + 3) & ~3] for number, start, end in _attributes(body, _RULE.size)
    }
    # Without a priority, the kernel would choose one, or match any.
    parts.setdefault(FRA_PRIORITY, attribute(FRA_PRIORITY, 0))
    kept = [parts[number] for number in sorted(parts) if not _is_default(number, parts[number])]
    return Entry(RULE, _RULE.pack(*header) + b"".join(kept))


def _is_default(number: int, part: bytes) -> bool:
    if number in (FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN):
        return part[4:] == _NO_SUPPRESSION
    if number in (_FRA_SPORT_MASK, _FRA_DPORT_MASK):
        return part[4:6] == b"\xff\xff"
    return number == FRA_PAD


def default_rules(family: int) -> list[Entry]:
    """Return the rules of a new namespace (net/ipv4/fib_rules.c, net/ipv6/fib6_rules.c)."""
    tables = [(0, TABLE_LOCAL), (32766, TABLE_MAIN)]
    if family == socket.AF_INET:
        tables.append((32767, 253))
    return [
        rule(
            _RULE.pack(family, 0, 0, 0, table, 0, 0, FR_ACT_TO_TBL, 0)
            + attribute(FRA_TABLE, table)
            + attribute(FRA_PRIORITY, priority)
            + attribute(FRA_PROTOCOL, bytes([RTPROT_KERNEL]))
        )
        for priority, table in tables
    ]


def unknown_selector(entry: Entry) -> int:
    """Return the number of a rule's attribute that an older kernel would ignore, and so apply the
    rule to more traffic; 0 if there is none."""
    if entry.kind != RULE:
        return 0
    return max((number for number in entry.attributes if number > FRA_DPORT_RANGE), default=0)


def next_hop(body: bytes) -> Entry:
    """Read the body of an RTM_NEWNEXTHOP message."""
    family, _, protocol, _, flags = _NHMSG.unpack_from(body)
    kept, places, devices, offset = [], [], [], _NHMSG.size
    for number, start, end in _attributes(body, offset):
        if number >= NHA_OP_FLAGS:
            continue
        if number == NHA_OIF:
            places.append(offset + 4)
            devices.append(_INDEX.unpack_from(body, start + 4)[0])
        part = body[start : (end + 3) & ~3]
        if number == NHA_RES_GROUP:
            part = _own_resilience(body[start + 4 : end])
        kept.append(part)
        offset += len(part)
    header = _NHMSG.pack(family, 0, protocol, 0, flags & _USERS_FLAGS)
    return Entry(NEXTHOP, header + b"".join(kept), tuple(devices), tuple(places))


def _own_resilience(data: bytes) -> bytes:
    """Return an NHA_RES_GROUP without what the kernel reports and refuses in a request
    (rtm_nh_res_policy_new in net/ipv4/nexthop.c)."""
    return netlink.nested(
        NHA_RES_GROUP,
        [
            data[start : (end + 3) & ~3]
            for number, start, end in _attributes(data, 0)
            if number != _NHA_RES_GROUP_UNBALANCED_TIME
        ],
    )


def neighbour(body: bytes) -> Entry | None:
    """Read the body of an RTM_NEWNEIGH message; None if the entry is neither static nor a proxy
    entry."""
    family, device, state, flags, _ = _NDMSG.unpack_from(body)
    found = netlink.attributes(body, _NDMSG.size)
    is_proxy = bool(flags & NTF_PROXY)
    if family not in FAMILIES or NDA_DST not in found:
        return None
    if not is_proxy and not (state & NUD_PERMANENT and len(found.get(NDA_LLADDR, b"")) == 6):
        return None
    header = _NDMSG.pack(family, device, 0 if is_proxy else NUD_PERMANENT, flags, 0)
    kept = [
        attribute(number, found[number])
        for number in (NDA_DST, NDA_LLADDR, NDA_PROTOCOL)
        if number in found
    ]
    return Entry(NEIGHBOUR, header + b"".join(kept), (device,), (4,))


def _attributes(body: bytes, offset: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, end) of each attribute, with its header."""
    size = len(body)
    while offset + 4 <= size:
        length, number = _ATTRIBUTE.unpack_from(body, offset)
        if length < 4:
            return
        yield number & netlink.NLA_TYPE_MASK, offset, offset + length
        offset += (length + 3) & ~3


# --- what is to be known of a route ------------------------------------------------------------


class RouteKey(NamedTuple):
    """The key by which the kernel finds a route. Of routes with the same key, it takes the
    first."""

    family: int
    table: int
    destination: bytes
    length: int
    tos: int
    metric: int
    source: bytes


def route_key(entry: Entry) -> RouteKey:
    family, length, source_length, tos, table, *_ = _RTMSG.unpack_from(entry.body)
    found = entry.attributes
    return RouteKey(
        family,
        netlink.u32(found, RTA_TABLE, table),
        found.get(RTA_DST, b""),
        length,
        tos,
        netlink.u32(found, RTA_PRIORITY),
        found.get(2, b"") + bytes([source_length]),
    )


class RouteFacts(NamedTuple):
    """The origin and the type of a route, and the source address that it gives to packets
    (packed)."""

    family: int
    protocol: int
    type: int
    source: bytes


def route_facts(entry: Entry) -> RouteFacts:
    family, _, _, _, _, protocol, _, kind, _ = _RTMSG.unpack_from(entry.body)
    found = entry.attributes
    return RouteFacts(family, protocol, kind, found.get(RTA_PREFSRC, b""))


def gateways(entry: Entry) -> list[tuple[int, bytes]]:
    """Return (index of the interface, packed address) of each gateway of a route or next hop that
    has both."""
    if entry.kind not in (ROUTE, NEXTHOP) or entry.absent:
        return []
    found = entry.attributes
    if entry.kind == NEXTHOP:
        return _one_gateway(found.get(NHA_OIF, b""), found.get(NHA_GATEWAY, b""))
    if (hops := found.get(RTA_MULTIPATH)) is not None:
        several: list[tuple[int, bytes]] = []
        for offset, device in _hops(hops, 0, len(hops)):
            (length,) = struct.unpack_from("=H", hops, offset)
            of_hop = netlink.attributes(hops[offset + _RTNEXTHOP.size : offset + length])
            several += _one_gateway(_INDEX.pack(device), _gateway_in(of_hop))
        return several
    return _one_gateway(found.get(RTA_OIF, b""), _gateway_in(found))


def _gateway_in(found: netlink.Attributes) -> bytes:
    return found.get(RTA_GATEWAY) or found.get(RTA_VIA, b"")[2:]


def _one_gateway(device: bytes, address: bytes) -> list[tuple[int, bytes]]:
    return [(_INDEX.unpack(device)[0], address)] if device and len(address) in (4, 16) else []


def way_to(device: int, address: bytes) -> Entry:
    """Return a route to one address, on the link of an interface."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    header = _RTMSG.pack(
        *(family, len(address) * 8, 0, 0, TABLE_MAIN, 0),
        *(SCOPE_LINK if family == socket.AF_INET else 0, RTN_UNICAST, 0),
    )
    parts = [header, attribute(RTA_OIF, device), attribute(RTA_DST, address)]
    # No other route has this metric, so the kernel can't confuse them.
    parts.append(attribute(RTA_PRIORITY, _NOBODYS_METRIC))
    return Entry(ROUTE, b"".join(parts), (device,), (len(header) + 4,))


def connected_route(
    family: int, destination: bytes, length: int, device: int, source: bytes, metric: int
) -> Entry:
    """Return the route to its subnet that a kernel makes with an address."""
    is_ipv4 = family == socket.AF_INET
    parts = [
        _RTMSG.pack(
            *(family, length, 0, 0, TABLE_MAIN, RTPROT_KERNEL),
            *(SCOPE_LINK if is_ipv4 else 0, RTN_UNICAST, 0),
        ),
        attribute(RTA_OIF, device),
    ]
    place = len(parts[0]) + 4
    parts += attribute(RTA_TABLE, TABLE_MAIN), attribute(RTA_DST, destination)
    if is_ipv4:
        parts.append(attribute(RTA_PREFSRC, source))
    if metric:
        parts.append(attribute(RTA_PRIORITY, metric))
    return Entry(ROUTE, b"".join(parts), (device,), (place,), absent=True)


# --- asking for them ---------------------------------------------------------------------------

UNREACHABLE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL))
"""The kernel's errors for a gateway to which no route leads (fib_check_nh, ip6_route_check_nh)."""

_IS_THERE, _IS_GONE = (
    frozenset((errno.EEXIST,)),
    frozenset((errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL)),
)


def identity(entry: Entry) -> object:
    """Return the key of which the kernel keeps one entry: another entry with this key replaces it.
    Routes and rules have none."""
    if entry.kind == NEXTHOP:
        return NEXTHOP, entry.attributes.get(NHA_ID, b"")
    if entry.kind == NEIGHBOUR:
        family, device, _, flags, _ = _NDMSG.unpack_from(entry.body)
        return NEIGHBOUR, family, device, flags & NTF_PROXY, entry.attributes.get(NDA_DST, b"")
    return entry


def rank(entry: Entry) -> int:
    """Return an entry's place among simultaneous requests: a gateway must be reachable before its
    route comes, a next hop must exist before its group, and the namespace's rules must exist before
    the common ones go."""
    if entry.kind == ROUTE:
        return 0 if entry.absent else 5 if entry.has_gateway else 4
    if entry.kind == NEIGHBOUR:
        return 1
    if entry.kind == NEXTHOP:
        return 3 if NHA_GROUP in entry.attributes else 2
    return 7 if entry.absent else 6


def message(entry: Entry, number: int, indexes: Mapping[int, int], remove: bool) -> bytes:
    """Return the request, with this sequence number, that adds or removes the entry in a kernel
    with other `indexes` of interfaces."""
    body = entry.body
    if entry.places:
        changed = bytearray(body)
        for place in entry.places:
            (device,) = _INDEX.unpack_from(changed, place)
            _INDEX.pack_into(changed, place, indexes[device])
        body = bytes(changed)
    flags = netlink.NLM_F_REQUEST
    if remove and entry.kind == NEXTHOP:
        # A removal has the number alone; the kernel refuses other attributes (rtm_del_nexthop in
        # net/ipv4/nexthop.c).
        body = _NHMSG.pack(0, 0, 0, 0, 0) + attribute(NHA_ID, entry.attributes[NHA_ID])
    if remove != entry.absent:
        return netlink.encode(entry.kind + 1, body, flags, number)
    flags |= netlink.NLM_F_CREATE
    if entry.kind == ROUTE:
        flags |= netlink.NLM_F_APPEND  # added behind others of the same destination and metric
    elif entry.kind == RULE:
        flags |= netlink.NLM_F_EXCL
    else:
        flags |= netlink.NLM_F_REPLACE
    return netlink.encode(entry.kind, body, flags, number)


def is_failure(entry: Entry, code: int, remove: bool) -> bool:
    """Whether the kernel's error means that the wanted state does not hold."""
    return code not in (_IS_GONE if remove != entry.absent else _IS_THERE)


def refusal(entry: Entry, code: int, explanation: str) -> str:
    """Say in words that the kernel refused the request."""
    return f"{entry}: {explanation or os.strerror(code)}"


def rule_key(entry: Entry) -> tuple[int, int]:
    """Return family and priority of a rule. Of rules with the same key, the kernel applies the
    first."""
    return entry.body[0], netlink.u32(entry.attributes, FRA_PRIORITY)


def _described(entry: Entry) -> str:
    words = [_NAMES[entry.kind]]
    found = entry.attributes
    if entry.kind == ROUTE:
        family, length, *_ = _RTMSG.unpack_from(entry.body)
        packed = found.get(RTA_DST, bytes(16 if family == socket.AF_INET6 else 4))
        words.append(f"{_text(packed)}/{length}")
        if gateway := found.get(RTA_GATEWAY) or found.get(RTA_VIA, b"")[2:]:
            words.append(f"via {_text(gateway)}")
    elif entry.kind == NEIGHBOUR:
        words.append(_text(found.get(NDA_DST, b"")))
    elif entry.kind == RULE:
        family = entry.body[0]
        words.append(f"{netlink.u32(found, FRA_PRIORITY)} (IPv{'4' if family == 2 else '6'})")
    else:
        words.append(str(netlink.u32(found, NHA_ID)))
    return " ".join(words)


def _text(packed: bytes) -> str:
    return unpack_address(packed) if len(packed) in (4, 16) else packed.hex()


def of_devices(found: Iterable[Entry], devices: Iterable[int]) -> list[Entry]:
    """Return the entries whose interfaces are all among `devices`, or loopback."""
    known = {*devices, LOOPBACK}
    return [entry for entry in found if known.issuperset(entry.devices)]
