"""IP addresses of interfaces: list, add, remove (RTM_*ADDR, rtnetlink(7))."""

import socket
import struct
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import Netlink, attribute, u32, unpack_address

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD = 0x2

_IFADDR = struct.Struct("=BBBBi")

# What the kernel sets by itself, and would refuse or ignore from us: DADFAILED, DEPRECATED,
# TENTATIVE, PERMANENT, STABLE_PRIVACY, SECONDARY/TEMPORARY, OPTIMISTIC.
_KERNEL_FLAGS = 0x01 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80 | 0x800


class Address(NamedTuple):
    """An address of an interface. `peer` is set where it differs from the address itself."""

    address: str
    prefix_length: int
    peer: str | None = None
    broadcast: str | None = None
    scope: int = 0
    flags: int = 0

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix_length}"

    @property
    def is_ipv4(self) -> bool:
        return ":" not in self.address

    def is_made_from(self, mac: str) -> bool:
        """Whether it is the link-local address that the kernel makes from a MAC address (RFC 4291,
        appendix A)."""
        if self.is_ipv4 or self.prefix_length != 64:
            return False
        mac_bytes = netlink.pack_mac(mac)
        identifier = bytes([mac_bytes[0] ^ 2]) + mac_bytes[1:3] + b"\xff\xfe" + mac_bytes[3:]
        return netlink.pack_address(self.address) == b"\xfe\x80" + bytes(6) + identifier


def decode(body: bytes) -> tuple[int, Address]:
    """Read an RTM_NEWADDR or RTM_DELADDR body: (interface index, address)."""
    _, prefix_length, flags, scope, index = _IFADDR.unpack_from(body)
    found = netlink.attributes(body, _IFADDR.size)
    remote = found.get(IFA_ADDRESS, b"")
    local = found.get(IFA_LOCAL, remote)
    broadcast = found.get(IFA_BROADCAST)
    return index, Address(
        address=unpack_address(local),
        prefix_length=prefix_length,
        peer=unpack_address(remote) if remote and remote != local else None,
        broadcast=unpack_address(broadcast) if broadcast else None,
        scope=scope,
        flags=u32(found, IFA_FLAGS, flags) & ~_KERNEL_FLAGS,
    )


def listing(nl: Netlink) -> list[tuple[int, Address]]:
    """All (interface index, address) pairs of the namespace, IPv4 and IPv6."""
    return _list(nl, 0)


def of(nl: Netlink, index: int) -> list[Address]:
    """The addresses of one interface, in the kernel's order."""
    return [address for _, address in _list(nl, index)]


def add(nl: Netlink, index: int, address: Address) -> None:
    """Add an address, or replace the same one. IPv6 skips duplicate address detection:
    whoever gave the address out answers for its being the only one."""
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    nl.request(f"add address {address}", RTM_NEWADDR, _encode(index, address), flags)


def remove(nl: Netlink, index: int, address: Address) -> None:
    nl.request(f"remove address {address}", RTM_DELADDR, _encode(index, address))


def _list(nl: Netlink, index: int) -> list[tuple[int, Address]]:
    payload = _IFADDR.pack(0, 0, 0, 0, index)
    return [decode(body) for body in nl.dump("list addresses", RTM_GETADDR, payload)]


def _encode(index: int, address: Address) -> bytes:
    family = netlink.family_of(address.address)
    flags = address.flags
    if family == socket.AF_INET6:
        flags |= IFA_F_NODAD
    local = netlink.pack_address(address.address)
    parts = [
        _IFADDR.pack(family, address.prefix_length, flags & 0xFF, address.scope, index),
        attribute(IFA_LOCAL, local),
        attribute(IFA_ADDRESS, netlink.pack_address(address.peer) if address.peer else local),
        attribute(IFA_FLAGS, flags),
    ]
    if address.broadcast:
        parts.append(attribute(IFA_BROADCAST, netlink.pack_address(address.broadcast)))
    return b"".join(parts)
