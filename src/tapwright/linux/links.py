"""Network interfaces: list, find, make, change, remove (RTM_*LINK, rtnetlink(7))."""

import errno
import socket
import struct
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import Netlink, NetlinkError, attribute, nested, text, u32

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTMGRP_LINK = 0x1

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_TXQLEN, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD = 13, 18, 20, 28
IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 26, 8, 1
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_MACVLAN_MODE = 1
MACVTAP_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
"""enum macvlan_mode, include/uapi/linux/if_link.h."""

IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_ALLMULTI = 0x1, 0x8, 0x40, 0x200
ARPHRD_ETHER = 1

_IFINFO = struct.Struct("=BxHiII")


class Link(NamedTuple):
    """A network interface. `kind` is the driver's (veth, tun, macvlan, …), empty for hardware."""

    index: int  # type: ignore[assignment]  # not tuple.index
    name: str
    kind: str
    mac: str
    mtu: int
    flags: int
    txqlen: int = 1000
    master: int = 0
    parent: int = 0
    alias: str = ""
    hardware: int = ARPHRD_ETHER
    info: bytes = b""
    """The driver's own attributes (IFLA_INFO_DATA), for who knows the driver."""

    @property
    def is_ethernet(self) -> bool:
        return self.hardware == ARPHRD_ETHER

    @property
    def is_up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def is_running(self) -> bool:
        """Whether it is up and has a carrier (RFC 2863's operational state: up, or unknown)."""
        return bool(self.flags & IFF_RUNNING)

    @property
    def takes_all_multicast(self) -> bool:
        """Whether somebody wants it to: not because of what is on it."""
        return bool(self.flags & IFF_ALLMULTI)

    @property
    def is_loopback(self) -> bool:
        return bool(self.flags & IFF_LOOPBACK)


def decode(body: bytes) -> Link:
    """Read the body of an RTM_NEWLINK or RTM_DELLINK message."""
    _, hardware, index, flags, _ = _IFINFO.unpack_from(body)
    found = netlink.attributes(body, _IFINFO.size)
    info = netlink.attributes(found.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=text(found, IFLA_IFNAME),
        kind=text(info, IFLA_INFO_KIND),
        mac=netlink.unpack_mac(found.get(IFLA_ADDRESS, b"")),
        mtu=u32(found, IFLA_MTU),
        flags=flags,
        txqlen=u32(found, IFLA_TXQLEN),
        master=u32(found, IFLA_MASTER),
        parent=u32(found, IFLA_LINK),
        alias=text(found, IFLA_IFALIAS),
        hardware=hardware,
        info=info.get(IFLA_INFO_DATA, b""),
    )


def listing(nl: Netlink) -> list[Link]:
    """All interfaces of the namespace, in the order of their index."""
    bodies = nl.dump("list interfaces", RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))
    return sorted(map(decode, bodies))


def find(nl: Netlink, name: str) -> Link | None:
    """The interface of that name, or None."""
    return _get(nl, f"find interface {name}", 0, attribute(IFLA_IFNAME, name))


def named(nl: Netlink, name: str) -> Link:
    """The interface of that name, which is there. Raises NetlinkError (ENODEV: it is not)."""
    link = find(nl, name)
    if link is None:
        raise NetlinkError(errno.ENODEV, f"find interface {name}")
    return link


def at(nl: Netlink, index: int) -> Link | None:
    """The interface with that index, or None."""
    return _get(nl, f"find interface {index}", index)


def set_up(nl: Netlink, index: int) -> None:
    _set(nl, "bring up", index, flags=IFF_UP, mask=IFF_UP)


def set_down(nl: Netlink, index: int) -> None:
    _set(nl, "bring down", index, mask=IFF_UP)


def set_all_multicast(nl: Netlink, index: int, on: bool) -> None:
    """Have an interface receive multicast of all groups, or of those alone that it has joined."""
    _set(nl, "set all multicast", index, flags=IFF_ALLMULTI if on else 0, mask=IFF_ALLMULTI)


def set_mac(nl: Netlink, index: int, mac: str) -> None:
    """Give an interface a MAC address; that of a macvtap in mode `passthru` is its parent's too.

    Raises ValueError when it is none.
    """
    _set(nl, f"set MAC address {mac}", index, attribute(IFLA_ADDRESS, netlink.pack_mac(mac)))


def set_master(nl: Netlink, index: int, master: int) -> None:
    """Make an interface a port of the bridge (or bond) with index `master`; 0: of none."""
    _set(nl, f"make it a port of interface {master}", index, attribute(IFLA_MASTER, master))


def set_mtu(nl: Netlink, index: int, mtu: int) -> None:
    _set(nl, f"set MTU {mtu}", index, attribute(IFLA_MTU, mtu))


def set_txqlen(nl: Netlink, index: int, frames: int) -> None:
    """How many frames may wait to be sent."""
    _set(nl, f"set txqueuelen {frames}", index, attribute(IFLA_TXQLEN, frames))


def rename(nl: Netlink, index: int, name: str) -> None:
    """Rename an interface; kernels before 6.2 want it down."""
    _set(nl, f"rename to {name}", index, attribute(IFLA_IFNAME, name))


def set_alias(nl: Netlink, index: int, alias: str) -> None:
    _set(nl, "set alias", index, attribute(IFLA_IFALIAS, alias.encode()))


def leave_ipv6_alone(nl: Netlink, index: int) -> None:
    """Keep the kernel from giving the interface a link-local address of its own."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    change = nested(IFLA_AF_SPEC, [nested(socket.AF_INET6, [mode])])
    _set(nl, "set address generation", index, change)


def remove(nl: Netlink, index: int) -> None:
    payload = _IFINFO.pack(0, 0, index, 0, 0)
    nl.request(f"remove interface {index}", RTM_DELLINK, payload)


def add_veth(nl: Netlink, name: str, peer: str, peer_netns_fd: int | None = None) -> None:
    """Make a veth pair; the peer end is born in another namespace where its fd is given."""
    parts = [_IFINFO.pack(0, 0, 0, 0, 0), attribute(IFLA_IFNAME, peer)]
    if peer_netns_fd is not None:
        parts.append(attribute(IFLA_NET_NS_FD, peer_netns_fd))
    _add(nl, "veth", name, data=attribute(VETH_INFO_PEER, b"".join(parts)))


def add_macvtap(nl: Netlink, name: str, parent: int, mode: str) -> None:
    """Make a macvtap on the interface with index `parent`: a device of its own to read and write
    what the parent receives and sends (drivers/net/macvlan.c, macvtap.c).

    `bridge` gives it a MAC address of its own, beside the parent and its other macvlans;
    `passthru` the parent's, all its frames, and the parent to itself. On a macvlan it comes to sit
    beside that one, on the same device. Raises NetlinkError (EINVAL, EBUSY: the parent has others
    of another mode, or is a port of a bridge).
    """
    data = attribute(IFLA_MACVLAN_MODE, MACVTAP_MODES[mode])
    _add(nl, "macvtap", name, attribute(IFLA_LINK, parent), data)


def add_ifb(nl: Netlink, name: str) -> None:
    """Make an intermediate functional block: what is redirected to it goes back, through its root
    qdisc, to where it came from (drivers/net/ifb.c)."""
    _add(nl, "ifb", name)


def _get(nl: Netlink, operation: str, index: int, which: bytes = b"") -> Link | None:
    try:
        return decode(nl.get(operation, RTM_GETLINK, _IFINFO.pack(0, 0, index, 0, 0) + which))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _add(nl: Netlink, kind: str, name: str, more: bytes = b"", data: bytes = b"") -> None:
    """Make an interface; `data` is what its driver wants to know. Raises NetlinkError (EEXIST: the
    name is taken)."""
    info = [attribute(IFLA_INFO_KIND, kind)]
    if data:
        info.append(nested(IFLA_INFO_DATA, [data]))
    payload = _IFINFO.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, name) + more
    payload += nested(IFLA_LINKINFO, info)
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    nl.request(f"make {kind} {name}", RTM_NEWLINK, payload, flags)


def _set(
    nl: Netlink, verb: str, index: int, change: bytes = b"", flags: int = 0, mask: int = 0
) -> None:
    """Change attributes, and those of the flags that are in the mask."""
    header = _IFINFO.pack(0, 0, index, flags, mask)
    nl.request(f"{verb} (interface {index})", RTM_NEWLINK, header + change)
