"""Follows packets through the kernel's filters: nf_tables' own trace (nft(8), "nftrace").

The table that asks for the trace belongs to the socket (NFT_TABLE_F_OWNER): the kernel removes it
when the socket is closed, in whatever way the process ends. The table has chains before and after
all others on each hook, so the trace also shows which hooks a packet reached. Both host and guest
use it. The layouts are those of include/uapi/linux/netfilter/nf_tables.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from tapwright.linux import netlink
from tapwright.linux.netlink import (
    NLM_F_CREATE,
    Attributes,
    attribute,
    attributes,
    each,
    messages,
    nested,
    pack_address,
    text,
    unpack_address,
)
from tapwright.linux.nfnetlink import NETLINK_NETFILTER, NFTABLES, Change, commit_by, header, packed

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
"""In the order of their numbers (enum nf_inet_hooks)."""
DROP, ACCEPT = 0, 1
FIRST, LAST = -450, 450

_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _TRACE = 0, 3, 6, 17
_GROUP, _ADD_MEMBERSHIP = 9, 1  # NFNLGRP_NFTRACE, NETLINK_ADD_MEMBERSHIP
_OWNER = 2
_FAMILIES = {4: 2, 6: 10}  # NFPROTO_IPV4, NFPROTO_IPV6
# The offsets of source and destination in a header, and their length.
_PLACES = {4: (12, 16, 4), 6: (8, 24, 16)}
_NFTRACE, _REGISTER, _NETWORK_HEADER = 12, 1, 1
_KINDS = {1: "policy", 2: "return", 3: "rule"}
_RECEIVE_BYTES, _BUFFER_BYTES, _MOST = 1 << 17, 1 << 20, 4000


class Step(NamedTuple):
    """A verdict on a packet: by a `rule` (with its handle), by the `policy` of a chain, or a
    `return` to the chain before. `ours` is true for the chains of the trace itself."""

    packet: int
    table: str
    chain: str
    kind: str
    handle: int
    verdict: int
    source: str = ""
    destination: str = ""
    protocol: int = 0
    inside: int = 0
    outside: int = 0
    ours: bool = False
    family: str = "ip"
    """The family of the packet; the table may be of the family inet."""


class Trace:
    """The trace of packets of one IP version in the calling thread's namespace, by pairs of
    (source, destination). One of a pair may be empty, for any address.

    Raises OSError if the kernel has no nf_tables, or refuses.
    """

    def __init__(self, version: int, pairs: Iterable[tuple[str, str]]) -> None:
        self._name = f"tapwright-trace-{os.getpid()}"
        self._socket = netlink.opened(NETLINK_NETFILTER, _BUFFER_BYTES)
        try:
            changes = packed(_changes(self._name, version, list(pairs)))
            for refused in commit_by(self._socket, changes):
                raise OSError(refused.code, f"trace packets: {refused.reason}")
            self._socket.setsockopt(netlink.SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the kernel then removes the table."""
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def steps(self) -> list[Step]:
        """Return the steps so far, at most a few thousand."""
        found: list[Step] = []
        while len(found) < _MOST:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue  # the kernel dropped some reports; the others are still true
            for kind, _, _, body in messages(data):
                if kind == NFTABLES << 8 | _TRACE:
                    found.append(_step(attributes(body, 4), self._name))
        return found


def _changes(name: str, version: int, pairs: list[tuple[str, str]]) -> list[Change]:
    family = header(_FAMILIES[version])
    table = attribute(1, name)
    changes = [_made(_NEW_TABLE, family + table + attribute(2, _number(_OWNER)))]
    for number, hook in enumerate(HOOKS):
        for place, priority in (("first", FIRST), ("last", LAST)):
            parts = [attribute(1, _number(number)), attribute(2, struct.pack("!i", priority))]
            changes.append(
                _made(
                    _NEW_CHAIN,
                    family
                    + table
                    + attribute(3, f"{hook}-{place}")
                    + nested(4, parts)
                    + attribute(5, _number(ACCEPT))
                    + attribute(7, "filter"),
                )
            )
    for hook in ("prerouting", "output"):
        for source, destination in pairs:
            expressions = [
                *_equals(version, 0, source),
                *_equals(version, 1, destination),
                _expression("immediate", [attribute(1, _number(_REGISTER)), _data(2, b"\1")]),
                _expression(
                    "meta", [attribute(2, _number(_NFTRACE)), attribute(3, _number(_REGISTER))]
                ),
            ]
            rule = family + table + attribute(2, f"{hook}-first") + nested(4, expressions)
            changes.append(_made(_NEW_RULE, rule))
    return changes


def _made(kind: int, payload: bytes) -> Change:
    return Change(NFTABLES << 8 | kind, NLM_F_CREATE, payload)


def _equals(version: int, place: int, address: str) -> Iterator[bytes]:
    if not address:
        return
    *offsets, length = _PLACES[version]
    parts = _REGISTER, _NETWORK_HEADER, offsets[place], length
    yield _expression(
        "payload", [attribute(kind, _number(part)) for kind, part in enumerate(parts, 1)]
    )
    equal = [attribute(1, _number(_REGISTER)), attribute(2, _number(0))]
    yield _expression("cmp", [*equal, _data(3, pack_address(address))])


def _expression(name: str, parts: Iterable[bytes]) -> bytes:
    return nested(1, [attribute(1, name), nested(2, parts)])


def _data(kind: int, value: bytes) -> bytes:
    return nested(kind, [attribute(1, value)])


def _number(value: int) -> bytes:
    return struct.pack("!I", value)


def _step(found: Attributes, name: str) -> Step:
    def number(kind: int) -> int:
        return int.from_bytes(found.get(kind, b""), "big")

    verdict = next((value for kind, value in each(found.get(5, b"")) if kind == 1), b"\0\0\0\1")
    table = text(found, 1)
    ip = _header(found.get(8, b""))
    return Step(
        packet=number(6),
        table=table,
        chain=text(found, 2),
        kind=_KINDS.get(number(4), ""),
        handle=number(3),
        # The kernel reports the policy of a chain in an attribute of its own.
        verdict=number(16) if 16 in found else struct.unpack("!i", verdict)[0],
        source=ip[0],
        destination=ip[1],
        protocol=ip[2],
        inside=number(10),
        outside=number(12),
        ours=table == name,
        family="ip6" if number(15) == _FAMILIES[6] else "ip",
    )


def _header(data: bytes) -> tuple[str, str, int]:
    """Return (source, destination, protocol)."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        return unpack_address(data[12:16]), unpack_address(data[16:20]), data[9]
    if len(data) >= 40 and data[0] >> 4 == 6:
        return unpack_address(data[8:24]), unpack_address(data[24:40]), data[6]
    return "", "", 0
