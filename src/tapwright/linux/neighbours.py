"""Neighbour entries (ARP and NDP): lists and adds the static ones (RTM_*NEIGH, rtnetlink(7))."""

import struct
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import Netlink, attribute

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
    """Read the body of an RTM_NEWNEIGH or RTM_DELNEIGH message; None if the entry is not static."""
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
    """Return (interface index, address) of the body of an RTM_NEWNEIGH or RTM_DELNEIGH message."""
    _, device, _, _, _ = _NDMSG.unpack_from(body)
    address = netlink.attributes(body, _NDMSG.size).get(NDA_DST, b"")
    return device, netlink.unpack_address(address) if len(address) in (4, 16) else ""


def listing(nl: Netlink) -> list[Neighbour]:
    """Return the static entries of the namespace."""
    found = [decode(body) for body in nl.dump("list neighbours", RTM_GETNEIGH, bytes(_NDMSG.size))]
    return [entry for entry in found if entry]


def add(nl: Netlink, entry: Neighbour) -> None:
    """Add a static entry, or replace what the kernel knows of the address."""
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    nl.request(f"add neighbour {entry.address}", RTM_NEWNEIGH, encoded(entry), flags)


def encoded(entry: Neighbour) -> bytes:
    """Return the body of a message that adds or reports the entry."""
    return (
        _NDMSG.pack(netlink.family_of(entry.address), entry.device, NUD_PERMANENT, entry.flags, 0)
        + attribute(NDA_DST, netlink.pack_address(entry.address))
        + attribute(NDA_LLADDR, netlink.pack_mac(entry.mac))
    )
