"""Finds the other end of an interface: a veth's peer, or the parent of a macvlan (rtnetlink(7),
net/core/net_namespace.c)."""

import struct

from tapwright.linux.links import IFLA_LINK, IFLA_LINK_NETNSID, RTM_GETLINK
from tapwright.linux.netlink import Netlink, attribute, attributes, u32

KINDS = ("veth", "macvlan", "macvtap")
"""The kinds of interfaces of which the other end may be in another namespace."""

_RTM_GETNSID = 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_GENERAL = struct.pack("=Bxxx", 0)  # struct rtgenmsg
_IFINFO = struct.Struct("=BxHiII")
_NUMBER = struct.Struct("=i")


def other_end(nl: Netlink, index: int, netns_fd: int) -> int:
    """Return the index of the interface to which one of this namespace is connected, if that one is
    in the namespace of the descriptor; 0 if it is elsewhere, or there is none. Raises
    NetlinkError."""
    operation = f"find the other end of interface {index}"
    body = nl.get(operation, RTM_GETLINK, _IFINFO.pack(0, 0, index, 0, 0))
    found = attributes(body, _IFINFO.size)
    if IFLA_LINK_NETNSID not in found:
        return 0
    (number,) = _NUMBER.unpack(found[IFLA_LINK_NETNSID])
    return u32(found, IFLA_LINK) if number == number_of(nl, netns_fd) else 0


def number_of(nl: Netlink, netns_fd: int) -> int:
    """Return this namespace's number for the namespace of the descriptor; negative if it has none.
    The kernel reports other ends by these numbers (IFLA_LINK_NETNSID). Raises NetlinkError."""
    operation = "find the number of a namespace"
    body = nl.get(operation, _RTM_GETNSID, _GENERAL + attribute(_NETNSA_FD, netns_fd))
    (number,) = _NUMBER.unpack(attributes(body, len(_GENERAL))[_NETNSA_NSID])
    return int(number)
