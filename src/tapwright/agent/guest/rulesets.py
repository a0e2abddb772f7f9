"""Packet rules in the guest: tables of nf_tables and of iptables-legacy, ipsets.

The rules come from the host in its kernel's messages (`tapwright.linux.nftables`, `xtables`,
`ipset`), and go to the guest's kernel. A request changes only what it names. What a container made
stays, even what a container added to a table of nf_tables that is made anew.
"""

import binascii
import errno
import os
import socket
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from tapwright.agent.guest import disk
from tapwright.agent.guest.requests import Request
from tapwright.linux import ipset, nfnetlink, packet_rules, xtables
from tapwright.linux.netlink import Netlink, NetlinkError

_MOST_BYTES = 64 << 20
_MOST_REFUSALS = 20
_ATTEMPTS = 5
_ADDED = 1 << 24  # the number of the first change that is not the host's

Refusals = list[dict[str, Any]]
Before = dict[tuple[int, str], int]


def set_rulesets(nl: Netlink, request: Request) -> dict[str, Any]:
    """Put `ipsets`, replace `tables` of iptables-legacy, do all changes of `nftables` or none,
    remove the ipsets of `unset`, and make the changes of `services` in IPVS, [verb, service, server
    or null] each, in this order. A missing key changes nothing. `before` names the tables that
    `nftables` makes anew or removes, [family, name, the last handle of what came from the host]
    each: what was added to them since then stays.

    The reply has the indices of interfaces, those of the ipsets by name, and what the kernel
    `refused`: the kind, the number among its kind (from 1; 0 for all of them), and the reason.
    """
    refused: Refusals = []
    indices: dict[str, int] = {}
    for number, item in enumerate(request.get("ipsets", ()), 1):
        refused += _tried("ipsets", number, partial(_put, item, indices))
    for number, item in enumerate(request.get("tables", ()), 1):
        refused += _tried("tables", number, partial(_replace, item))
    if changes := request.get("nftables"):
        before = {(int(family), str(name)): int(n) for family, name, n in request.get("before", ())}
        refused += _tried("nftables", 0, partial(_commit, changes, before, refused))
    for number, name in enumerate(request.get("unset", ()), 1):
        refused += _tried("unset", number, partial(_remove, name))
    if services := request.get("services"):
        refused += _tried("services", 0, partial(_balance, services, refused))
    return {
        "refused": refused[:_MOST_REFUSALS],
        "ipsets": indices,
        "interfaces": {name: index for index, name in socket.if_nameindex()},
    }


def _tried(kind: str, number: int, do: Callable[[], None]) -> Refusals:
    """Do something; return the reason of a refusal, nothing on success."""
    try:
        do()
    except NetlinkError as error:
        reason = nfnetlink.reason(error)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or os.strerror(error.errno or 0)
    else:
        return []
    return [{"kind": kind, "number": number, "reason": reason}]


_REASONS = {
    errno.ENOENT: "the kernel lacks a match or target that it names",
    errno.ENOPROTOOPT: "the kernel has no such tables",
    errno.EPROTONOSUPPORT: "the kernel has no netfilter",
}


def _put(item: Request, indices: dict[str, int]) -> None:
    wanted = ipset.Set(
        item["name"],
        item["kind"],
        int(item["revision"]),
        int(item["family"]),
        _bytes(item["settings"]),
        tuple(map(_bytes, item["elements"])),
    )
    with nfnetlink.opened() as nl:
        indices[wanted.name] = ipset.put(nl, wanted)


def _remove(name: str) -> None:
    with nfnetlink.opened() as nl:
        ipset.remove(nl, name)


def _replace(item: Request) -> None:
    table = xtables.Table(
        item["family"],
        item["name"],
        tuple(item["hooks"]),
        int(item["number"]),
        _bytes(item["entries"]),
        _bytes(item["counters"]),
    )
    try:
        xtables.replace(table)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        # The kernel loads the module of a table by itself, but not the module that has all tables.
        disk.load(xtables.MODULES[table.family])
        xtables.replace(table)


def _commit(text: str, before: Before, refused: Refusals) -> None:
    changes = _bytes(text)
    for _ in range(_ATTEMPTS):
        number, added = _additions(changes, before, refused)
        found = nfnetlink.commit(changes + added, number)
        if added and found and found[0].code != errno.ERESTART:
            # The namespace's own rules are set even without the containers' additions.
            reason = found[0].reason
            if not (found := nfnetlink.commit(changes)):
                refused.append({"kind": "own", "number": 0, "reason": reason})
        if not found or found[0].code != errno.ERESTART:
            break
    refused.extend(
        {"kind": "nftables", "number": refusal.number, "reason": refusal.reason}
        for refusal in found
    )


def _additions(changes: bytes, before: Before, refused: Refusals) -> tuple[int, bytes]:
    """Return the generation of the ruleset, and the packed changes that add again what containers
    have put into tables; 0 and nothing if there are no such tables."""
    try:
        with nfnetlink.opened() as nl:
            if not packet_rules.has_tables(nl):
                return 0, b""
            # Loaded late: the module is not small.
            from tapwright.linux import nftables

            number, added = nftables.additions(nl, before, changes)
    except OSError as error:
        if not nfnetlink.is_absent(error):
            reason = nfnetlink.reason(error) if isinstance(error, NetlinkError) else str(error)
            refused.append({"kind": "own", "number": 0, "reason": reason})
        return 0, b""
    return number, nfnetlink.packed(added, _ADDED)


def _balance(services: list[Any], refused: Refusals) -> None:
    # Loaded late: the module is not small.
    from tapwright.linux import ipvs

    changes = ipvs.changes(services)
    with ipvs.Ipvs() as table:
        refused.extend(
            {"kind": "services", "number": number, "reason": ipvs.reason(changes[number - 1], one)}
            for number, one in enumerate(table.change(changes), 1)
            if one
        )


def _bytes(text: str) -> bytes:
    """Decompress what travels in base64. Raises ValueError if it is larger than what the host
    sends."""
    inflate = zlib.decompressobj()
    data = inflate.decompress(binascii.a2b_base64(text), _MOST_BYTES)
    if inflate.unconsumed_tail:
        raise ValueError(f"rules of more than {_MOST_BYTES} bytes")
    return data
