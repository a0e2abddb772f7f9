"""Packet rules in the guest: tables of nf_tables and of iptables-legacy, ipsets.

They come from the host as its kernel told them (`tapwright.linux.nftables`, `xtables`, `ipset`),
and go to this one. Of each kind only what is named is touched: what a container made stays, also
what it has put into tables of nf_tables that are made anew.
"""

import binascii
import errno
import os
import socket
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from tapwright.agent.guest.requests import Request
from tapwright.linux import ipset, nfnetlink, packet_rules, xtables
from tapwright.linux.netlink import Netlink, NetlinkError

_MOST_BYTES = 64 << 20
_MOST_TOLD = 20
_ATTEMPTS = 5
_ADDED = 1 << 24  # the number of the first change that is not the host's
_MODPROBE = "/proc/sys/kernel/modprobe"

Refusals = list[dict[str, Any]]
Before = dict[tuple[int, str], int]


def set_rulesets(nl: Netlink, request: Request) -> dict[str, Any]:
    """Put `ipsets`, replace `tables` of iptables-legacy, do all changes of `nftables` or none,
    remove the ipsets of `unset`, and make the changes of `services` in IPVS, [verb, service, server
    or null] each, in this order; what is missing is not touched. `before` are the tables that
    `nftables` make anew or remove, [family, name, the last handle of what came from the host] each:
    what has come to them since stays.

    The reply has the indices of interfaces, and those of the ipsets that were put, by name; and
    what the kernel `refused`: of which kind, its number among these (from 1, 0 for all of them),
    and why.
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
        "refused": refused[:_MOST_TOLD],
        "ipsets": indices,
        "interfaces": {name: index for index, name in socket.if_nameindex()},
    }


def _tried(kind: str, number: int, do: Callable[[], None]) -> Refusals:
    """Do something; return why that was refused, nothing where it was done."""
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
    errno.ENOENT: "the kernel has not got a match or target that it names",
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
        # The kernel loads what has a table by itself, but not what has all of them.
        _load(xtables.MODULES[table.family])
        xtables.replace(table)


def _load(module: str) -> None:
    """Have a module loaded by who loads those that the kernel asks for (kernel.modprobe)."""
    with open(_MODPROBE) as file:
        program = file.read().strip()
    if os.access(program, os.X_OK):
        os.waitpid(os.posix_spawn(program, [program, "-q", "--", module], os.environ), 0)


def _commit(text: str, before: Before, refused: Refusals) -> None:
    changes = _bytes(text)
    for _ in range(_ATTEMPTS):
        number, added = _additions(changes, before, refused)
        found = nfnetlink.commit(changes + added, number)
        if added and found and found[0].code != errno.ERESTART:
            # What is the namespace's is to be there in any case.
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
    """The generation of the ruleset, and the changes (packed) by which what containers have put
    into tables is there again; 0 and nothing where there are no tables."""
    try:
        with nfnetlink.opened() as nl:
            if not packet_rules.has_tables(nl):
                return 0, b""
            # Only here, for it is not small.
            from tapwright.linux import nftables

            number, added = nftables.additions(nl, before, changes)
    except OSError as error:
        if not nfnetlink.is_absent(error):
            told = nfnetlink.reason(error) if isinstance(error, NetlinkError) else str(error)
            refused.append({"kind": "own", "number": 0, "reason": told})
        return 0, b""
    return number, nfnetlink.packed(added, _ADDED)


def _balance(services: list[Any], refused: Refusals) -> None:
    # Only here, for it is not small.
    from tapwright.linux import ipvs

    changes = [
        ipvs.Change(verb, ipvs.Service(*service), ipvs.Server(*server) if server else None)
        for verb, service, server in services
    ]
    with ipvs.Ipvs() as table:
        refused.extend(
            {"kind": "services", "number": number, "reason": ipvs.reason(changes[number - 1], one)}
            for number, one in enumerate(table.change(changes), 1)
            if one
        )


def _bytes(text: str) -> bytes:
    """What travels compressed, in base64. Raises ValueError for more than what the host sends."""
    inflate = zlib.decompressobj()
    data = inflate.decompress(binascii.a2b_base64(text), _MOST_BYTES)
    if inflate.unconsumed_tail:
        raise ValueError(f"rules of more than {_MOST_BYTES} bytes")
    return data
