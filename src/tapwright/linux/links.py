"""Network interfaces: list, find, make, change, remove (RTM_*LINK, rtnetlink(7))."""

import errno
import socket
import struct
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import Netlink, NetlinkError, attribute, nested, text, u32

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109
RTMGRP_LINK = 0x1

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_TXQLEN, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD = 13, 18, 20, 28
IFLA_GROUP, IFLA_LINK_NETNSID, IFLA_NEW_IFINDEX = 27, 37, 49
IFLA_PROP_LIST, IFLA_ALT_IFNAME, IFLA_PERM_ADDRESS = 52, 53, 54
IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 26, 8, 1
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND = 1, 2, 4
VETH_INFO_PEER = 1
IFLA_MACVLAN_MODE = 1
MACVTAP_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
"""enum macvlan_mode, include/uapi/linux/if_link.h."""

IFLA_OPERSTATE, IF_OPER_UP = 16, 6
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_ALLMULTI = 0x1, 0x8, 0x40, 0x200
IFF_NOARP, IFF_PROMISC, IFF_MULTICAST = 0x80, 0x100, 0x1000
IFF_LOWER_UP = 0x10000
FLAGS_OF_RECEPTION = IFF_PROMISC | IFF_ALLMULTI
"""Flags that say what an interface receives, as the kernel reports them: set on purpose, and not by
a program that listens or by an interface on top (dev_get_flags in net/core/dev.c)."""
FLAGS_OF_USERS = IFF_NOARP | IFF_MULTICAST | FLAGS_OF_RECEPTION
"""Flags that are set on purpose, and that say what a program can do with an interface."""
ARPHRD_ETHER = 1
USUAL_LOOPBACK = 65536, 1000
"""MTU and queue length of a new loopback (drivers/net/loopback.c)."""

_IFINFO = struct.Struct("=BxHiII")


class Link(NamedTuple):
    """A network interface. `kind` is the driver's name (veth, tun, macvlan, …), empty for hardware.
    `parent` is the index of the parent interface, 0 if that is in another namespace."""

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
    """The driver's own attributes (IFLA_INFO_DATA), for code that knows the driver."""
    master_kind: str = ""
    """The driver of the interface with index `master`."""
    group: int = 0
    altnames: tuple[str, ...] = ()
    permanent: str = ""
    """The MAC address that hardware came with, whatever it has now; empty for an interface that is
    none, and from kernels before 5.6."""

    @property
    def is_ethernet(self) -> bool:
        return self.hardware == ARPHRD_ETHER

    @property
    def is_up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def is_running(self) -> bool:
        """Whether the interface is up and has a carrier (RFC 2863's operational state: up, or
        unknown)."""
        return bool(self.flags & IFF_RUNNING)

    @property
    def has_carrier(self) -> bool:
        """Whether the interface is up and has a carrier, at this moment. `is_running` follows up to
        a second later (net/core/link_watch.c)."""
        return bool(self.flags & IFF_LOWER_UP)

    @property
    def takes_all_multicast(self) -> bool:
        """Whether IFF_ALLMULTI is set on purpose, and not because of an interface on top."""
        return bool(self.flags & IFF_ALLMULTI)

    @property
    def is_port(self) -> bool:
        """Whether another interface, such as a bridge or a bond, takes what this one receives. A
        VRF does not: it only says in which table to look (networking/vrf.rst)."""
        return bool(self.master) and self.master_kind != "vrf"

    @property
    def is_loopback(self) -> bool:
        return bool(self.flags & IFF_LOOPBACK)

    @property
    def is_usual_loopback(self) -> bool:
        return self.is_loopback and (self.mtu, self.txqlen) == USUAL_LOOPBACK


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
        parent=0 if IFLA_LINK_NETNSID in found else u32(found, IFLA_LINK),
        alias=text(found, IFLA_IFALIAS),
        hardware=hardware,
        info=info.get(IFLA_INFO_DATA, b""),
        master_kind=text(info, IFLA_INFO_SLAVE_KIND),
        group=u32(found, IFLA_GROUP),
        altnames=_altnames(found.get(IFLA_PROP_LIST, b"")),
        permanent=netlink.unpack_mac(found.get(IFLA_PERM_ADDRESS, b"")),
    )


def _altnames(properties: bytes) -> tuple[str, ...]:
    return tuple(
        text({kind: name}, IFLA_ALT_IFNAME)
        for kind, name in netlink.each(properties)
        if kind == IFLA_ALT_IFNAME
    )


def listing(nl: Netlink) -> list[Link]:
    """Return all interfaces of the namespace, in the order of their index."""
    bodies = nl.dump("list interfaces", RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))
    return sorted(map(decode, bodies))


def listing_with_settings(nl: Netlink) -> list[tuple[Link, bytes]]:
    """Return the same, each with its settings of protocols (IFLA_AF_SPEC)."""
    bodies = nl.dump("list interfaces", RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))
    found = [
        (decode(body), netlink.attributes(body, _IFINFO.size).get(IFLA_AF_SPEC, b""))
        for body in bodies
    ]
    return sorted(found, key=lambda pair: pair[0].index)


def find(nl: Netlink, name: str) -> Link | None:
    return _get(nl, f"find interface {name}", 0, attribute(IFLA_IFNAME, name))


def named(nl: Netlink, name: str) -> Link:
    """Return the interface of this name. Raises NetlinkError (ENODEV: it does not exist)."""
    link = find(nl, name)
    if link is None:
        raise NetlinkError(errno.ENODEV, f"find interface {name}")
    return link


def at(nl: Netlink, index: int) -> Link | None:
    return _get(nl, f"find interface {index}", index)


def set_up(nl: Netlink, index: int) -> None:
    _set(nl, "bring up", index, flags=IFF_UP, mask=IFF_UP)


def set_running(nl: Netlink, index: int) -> None:
    """Set the operational state of an interface to up, if the state is unknown (RFC 2863;
    net/core/rtnetlink.c: `set_operstate`). Other states stay as they are."""
    _set(nl, "call running", index, attribute(IFLA_OPERSTATE, bytes([IF_OPER_UP])))


def set_down(nl: Netlink, index: int) -> None:
    _set(nl, "bring down", index, mask=IFF_UP)


def set_all_multicast(nl: Netlink, index: int, on: bool) -> None:
    """Make an interface receive multicast of all groups, or only of those that it has joined."""
    _set(nl, "set all multicast", index, flags=IFF_ALLMULTI if on else 0, mask=IFF_ALLMULTI)


def set_mac(nl: Netlink, index: int, mac: str) -> None:
    """Give an interface a MAC address; a macvtap in mode `passthru` shares it with its parent.

    Raises ValueError for an invalid address.
    """
    _set(nl, f"set MAC address {mac}", index, attribute(IFLA_ADDRESS, netlink.pack_mac(mac)))


def set_master(nl: Netlink, index: int, master: int) -> None:
    """Make an interface a port of the bridge (or bond) with index `master`; 0 means no master."""
    _set(nl, f"make it a port of interface {master}", index, attribute(IFLA_MASTER, master))


def set_mtu(nl: Netlink, index: int, mtu: int) -> None:
    _set(nl, f"set MTU {mtu}", index, attribute(IFLA_MTU, mtu))


def set_txqlen(nl: Netlink, index: int, frames: int) -> None:
    """Set how many frames may wait to be sent."""
    _set(nl, f"set txqueuelen {frames}", index, attribute(IFLA_TXQLEN, frames))


def rename(nl: Netlink, index: int, name: str) -> None:
    """Rename an interface; kernels before 6.2 need it down."""
    _set(nl, f"rename to {name}", index, attribute(IFLA_IFNAME, name))


def move(nl: Netlink, index: int, netns_fd: int, name: str, new_index: int = 0) -> None:
    """Move an interface that is down to another namespace, under this name there; in the name, `%d`
    stands for a free number. The interface loses its addresses and routes, and may get another
    index. Since Linux 5.13, `new_index` can ask for one.

    Raises NetlinkError (EEXIST: the name is taken, but the interface may have been moved all the
    same; EINVAL: it can't leave its namespace; EBUSY: the index is taken).
    """
    change = attribute(IFLA_IFNAME, name) + attribute(IFLA_NET_NS_FD, netns_fd)
    if new_index:
        change += attribute(IFLA_NEW_IFINDEX, new_index)
    _set(nl, f"move to another namespace as {name}", index, change)


def set_alias(nl: Netlink, index: int, alias: str) -> None:
    _set(nl, "set alias", index, attribute(IFLA_IFALIAS, alias.encode()))


def set_group(nl: Netlink, index: int, group: int) -> None:
    _set(nl, f"set group {group}", index, attribute(IFLA_GROUP, group))


def set_flags(nl: Netlink, index: int, flags: int, mask: int) -> None:
    _set(nl, "set flags", index, flags=flags, mask=mask)


def set_altname(nl: Netlink, index: int, name: str, on: bool) -> None:
    """Give an interface an alternative name, or remove it (ip-link(8), property)."""
    payload = _IFINFO.pack(0, 0, index, 0, 0)
    payload += nested(IFLA_PROP_LIST, [attribute(IFLA_ALT_IFNAME, name)])
    operation = f"{'set' if on else 'remove'} altname {name} (interface {index})"
    nl.request(operation, RTM_NEWLINKPROP if on else RTM_DELLINKPROP, payload)


def leave_ipv6_alone(nl: Netlink, index: int) -> None:
    """Keep the kernel from giving the interface a link-local address. There is nothing to keep it
    from while the interface has no IPv6: in a kernel without IPv6, and with an MTU below 1280
    (addrconf_notify in net/ipv6/addrconf.c)."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    change = nested(IFLA_AF_SPEC, [nested(socket.AF_INET6, [mode])])
    try:
        _set(nl, "set address generation", index, change)
    except NetlinkError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise


def remove(nl: Netlink, index: int) -> None:
    payload = _IFINFO.pack(0, 0, index, 0, 0)
    nl.request(f"remove interface {index}", RTM_DELLINK, payload)


def add_veth(nl: Netlink, name: str, peer: str, peer_netns_fd: int | None = None) -> None:
    """Make a veth pair. With `peer_netns_fd`, the peer is made in that namespace."""
    parts = [_IFINFO.pack(0, 0, 0, 0, 0), attribute(IFLA_IFNAME, peer)]
    if peer_netns_fd is not None:
        parts.append(attribute(IFLA_NET_NS_FD, peer_netns_fd))
    _add(nl, "veth", name, data=attribute(VETH_INFO_PEER, b"".join(parts)))


def add_macvtap(nl: Netlink, name: str, parent: int, mode: str) -> None:
    """Make a macvtap on the interface with index `parent`: a device with its own queue for what the
    parent receives and sends (drivers/net/macvlan.c, macvtap.c).

    `bridge` gives it a MAC address of its own, beside the parent and its other macvlans. `passthru`
    gives it the parent's address and all its frames, and the parent to itself alone. On a macvlan,
    the macvtap becomes its neighbour on the same device. Raises NetlinkError (EINVAL, EBUSY: the
    parent has others of another mode, or is a port of a bridge).
    """
    data = attribute(IFLA_MACVLAN_MODE, MACVTAP_MODES[mode])
    _add(nl, "macvtap", name, attribute(IFLA_LINK, parent), data)


def add_ifb(nl: Netlink, name: str) -> None:
    """Make an intermediate functional block. Frames that are redirected to it pass its root qdisc
    and go back to where they came from (drivers/net/ifb.c)."""
    _add(nl, "ifb", name)


def _get(nl: Netlink, operation: str, index: int, which: bytes = b"") -> Link | None:
    try:
        return decode(nl.get(operation, RTM_GETLINK, _IFINFO.pack(0, 0, index, 0, 0) + which))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _add(nl: Netlink, kind: str, name: str, more: bytes = b"", data: bytes = b"") -> None:
    """Make an interface; `data` has the driver's own attributes. Raises NetlinkError (EEXIST: the
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
    """Change attributes, and the flags of the mask."""
    header = _IFINFO.pack(0, 0, index, flags, mask)
    nl.request(f"{verb} (interface {index})", RTM_NEWLINK, header + change)
