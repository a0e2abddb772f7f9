"""Says which packet rules a network namespace has, without reading them, and without making the
kernel load or set anything up. The module is small, because most namespaces have no rules."""

import contextlib
import os
from typing import NamedTuple

from tapwright.linux import nfnetlink
from tapwright.linux.netlink import Netlink, NetlinkError, attribute, attributes, text

_GETTABLE, _GETGEN, _GEN_ID = nfnetlink.NFTABLES << 8 | 1, nfnetlink.NFTABLES << 8 | 16, 1
# IPSET_CMD_LIST, its attributes, and the flag that asks for names only (ip_set.h).
_LIST, _PROTOCOL, _NAME, _FLAGS = nfnetlink.IPSET << 8 | 7, 1, 2, 6
_VERSION, _ONLY_NAMES = b"\x07", b"\0\0\0\x02"
_IPSET_MODULE = "/sys/module/ip_set"
_NAMES_OF_TABLES = (
    ("ip", "ip_tables_names"),
    ("ip6", "ip6_tables_names"),
    ("arp", "arp_tables_names"),
)
_SERVICES, _HEAD_LINES = "/proc/thread-self/net/ip_vs", 3


class Glance(NamedTuple):
    """The generation of nf_tables' ruleset, which changes with each change (0 without nf_tables);
    whether the ruleset has a table; the tables of iptables-legacy as (family, name); the names of
    ipsets; and whether IPVS has a service."""

    generation: int = 0
    has_tables: bool = False
    legacy: tuple[tuple[str, str], ...] = ()
    ipsets: tuple[str, ...] = ()
    balances: bool = False

    @property
    def is_silent(self) -> bool:
        """Whether there are rules whose changes the kernel does not report."""
        return bool(self.legacy or self.ipsets or self.balances)


def glance() -> Glance:
    """Return the glance at the thread's namespace. Raises OSError."""
    found = Glance(legacy=legacy_tables(), balances=balances())
    try:
        nl = nfnetlink.opened()
    except OSError as error:
        if not nfnetlink.is_absent(error):
            raise
        return found
    with nl:
        number = generation(nl)
        ipsets = ipset_names(nl) if os.path.exists(_IPSET_MODULE) else ()
        return found._replace(
            generation=number, has_tables=bool(number) and has_tables(nl), ipsets=ipsets
        )


def generation(nl: Netlink) -> int:
    """Return a number that changes with each change of the namespace's ruleset, 0 if the kernel has
    no nf_tables."""
    try:
        answer = nl.get("look at nf_tables", _GETGEN, nfnetlink.header(0))
    except NetlinkError as error:
        if nfnetlink.is_absent(error):
            return 0
        raise
    return int.from_bytes(attributes(answer, 4).get(_GEN_ID, b""), "big")


def has_tables(nl: Netlink) -> bool:
    """Whether nf_tables has any table. Raises NetlinkError."""
    return bool(nl.dump("list tables of nf_tables", _GETTABLE, nfnetlink.header(0)))


def legacy_tables() -> tuple[tuple[str, str], ...]:
    """Return (family, name) of the tables that are set up."""
    found: list[tuple[str, str]] = []
    for family, name in _NAMES_OF_TABLES:
        with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{name}") as file:
            # The kernel lists the last table that was set up first.
            found += [(family, table) for table in reversed(file.read().split())]
    return tuple(found)


def ipset_names(nl: Netlink) -> tuple[str, ...]:
    """Return the names of ipsets. Raises NetlinkError."""
    asked = attribute(_PROTOCOL, _VERSION) + attribute(_FLAGS, _ONLY_NAMES)
    found = nl.dump("list the ipsets", _LIST, nfnetlink.header(0) + asked)
    return tuple(text(attributes(body, 4), _NAME) for body in found)


def balances() -> bool:
    """Whether IPVS has a service."""
    try:
        with open(_SERVICES) as file:
            return sum(1 for _, _ in zip(file, range(_HEAD_LINES + 1), strict=False)) > _HEAD_LINES
    except OSError:
        return False
