"""Counters of interfaces, tc filters and qdiscs, and the kernel's neighbours: what can be read and
not changed (rtnetlink(7), include/uapi/linux/if_link.h, gen_stats.h, neighbour.h).

Both the host and the guest's agent use it.
"""

import struct
from typing import NamedTuple

from tapwright.linux import links, netlink
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink, text, u32

IFLA_OPERSTATE, IFLA_STATS64, IFLA_CARRIER = 16, 23, 33
IFLA_INFO_SLAVE_DATA = 5
NDA_DST, NDA_LLADDR = 1, 2

_NEIGHBOUR_STATES = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}
_RTM_GETNEIGH = 30
_IFINFO = struct.Struct("=BxHiII")
_NDMSG = struct.Struct("=BxxxiHBB")
_STATS = struct.Struct("=8Q")


class Counters(NamedTuple):
    """The counters of an interface, as it counts itself: bytes, packets, and packets with errors or
    dropped."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class Seen(NamedTuple):
    """An interface with its counters. `peer` is the index of the interface's peer or parent
    (IFLA_LINK), 0 for none. `peer_netns` is its namespace's number for the peer's namespace, None
    if that is the same one. `port` has the attributes of a bridge port (IFLA_INFO_SLAVE_DATA)."""

    link: Link
    counters: Counters
    has_carrier: bool
    peer: int = 0
    peer_netns: int | None = None
    port: bytes = b""


class Known(NamedTuple):
    """A neighbour. `mac` is empty if it is not known; `state` is the word of `ip neighbour`."""

    address: str
    mac: str
    device: int
    state: str


def interfaces(nl: Netlink, at_most: int | None = None) -> list[Seen]:
    """Return all interfaces of the namespace, in the order of their index. If there are more than
    `at_most`, return one more than that."""
    request = _IFINFO.pack(0, 0, 0, 0, 0)
    bodies = nl.dump("list interfaces", links.RTM_GETLINK, request, at_most=at_most)
    return sorted(map(decode, bodies), key=lambda seen: seen.link.index)


def decode(body: bytes) -> Seen:
    """Read the body of an RTM_NEWLINK message."""
    found = netlink.attributes(body, _IFINFO.size)
    info = netlink.attributes(found.get(links.IFLA_LINKINFO, b""))
    netns = found.get(links.IFLA_LINK_NETNSID)
    return Seen(
        link=links.decode(body),
        counters=_counters(found.get(IFLA_STATS64, b"")),
        has_carrier=found.get(IFLA_CARRIER, b"\1") != b"\0",
        peer=u32(found, links.IFLA_LINK),
        peer_netns=struct.unpack("=i", netns)[0] if netns else None,
        port=info.get(IFLA_INFO_SLAVE_DATA, b""),
    )


def _counters(stats: bytes) -> Counters:
    """struct rtnl_link_stats64."""
    if len(stats) < _STATS.size:
        return Counters()
    rx_packets, tx_packets, rx_bytes, tx_bytes, *rest = _STATS.unpack_from(stats)
    rx_errors, tx_errors, rx_dropped, tx_dropped = rest
    return Counters(
        *(rx_bytes, rx_packets, rx_errors, rx_dropped),
        *(tx_bytes, tx_packets, tx_errors, tx_dropped),
    )


def neighbours(nl: Netlink, at_most: int | None = None) -> list[Known]:
    """Return the neighbours that the kernel knows in the namespace, without multicast groups. If
    there are more than `at_most`, return one more than that."""
    bodies = nl.dump("list neighbours", _RTM_GETNEIGH, bytes(_NDMSG.size), at_most=at_most)
    found = []
    for body in bodies:
        _, device, state, _, _ = _NDMSG.unpack_from(body)
        more = netlink.attributes(body, _NDMSG.size)
        address, mac = more.get(NDA_DST, b""), more.get(NDA_LLADDR, b"")
        if len(address) not in (4, 16) or state & 0x40:
            continue
        found.append(
            Known(
                netlink.unpack_address(address),
                netlink.unpack_mac(mac) if len(mac) == 6 else "",
                device,
                _NEIGHBOUR_STATES.get(state, "none"),
            )
        )
    return found


TCA_KIND, TCA_OPTIONS, TCA_STATS2 = 1, 2, 7
_ACTIONS = {"u32": 7, "bpf": 1, "flower": 3, "matchall": 2, "basic": 3, "fw": 4}
"""The attribute with a filter's actions, by the filter's kind."""
TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_ACT_STATS = 1, 2, 4
TCA_STATS_BASIC, TCA_STATS_QUEUE = 1, 3
TCA_MIRRED_PARMS = 2
_TCMSG = struct.Struct("=BxxxiIII")
_MIRRED = struct.Struct("=IIiiiiI")
_RTM_GETQDISC, _RTM_GETTFILTER = 38, 46
_WHAT = {1: "redirect", 2: "mirror", 3: "redirect to ingress", 4: "mirror to ingress"}


class Filter(NamedTuple):
    """One action of an ingress filter: what it does (`redirect`, `mirror`, or the kind of the
    action) and `target`, the index of the interface to which it sends. A filter without an action
    has an empty `what`, and counts nothing."""

    kind: str
    priority: int
    what: str = ""
    target: int = 0
    bytes: int = 0
    packets: int = 0
    dropped: int = 0


class Queue(NamedTuple):
    """A qdisc: its kind, whether it is the ingress qdisc, and its counters. `backlog` is the number
    of waiting packets."""

    kind: str
    is_ingress: bool
    bytes: int = 0
    packets: int = 0
    dropped: int = 0
    overlimits: int = 0
    backlog: int = 0


def ingress_filters(nl: Netlink, index: int) -> list[Filter]:
    """Return the ingress filters of an interface, in the order in which the kernel tries them; none
    if it has no ingress qdisc."""
    request = _TCMSG.pack(0, index, 0, 0xFFFF0000, 0)
    found: list[Filter] = []
    for body in nl.dump("list filters", _RTM_GETTFILTER, request):
        _, _, _, _, info = _TCMSG.unpack_from(body)
        more = netlink.attributes(body, _TCMSG.size)
        kind = text(more, TCA_KIND)
        options = netlink.attributes(more.get(TCA_OPTIONS, b""))
        found += _actions(kind, info >> 16, options.get(_ACTIONS.get(kind, -1), b""))
    return found


def _actions(kind: str, priority: int, encoded: bytes) -> list[Filter]:
    found = []
    for _, action in netlink.each(encoded):
        of_action = netlink.attributes(action)
        what, target = text(of_action, TCA_ACT_KIND), 0
        options = netlink.attributes(of_action.get(TCA_ACT_OPTIONS, b""))
        parameters = options.get(TCA_MIRRED_PARMS, b"")
        if what == "mirred" and len(parameters) >= _MIRRED.size:
            *_, eaction, target = _MIRRED.unpack_from(parameters)
            what = _WHAT.get(eaction, what)
        counted = _counted(of_action.get(TCA_ACT_STATS, b""))
        found.append(Filter(kind, priority, what, target, *counted[:3]))
    return found


def queues(nl: Netlink, index: int) -> list[Queue]:
    """Return the qdiscs of an interface that have counted anything, or hold packets."""
    found = []
    for body in nl.dump("list qdiscs", _RTM_GETQDISC, _TCMSG.pack(0, index, 0, 0, 0)):
        _, device, _, parent, _ = _TCMSG.unpack_from(body)
        more = netlink.attributes(body, _TCMSG.size)
        counted = _counted(more.get(TCA_STATS2, b""))
        if device == index and any(counted):
            found.append(Queue(text(more, TCA_KIND), parent == 0xFFFFFFF1, *counted))
    return found


def _counted(encoded: bytes) -> tuple[int, int, int, int, int]:
    """Return bytes, packets, drops, overlimits and waiting packets: struct gnet_stats_basic and
    gnet_stats_queue."""
    stats = netlink.attributes(encoded)
    basic, queue = stats.get(TCA_STATS_BASIC, b""), stats.get(TCA_STATS_QUEUE, b"")
    size, packets = struct.unpack_from("=QI", basic) if len(basic) >= 12 else (0, 0)
    waiting, _, drops, _, overlimits = (
        struct.unpack_from("=5I", queue) if len(queue) >= 20 else (0, 0, 0, 0, 0)
    )
    return size, packets, drops, overlimits, waiting
