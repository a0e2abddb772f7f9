"""Where the other end of an interface is: a veth's peer, what a macvlan is on (rtnetlink(7),
net/core/net_namespace.c)."""

import struct

from tapwright.linux.links import IFLA_LINK, IFLA_LINK_NETNSID, RTM_GETLINK
from tapwright.linux.netlink import Netlink, attribute, attributes, u32

_RTM_GETNSID = 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_GENERAL = struct.pack("=Bxxx", 0)  # struct rtgenmsg
_IFINFO = struct.Struct("=BxHiII")
_NUMBER = struct.Struct("=i")


def other_end(nl: Netlink, index: int, netns_fd: int) -> int:
    """The index, in the namespace that the descriptor is of, of what an interface of this namespace
    is connected to; 0 where that is elsewhere, or nothing. Raises NetlinkError."""
    operation = f"find the other end of interface {index}"
    body = nl.get(operation, RTM_GETLINK, _IFINFO.pack(0, 0, index, 0, 0))
    found = attributes(body, _IFINFO.size)
    if IFLA_LINK_NETNSID not in found:
        return 0
    (number,) = _NUMBER.unpack(found[IFLA_LINK_NETNSID])
    return u32(found, IFLA_LINK) if number == number_of(nl, netns_fd) else 0


def number_of(nl: Netlink, netns_fd: int) -> int:
    """The number that this namespace has for the one that the descriptor is of, by which the other
    ends of its interfaces are reported (IFLA_LINK_NETNSID); negative where it has none. Raises
    NetlinkError."""
    operation = "find the number of a namespace"
    body = nl.get(operation, _RTM_GETNSID, _GENERAL + attribute(_NETNSA_FD, netns_fd))
    (number,) = _NUMBER.unpack(attributes(body, len(_GENERAL))[_NETNSA_NSID])
    return int(number)
