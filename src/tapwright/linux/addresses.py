"""IP addresses of interfaces: list, add, remove (RTM_*ADDR, rtnetlink(7))."""

import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import (
    Netlink,
    NetlinkError,
    NetlinkRequest,
    attribute,
    text,
    u32,
    unpack_address,
)

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_CACHEINFO = 1, 2, 3, 4, 6
IFA_FLAGS, IFA_RT_PRIORITY, IFA_PROTO = 8, 9, 11
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_NOPREFIXROUTE = 0x1, 0x2, 0x8, 0x200
IFA_F_PERMANENT, _IFA_F_DEPRECATED = 0x80, 0x20
IFAPROT_KERNEL_RA, _IFAPROT_KERNEL_LL = 2, 3
_SCOPE_LINK = 253

_IFADDR = struct.Struct("=BBBBi")
_CACHEINFO = struct.Struct("=IIII")
_FOREVER = 0xFFFFFFFF
_TOLERANCE = 2  # seconds

# Flags that the kernel sets itself, and that it would refuse or ignore in a request: DADFAILED,
# DEPRECATED, TENTATIVE, PERMANENT, STABLE_PRIVACY, SECONDARY/TEMPORARY, OPTIMISTIC.
_KERNEL_FLAGS = 0x01 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80 | 0x800


class Address(NamedTuple):
    """An address of an interface. `peer` is set if it differs from the address, `label` if it is
    not the interface's name. `metric` is that of the route to the subnet, 0 for the kernel's
    choice. `valid` and `preferred` are the ends of these states, in seconds of this host's
    monotonic clock; None for never."""

    address: str
    prefix_length: int
    peer: str | None = None
    broadcast: str | None = None
    scope: int = 0
    flags: int = 0
    label: str = ""
    metric: int = 0
    protocol: int = 0
    valid: int | None = None
    preferred: int | None = None

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix_length}"

    @property
    def is_ipv4(self) -> bool:
        return ":" not in self.address

    @property
    def is_advertised(self) -> bool:
        """Whether the kernel has made the address from a router advertisement, as far as it tells
        (since Linux 5.18)."""
        return self.protocol == IFAPROT_KERNEL_RA

    @property
    def timeless(self) -> "Address":
        """Return the address without the times at which it ends."""
        return self._replace(valid=None, preferred=None)

    def is_made_from(self, mac: str) -> bool:
        """Whether the address is the link-local one that the kernel makes from a MAC address (RFC
        4291, appendix A)."""
        if self.is_ipv4 or self.prefix_length != 64:
            return False
        return netlink.pack_address(self.address) == _link_local(mac)

    def ends_with(self, other: "Address") -> bool:
        """Whether both addresses end at the same time, within two seconds."""
        return all(
            one == another
            or (one is not None and another is not None and abs(one - another) <= _TOLERANCE)
            for one, another in ((self.valid, other.valid), (self.preferred, other.preferred))
        )

    def relative(self) -> dict[str, Any]:
        """Return the address as another kernel's agent takes it, without default values. Times are
        in seconds from now."""
        fields = {
            key: value
            for key, value in self._asdict().items()
            if value != self._field_defaults.get(key)
        }
        now = time.monotonic()
        for key in ("valid", "preferred"):
            if key in fields:
                fields[key] = max(0, round(fields[key] - now))
        return fields


def made_from(mac: str) -> Address:
    """Return the link-local address that the kernel makes from a MAC address."""
    made = unpack_address(_link_local(mac))
    return Address(made, 64, scope=_SCOPE_LINK, protocol=_IFAPROT_KERNEL_LL)


def _link_local(mac: str) -> bytes:
    packed = netlink.pack_mac(mac)
    return b"\xfe\x80" + bytes(6) + bytes([packed[0] ^ 2]) + packed[1:3] + b"\xff\xfe" + packed[3:]


def decode(body: bytes) -> tuple[int, Address]:
    """Read the body of an RTM_NEWADDR or RTM_DELADDR message: (interface index, address)."""
    index, _, address = decode_with_state(body)
    return index, address


def decode_with_state(body: bytes) -> tuple[int, int, Address]:
    """Read such a body with all flags, including the kernel's own: (interface index, flags,
    address)."""
    _, prefix_length, flags, scope, index = _IFADDR.unpack_from(body)
    found = netlink.attributes(body, _IFADDR.size)
    remote = found.get(IFA_ADDRESS, b"")
    local = found.get(IFA_LOCAL, remote)
    broadcast = found.get(IFA_BROADCAST)
    flags = u32(found, IFA_FLAGS, flags)
    preferred, valid = _ends(found.get(IFA_CACHEINFO, b""))
    if flags & _IFA_F_DEPRECATED:
        preferred = 0  # long ago; the kernel does not tell when, nor of a permanent one that it was
    return (
        index,
        flags,
        Address(
            address=unpack_address(local),
            prefix_length=prefix_length,
            peer=unpack_address(remote) if remote and remote != local else None,
            broadcast=unpack_address(broadcast) if broadcast else None,
            scope=scope,
            flags=flags & ~_KERNEL_FLAGS,
            label=_own_label(text(found, IFA_LABEL)),
            metric=u32(found, IFA_RT_PRIORITY),
            protocol=found.get(IFA_PROTO, b"\0")[0],
            valid=valid,
            preferred=preferred,
        ),
    )


def _own_label(label: str) -> str:
    """Return a label; empty for an interface's name, which never contains a colon
    (dev_valid_name)."""
    return label if ":" in label else ""


def _ends(info: bytes) -> tuple[int | None, int | None]:
    """Return when an address stops being preferred, and being valid (struct ifa_cacheinfo). Two
    readings of one address may differ by a second, because the kernel counts whole seconds."""
    if len(info) < _CACHEINFO.size:
        return None, None
    preferred, valid, _, updated = _CACHEINFO.unpack_from(info)
    passed = int(time.monotonic() - updated / 100)

    def end(left: int) -> int | None:
        return None if left == _FOREVER else updated // 100 + passed + left

    return end(preferred), end(valid)


def listing(nl: Netlink) -> list[tuple[int, Address]]:
    """Return all (interface index, address) pairs of the namespace, IPv4 and IPv6."""
    return _list(nl, 0)


def listing_with_state(nl: Netlink, at_most: int) -> list[tuple[int, int, Address]]:
    """Return all (interface index, flags, address) of the namespace, with all flags. If there are
    more than `at_most`, return one more than that."""
    payload = _IFADDR.pack(0, 0, 0, 0, 0)
    bodies = nl.dump("list addresses", RTM_GETADDR, payload, at_most=at_most)
    return [decode_with_state(body) for body in bodies]


def of(nl: Netlink, index: int) -> list[Address]:
    """Return the addresses of one interface, in the kernel's order."""
    return [address for _, address in _list(nl, index)]


def permanent(nl: Netlink, index: int) -> list[Address]:
    """Return the permanent addresses of one interface, in the kernel's order, without those of a
    lease or a router advertisement."""
    payload = _IFADDR.pack(0, 0, 0, 0, index)
    return [
        decode(body)[1]
        for body in nl.dump("list addresses", RTM_GETADDR, payload)
        if u32(netlink.attributes(body, _IFADDR.size), IFA_FLAGS) & IFA_F_PERMANENT
    ]


def add(nl: Netlink, index: int, address: Address) -> None:
    """Add an address, or replace the same one. IPv6 skips duplicate address detection: the plugin
    that gave the address out made sure that it is unique."""
    request = _adding(index, address, address.flags | IFA_F_NODAD)
    (refusal,) = nl.request_many([request])
    if refusal:
        raise refusal


def add_many(
    nl: Netlink, index: int, some: Sequence[Address]
) -> list[tuple[Address, NetlinkError]]:
    """Add addresses, or replace the same ones; return those that the kernel refused. The addresses
    are usable at once, without duplicate address detection, even if their flags do not say so."""
    requests = [_adding(index, address, address.flags | IFA_F_NODAD) for address in some]
    refusals = nl.request_many(requests)
    refused = [pair for pair in zip(some, refusals, strict=True) if pair[1]]
    # The flag IFA_F_NODAD should show only on addresses that want it; a present address is no
    # longer in doubt.
    unflagged = [
        _adding(index, address, address.flags)
        for address, refusal in zip(some, refusals, strict=True)
        if not refusal and not address.is_ipv4 and not address.flags & IFA_F_NODAD
    ]
    nl.request_many(unflagged)
    return [(address, refusal) for address, refusal in refused if refusal]


def remove(nl: Netlink, index: int, address: Address) -> None:
    nl.request(f"remove address {address}", RTM_DELADDR, _encode(index, address, address.flags))


def _list(nl: Netlink, index: int) -> list[tuple[int, Address]]:
    payload = _IFADDR.pack(0, 0, 0, 0, index)
    return [decode(body) for body in nl.dump("list addresses", RTM_GETADDR, payload)]


def _adding(index: int, address: Address, flags: int) -> NetlinkRequest:
    """Return the request to add an address. The times of `valid` and `preferred` start now."""
    body = _encode(index, address, flags)
    if address.valid is not None or address.preferred is not None:
        now = time.monotonic()
        preferred, valid = (
            _FOREVER if end is None else max(0, round(end - now))
            for end in (address.preferred, address.valid)
        )
        body += attribute(IFA_CACHEINFO, _CACHEINFO.pack(preferred, max(1, valid), 0, 0))
    create = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    return NetlinkRequest(f"add address {address}", RTM_NEWADDR, body, create)


def _encode(index: int, address: Address, flags: int) -> bytes:
    family = netlink.family_of(address.address)
    if family == socket.AF_INET:
        flags &= ~IFA_F_NODAD
    local = netlink.pack_address(address.address)
    parts = [
        _IFADDR.pack(family, address.prefix_length, flags & 0xFF, address.scope, index),
        attribute(IFA_LOCAL, local),
        attribute(IFA_ADDRESS, netlink.pack_address(address.peer) if address.peer else local),
        attribute(IFA_FLAGS, flags),
    ]
    if address.broadcast:
        parts.append(attribute(IFA_BROADCAST, netlink.pack_address(address.broadcast)))
    if address.label:
        parts.append(attribute(IFA_LABEL, address.label))
    if address.metric:
        parts.append(attribute(IFA_RT_PRIORITY, address.metric))
    if address.protocol:
        parts.append(attribute(IFA_PROTO, bytes([address.protocol])))
    return b"".join(parts)
