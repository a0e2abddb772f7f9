"""Neighbour entries (ARP and NDP): list and add the static ones (RTM_*NEIGH, rtnetlink(7))."""

import errno
import struct
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import Netlink, NetlinkError, attribute

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80

_NDMSG = struct.Struct("=BxxxiHBB")


class Neighbour(NamedTuple):
    """A static entry: frames to `address` through interface `device` go to `mac`."""

    address: str
    mac: str
    device: int
    flags: int = 0


def decode(body: bytes) -> Neighbour | None:
    """Read an RTM_NEWNEIGH or RTM_DELNEIGH body; None when the entry is not a static one."""
    _, device, state, flags, _ = _NDMSG.unpack_from(body)
    found = netlink.attributes(body, _NDMSG.size)
    if not state & NUD_PERMANENT or NDA_DST not in found or len(found.get(NDA_LLADDR, b"")) != 6:
        return None
    return Neighbour(
        address=netlink.unpack_address(found[NDA_DST]),
        mac=netlink.unpack_mac(found[NDA_LLADDR]),
        device=device,
        flags=flags,
    )


def place(body: bytes) -> tuple[int, str]:
    """Of which interface, by index, and address an RTM_NEWNEIGH or RTM_DELNEIGH body is."""
    _, device, _, _, _ = _NDMSG.unpack_from(body)
    address = netlink.attributes(body, _NDMSG.size).get(NDA_DST, b"")
    return device, netlink.unpack_address(address) if len(address) in (4, 16) else ""


def listing(nl: Netlink) -> list[Neighbour]:
    """The static entries of the namespace."""
    found = [decode(body) for body in nl.dump("list neighbours", RTM_GETNEIGH, bytes(_NDMSG.size))]
    return [entry for entry in found if entry]


def add(nl: Netlink, entry: Neighbour) -> None:
    """Add a static entry, or replace what is known of the address."""
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    nl.request(f"add neighbour {entry.address}", RTM_NEWNEIGH, encoded(entry), flags)


def encoded(entry: Neighbour) -> bytes:
    """The body of a message that adds or tells of it."""
    return (
        _NDMSG.pack(netlink.family_of(entry.address), entry.device, NUD_PERMANENT, entry.flags, 0)
        + attribute(NDA_DST, netlink.pack_address(entry.address))
        + attribute(NDA_LLADDR, netlink.pack_mac(entry.mac))
    )


def remove(nl: Netlink, entry: Neighbour) -> None:
    """Remove an entry. One that went away with its interface is not an error."""
    family = netlink.family_of(entry.address)
    payload = _NDMSG.pack(family, entry.device, 0, entry.flags, 0)
    payload += attribute(NDA_DST, netlink.pack_address(entry.address))
    try:
        nl.request(f"remove neighbour {entry.address}", RTM_DELNEIGH, payload)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
