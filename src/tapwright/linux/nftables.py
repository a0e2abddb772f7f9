"""The nf_tables ruleset of a network namespace, as the messages that make it in another one.

The kernel reports a table, chain, rule, set or object in the encoding of the request that makes one
(include/uapi/linux/netfilter/nf_tables.h), so most of a message is sent on unread. The exceptions:

- Handles, use counts and owners belong to one kernel, and are left out.
- Sets get the ids by which rules find anonymous sets. nft's anonymous chains (`jump { … }`) lose
  their names, which are numbers; rules find them by id.
- A rule of iptables-nft gets back the protocol that its matches are checked against: the kernel
  needs it in a request (NFTA_RULE_COMPAT), and does not report it.
- Elements of interval sets are sent in nft's order.
- Hooks lose the names of interfaces that the other namespace lacks. Indices of interfaces and of
  ipsets are translated (`Place`).

Values that change by themselves (counters, the rest of a quota or a timeout) are sent, but they are
no part of a table's `key`.
"""

import errno
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from tapwright.linux import nfnetlink, xtables
from tapwright.linux.netlink import (
    NLA_TYPE_MASK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Attributes,
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    each,
    messages,
    nested,
    text,
)
from tapwright.linux.nfnetlink import Change
from tapwright.linux.packet_rules import generation

MOST_BYTES = 16 << 20
"""The limit for a namespace's ruleset in the kernel's encoding: some 40,000 rules."""
MOST_ELEMENTS = 200_000
"""The limit for the elements of all sets together; reading so many takes seconds."""
_ATTEMPTS = 5
_ELEMENTS_BYTES = 16 << 10  # the limit of one message; an attribute has 64 KiB at most

_ARP, _NETDEV, _BRIDGE, _INET = 3, 5, 7, 1
FAMILIES = {
    _INET: "inet",
    socket.AF_INET: "ip",
    _ARP: "arp",
    _NETDEV: "netdev",
    _BRIDGE: "bridge",
    socket.AF_INET6: "ip6",
}
"""nft's names of the families (NFPROTO_*)."""

_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN = range(5)
_NEWRULE, _GETRULE = 6, 7
_NEWSET, _GETSET = 9, 10
_NEWSETELEM, _GETSETELEM = 12, 13
_NEWOBJ, _GETOBJ = 18, 19
_NEWFLOWTABLE, _GETFLOWTABLE = 22, 23
_TABLE_NAME, _TABLE_FLAGS, _TABLE_USERDATA = 1, 2, 6
_TABLE_F_DORMANT = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_FLAGS, _CHAIN_ID = 1, 3, 4, 10, 11
_CHAIN_COUNTERS = 8
_CHAIN_OWN = (2, 6, 9)  # handle, use, padding
_CHAIN_HANDLE, _RULE_HANDLE, _SET_HANDLE, _OBJECT_HANDLE, _FLOWTABLE_HANDLE = 2, 3, 16, 6, 5
_CHAIN_F_HW_OFFLOAD, _CHAIN_F_BINDING = 2, 4
_HOOK_DEV, _HOOK_DEVS, _DEVICE_NAME = 3, 4, 1
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_COMPAT, _RULE_USERDATA = 1, 2, 4, 5, 7
_RULE_CHAIN_ID = 11
_COMPAT_PROTO, _COMPAT_FLAGS, _COMPAT_F_INV = 1, 2, 2
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_DESC, _SET_ID = 1, 2, 3, 4, 9, 10
_SET_EXPR, _SET_EXPRESSIONS = 17, 18
_SET_F_ANONYMOUS = 1
_SET_OWN = (14, 16, 19, 20)  # padding, handle, backend, count
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS, _ELEMENTS_SET_ID = 1, 2, 3, 4
_ELEMENT_KEY, _ELEMENT_FLAGS, _ELEMENT_EXPIRATION = 1, 3, 5
_ELEMENT_EXPR, _ELEMENT_PAD, _ELEMENT_EXPRESSIONS = 7, 8, 11
_ELEMENT_F_END = 1
_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA = 1, 2, 3, 4
_OBJECT_OWN = (5, 6, 8)
_OBJECT_COUNTER, _OBJECT_QUOTA = 1, 2
_FLOWTABLE_TABLE, _FLOWTABLE_NAME, _FLOWTABLE_HOOK, _FLOWTABLE_FLAGS = 1, 2, 3, 7
_FLOWTABLE_OWN = (4, 5, 6)
_FLOWTABLE_DEVS = 3
_FLOWTABLE_F_HW_OFFLOAD = 1
_EXPRESSION_NAME, _EXPRESSION_DATA, _LIST_ELEMENT = 1, 2, 1
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN, _VERDICT_CHAIN_ID = 1, 2, 3
_QUOTA_FLAGS, _QUOTA_CONSUMED, _QUOTA_F_INV = 2, 4, 1
_KEY_IFINDEX = 20  # nft's own number of the type (include/datatype.h in nftables)

_META_DREG, _META_KEY = 1, 2
_META_PROTOCOL, _META_IIF, _META_OIF, _META_L4PROTO = 1, 4, 5, 16
_META_SDIF = 30
_FIB_DREG, _FIB_RESULT, _FIB_RESULT_OIF = 1, 2, 1
_PAYLOAD_DREG, _PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LEN = 1, 2, 3, 4
_CMP_SREG, _CMP_OP, _CMP_DATA = 1, 2, 3
_IMMEDIATE_DREG, _IMMEDIATE_DATA = 1, 2
# Where a header has the protocol: (family, base, offset, length). Base 0 is the link's header, 1
# the network's.
_PROTOCOL_AT = {
    (socket.AF_INET, 1, 9, 1),
    (socket.AF_INET6, 1, 6, 1),
    (_BRIDGE, 0, 12, 2),
}
_EXTHDR_DREG, _EXTHDR_OFFSET, _EXTHDR_LEN, _EXTHDR_FLAGS, _EXTHDR_SREG = 1, 3, 4, 5, 7
_DYNSET_TIMEOUT, _DYNSET_EXPR, _DYNSET_FLAGS, _DYNSET_EXPRESSIONS = 6, 7, 9, 10
_DYNSET_F_EXPR = 2
_NO_SUCH_INDEX = 1 << 30
_TO_SETS = {"lookup": 1, "dynset": 1, "objref": 4}
"""Expressions that name a set, with the attribute that names it."""
_ADDED = 1 << 16  # the first number of what is added to a table
_TO_DEVICES = {"dup": 2, "fwd": 1}  # NFTA_DUP_SREG_DEV, NFTA_FWD_SREG_DEV


_WITH_HANDLES = frozenset(
    nfnetlink.NFTABLES << 8 | kind
    for kind in (_NEWCHAIN, _NEWRULE, _NEWSET, _NEWOBJ, _NEWFLOWTABLE)
)


class Place(NamedTuple):
    """The destination of a ruleset: the names of its interfaces, None for any name; and the indices
    of its interfaces and ipsets, by those here."""

    devices: Collection[str] | None = None
    indices: Mapping[int, int] = {}
    ipsets: Mapping[int, int] = {}


class Table(NamedTuple):
    """A table with its whole content. Two tables with one `key` do the same. `has_devices` is true
    if a part of the table ends with an interface. `left_out` says in words what can't exist at the
    destination."""

    family: int
    name: str
    changes: tuple[Change, ...]
    key: bytes
    has_devices: bool
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        return f"table {FAMILIES.get(self.family, self.family)} {self.name}"

    @property
    def handles(self) -> int:
        """The last handle that the table uses up when it is made anew: a table counts its handles
        from 1 (net/netfilter/nf_tables_api.c: nf_tables_alloc_handle). What is added later has
        greater ones."""
        return sum(change.kind in _WITH_HANDLES for change in self.changes)


def read(nl: Netlink, place: Place, most_bytes: int = 0) -> tuple[int, list[Table]]:
    """Return the generation of the namespace's ruleset, and its tables.

    Raises NetlinkError: EMSGSIZE if there is more than `most_bytes`, or MOST_BYTES, or more than
    MOST_ELEMENTS; EBUSY if the ruleset kept changing while it was read.
    """
    for _ in range(_ATTEMPTS):
        before = generation(nl)
        try:
            found = _Reading(nl, place, most_bytes or MOST_BYTES).tables() if before else []
        except NetlinkError as error:
            # A set whose elements were to be read has gone.
            if error.errno not in (errno.ENOENT, errno.EBUSY):
                raise
            continue
        if generation(nl) == before:
            return before, found
    raise NetlinkError(errno.EBUSY, "read the ruleset", "it changed again and again meanwhile")


def additions(
    nl: Netlink, tables: Mapping[tuple[int, str], int], replacement: bytes
) -> tuple[int, list[Change]]:
    """Return what was added to `tables`, and the generation of the ruleset for which that is true.
    `tables` are (family, name) with the last handle of the earlier content. The result has chains,
    rules, sets and so on, as changes that add them again after the changes of `replacement`
    (packed), which make the tables anew or remove them.

    Rules that followed others in their chain are added at the chain's end, other rules at its
    beginning. Raises NetlinkError as `read` does.
    """
    made: dict[tuple[int, str], set[str]] = {}
    for kind, _, _, body in messages(replacement):
        if kind == _kind(_NEWCHAIN):
            found = attributes(body, 4)
            which = body[0], text(found, _CHAIN_TABLE)
            made.setdefault(which, set()).add(text(found, _CHAIN_NAME))
    before = generation(nl)
    reading = _Reading(nl, Place(), MOST_BYTES, {w: (n, made.get(w)) for w, n in tables.items()})
    return before, [change for table in reading.tables() for change in table.changes]


def removal(family: int, name: str) -> list[Change]:
    """Return the changes that remove a table, if it exists."""
    payload = nfnetlink.header(family) + attribute(_TABLE_NAME, name)
    description = f"remove table {FAMILIES.get(family, family)} {name}"
    return [
        Change(_kind(_NEWTABLE), NLM_F_CREATE, payload, description),
        Change(_kind(_DELTABLE), 0, payload, description),
    ]


def replacement(table: Table) -> list[Change]:
    """Return the changes that make a table anew, whether it exists or not."""
    return [*removal(table.family, table.name), *table.changes]


class _Reading:
    """One reading of all tables."""

    def __init__(
        self,
        nl: Netlink,
        place: Place,
        most_bytes: int,
        added_to: "Mapping[tuple[int, str], _Before] | None" = None,
    ) -> None:
        self._nl = nl
        self._place = place
        self._left = most_bytes
        self._elements_left = MOST_ELEMENTS
        self._added_to = added_to

    def tables(self) -> list[Table]:
        tables: dict[tuple[int, str], _Contents] = {}
        for body, found in self._dump("tables", _GETTABLE):
            which = body[0], text(found, _TABLE_NAME)
            if self._added_to is None:
                tables[which] = _Contents(body[0], found, self._place)
            elif which in self._added_to:
                tables[which] = _Additions(body[0], found, *self._added_to[which])
        if not tables:
            return []
        for what, kind, attribute_of_table, take in (
            ("chains", _GETCHAIN, _CHAIN_TABLE, "add_chain"),
            ("flowtables", _GETFLOWTABLE, _FLOWTABLE_TABLE, "add_flowtable"),
            ("objects", _GETOBJ, _OBJECT_TABLE, "add_object"),
            ("sets", _GETSET, _SET_TABLE, "add_set"),
            ("rules", _GETRULE, _RULE_TABLE, "add_rule"),
        ):
            for body, found in self._dump(what, kind):
                if table := tables.get((body[0], text(found, attribute_of_table))):
                    getattr(table, take)(found)
        for table in tables.values():
            for name in table.sets:
                table.add_elements(name, self._elements(table, name))
        return [table.finished() for table in tables.values()]

    def _elements(self, table: "_Contents", name: str) -> list[bytes]:
        asked = attribute(_ELEMENTS_TABLE, table.name) + attribute(_ELEMENTS_SET, name)
        elements = [
            element
            for _, found in self._dump(f"set {name}", _GETSETELEM, table.family, asked)
            for _, element in each(found.get(_ELEMENTS, b""))
        ]
        self._elements_left -= len(elements)
        if self._elements_left < 0:
            reason = f"more than {MOST_ELEMENTS} elements of sets"
            raise NetlinkError(errno.EMSGSIZE, "read the sets of nf_tables", reason)
        return elements

    def _dump(
        self, what: str, kind: int, family: int = socket.AF_UNSPEC, asked: bytes = b""
    ) -> Iterator[tuple[bytes, Attributes]]:
        payload = nfnetlink.header(family) + asked
        try:
            bodies = self._nl.dump(f"read {what} of nf_tables", _kind(kind), payload, self._left)
        except NetlinkError as error:
            if kind != _GETTABLE and nfnetlink.is_absent(error):
                return  # an old kernel has no objects or flowtables
            raise
        # Not 0, which would mean no limit.
        self._left = max(1, self._left - sum(map(len, bodies)))
        for body in bodies:
            yield body, attributes(body, 4)


class _Contents:
    """A table that is being read."""

    def __init__(self, family: int, found: Attributes, place: Place) -> None:
        self.family = family
        self.name = text(found, _TABLE_NAME)
        self.sets: dict[str, Attributes] = {}
        self._place = place
        self._label = FAMILIES.get(family, str(family))
        self._chains: list[Change] = []
        self._contents: list[Change] = []
        self._elements: list[Change] = []
        self._rules: dict[str, list[_Rule]] = {}
        self._bound: dict[str, int] = {}
        self._left_out_chains: set[str] = set()
        self._left_out: list[str] = []
        self._has_devices = False
        self._first_id = 0
        self._set_names: dict[str, str] = {}
        self._key: list[bytes] = []
        kept = [attribute(_TABLE_NAME, self.name)]
        # The owner is a process, and the table ends with it. At the destination the table has no
        # owner.
        if flags := _number(found.get(_TABLE_FLAGS, b"")) & _TABLE_F_DORMANT:
            kept.append(attribute(_TABLE_FLAGS, struct.pack(">I", flags)))
        if _TABLE_USERDATA in found:
            kept.append(attribute(_TABLE_USERDATA, found[_TABLE_USERDATA]))
        self._table = self._change(_NEWTABLE, NLM_F_CREATE, kept, "")

    def add_chain(self, found: Attributes) -> None:
        name = text(found, _CHAIN_NAME)
        flags = _number(found.get(_CHAIN_FLAGS, b""))
        kept = dict(found)
        for kind in _CHAIN_OWN:
            kept.pop(kind, None)
        if _CHAIN_HOOK in kept:
            hook = self._hook(kept[_CHAIN_HOOK], _HOOK_DEVS, f"chain {name}")
            if hook is None:
                self._left_out_chains.add(name)
                return
            kept[_CHAIN_HOOK] = hook
        if flags & _CHAIN_F_HW_OFFLOAD:
            flags &= ~_CHAIN_F_HW_OFFLOAD
            kept[_CHAIN_FLAGS] = struct.pack(">I", flags)
        if flags & _CHAIN_F_BINDING:
            self._bound[name] = self._first_id + len(self._bound) + 1
            del kept[_CHAIN_NAME]
            kept[_CHAIN_ID] = struct.pack(">I", self._bound[name])
        counters = {_CHAIN_COUNTERS} & kept.keys()
        change = self._change(_NEWCHAIN, NLM_F_CREATE, _encoded(kept), f"chain {name}")
        self._chains.append(change)
        self._rules.setdefault(name, [])
        self._key.append(_encoded_bytes({k: v for k, v in kept.items() if k not in counters}))

    def add_flowtable(self, found: Attributes) -> None:
        kept = {kind: value for kind, value in found.items() if kind not in _FLOWTABLE_OWN}
        name = text(found, _FLOWTABLE_NAME)
        hook = self._hook(found.get(_FLOWTABLE_HOOK, b""), _FLOWTABLE_DEVS, "")
        kept[_FLOWTABLE_HOOK] = hook or b""
        if flags := _number(found.get(_FLOWTABLE_FLAGS, b"")):
            kept[_FLOWTABLE_FLAGS] = struct.pack(">I", flags & ~_FLOWTABLE_F_HW_OFFLOAD)
        self._add(self._contents, _NEWFLOWTABLE, _encoded(kept), f"flowtable {name}")

    def add_object(self, found: Attributes) -> None:
        kept = {kind: value for kind, value in found.items() if kind not in _OBJECT_OWN}
        name, kind = text(found, _OBJECT_NAME), _number(found.get(_OBJECT_TYPE, b""))
        key = {**kept}
        if kind == _OBJECT_COUNTER:
            del key[_OBJECT_DATA]
        elif kind == _OBJECT_QUOTA:
            kept[_OBJECT_DATA], key[_OBJECT_DATA] = _quota(found[_OBJECT_DATA])
        description = f"object {name}"
        self._add(self._contents, _NEWOBJ, _encoded(kept), description, _encoded_bytes(key))

    def add_set(self, found: Attributes) -> None:
        name = text(found, _SET_NAME)
        self.sets[name] = found
        kept = {kind: value for kind, value in found.items() if kind not in _SET_OWN}
        key = {**kept}
        if _SET_EXPR in kept:
            kept[_SET_EXPR], key[_SET_EXPR] = _stateful(kept[_SET_EXPR])
        if _SET_EXPRESSIONS in kept:
            kept[_SET_EXPRESSIONS], key[_SET_EXPRESSIONS] = _each_stateful(kept[_SET_EXPRESSIONS])
        kept[_SET_ID] = struct.pack(">I", self._first_id + len(self.sets))
        self._add(self._contents, _NEWSET, _encoded(kept), f"set {name}", _encoded_bytes(key))

    def add_elements(self, name: str, found: list[bytes]) -> None:
        about = self.sets[name]
        # The kernel lists a hash in any order.
        found = sorted(found, key=_place_in_interval_set)
        is_of_interfaces = _number(about.get(_SET_KEY_TYPE, b"")) == _KEY_IFINDEX
        part: list[bytes] = []
        size = 0
        for element in found:
            if is_of_interfaces:
                element = self._with_own_index(element)
            payload, key = _element(element)
            self._key.append(key)
            if part and size + len(payload) > _ELEMENTS_BYTES:
                self._add_elements(name, part)
                part, size = [], 0
            part.append(nested(_LIST_ELEMENT, [payload]))
            size += len(part[-1])
        if part:
            self._add_elements(name, part)

    def add_rule(self, found: Attributes) -> None:
        chain = text(found, _RULE_CHAIN)
        if chain in self._left_out_chains:
            return
        expressions = _Expressions(self.family, self._place, self._bound, self._set_names)
        rule = _rule(found.get(_RULE_EXPRESSIONS, b""), expressions)
        kept = [attribute(_RULE_TABLE, self.name)]
        if chain in self._bound:
            kept.append(attribute(_RULE_CHAIN_ID, struct.pack(">I", self._bound[chain])))
        else:
            kept.append(attribute(_RULE_CHAIN, chain))
        self._key.append(kept[-1])
        kept += [nested(_RULE_EXPRESSIONS, rule.made), *rule.compat]
        if _RULE_USERDATA in found:
            kept.append(attribute(_RULE_USERDATA, found[_RULE_USERDATA]))
        description = f"rule {len(self._rules[chain]) + 1} of chain {chain}"
        change = self._change(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, kept, description)
        self._rules[chain].append(_Rule(change, rule.binds))
        self._key += [*rule.key, found.get(_RULE_USERDATA, b"")]

    def finished(self) -> Table:
        rules: list[Change] = []
        done: set[str] = set()

        def take(chain: str) -> None:
            """Take the rules of a chain; the rules of an anonymous chain that one of them binds
            come before."""
            if chain in done:
                return
            done.add(chain)
            for rule in self._rules.get(chain, ()):
                for bound in rule.binds:
                    take(bound)
                rules.append(rule.change)

        for chain in self._rules:
            if chain not in self._bound:
                take(chain)
        changes = (self._table, *self._chains, *self._contents, *self._elements, *rules)
        key = b"".join(struct.pack("=I", len(part)) + part for part in (self._table[2], *self._key))
        left_out = tuple(self._left_out)
        return Table(self.family, self.name, changes, key, self._has_devices, left_out)

    def _add(
        self,
        where: list[Change],
        kind: int,
        kept: list[bytes],
        description: str,
        key: bytes | None = None,
    ) -> None:
        change = self._change(kind, NLM_F_CREATE, kept, description)
        where.append(change)
        self._key.append(change.payload if key is None else key)

    def _add_elements(self, name: str, part: list[bytes]) -> None:
        kept = [
            attribute(_ELEMENTS_TABLE, self.name),
            attribute(_ELEMENTS_SET, self._set_names.get(name, name)),
            nested(_ELEMENTS, part),
        ]
        description = f"elements of set {name}"
        self._elements.append(self._change(_NEWSETELEM, NLM_F_CREATE, kept, description))

    def _change(self, kind: int, flags: int, kept: Iterable[bytes], description: str) -> Change:
        payload = nfnetlink.header(self.family) + b"".join(kept)
        where = f"table {self._label} {self.name}"
        return Change(
            _kind(kind), flags, payload, f"{where}, {description}" if description else where
        )

    def _hook(self, data: bytes, devices_kind: int, what: str) -> bytes | None:
        """Return a hook without missing devices; None if no device is left and
        the object `what` can't do without."""
        found = attributes(data)
        kinds = {devices_kind} | ({_HOOK_DEV} if devices_kind == _HOOK_DEVS else set())
        if not kinds & found.keys():
            return data
        self._has_devices = True
        if self._place.devices is None:
            return data
        names = [value for _, value in each(found.get(devices_kind, b""))]
        if not names:
            names = [found[_HOOK_DEV]]
        kept = [name for name in names if _named(name) in self._place.devices]
        if len(kept) < len(names) and what:
            gone = ", ".join(_named(name) for name in names if name not in kept)
            self._left_out.append(f"{what} for {gone}, which the guest lacks")
        if not kept and what:
            return None
        parts = [attribute(k, v) for k, v in found.items() if k not in kinds]
        if len(kept) == 1 and devices_kind == _HOOK_DEVS:
            parts.append(attribute(_HOOK_DEV, kept[0]))
        elif kept:
            parts.append(nested(devices_kind, [attribute(_DEVICE_NAME, name) for name in kept]))
        return b"".join(parts)

    def _with_own_index(self, element: bytes) -> bytes:
        return b"".join(
            attribute(kind, _translated_data(value, self._place))
            if kind & NLA_TYPE_MASK == _ELEMENT_KEY
            else attribute(kind, value)
            for kind, value in each(element)
        )


_Before = tuple[int, "set[str] | None"]
"""The last handle of a table's earlier content, and the chains that the table will have; None if
the table goes."""


class _Additions(_Contents):
    """A table that is being read for what was added to it."""

    def __init__(
        self, family: int, found: Attributes, last: int, chains: "set[str] | None"
    ) -> None:
        super().__init__(family, found, Place())
        self._last = last
        self._remaining = chains
        self._first_id = _ADDED
        self._earlier_chains: dict[str, Attributes] = {}
        self._chains_begun: set[str] = set()
        self._first_rules: dict[str, list[_Rule]] = {}

    def _is_earlier(self, found: Attributes, handle: int) -> bool:
        return _number(found.get(handle, b"")) <= self._last

    def add_chain(self, found: Attributes) -> None:
        name = text(found, _CHAIN_NAME)
        if not self._is_earlier(found, _CHAIN_HANDLE):
            super().add_chain(found)
        elif _number(found.get(_CHAIN_FLAGS, b"")) & _CHAIN_F_BINDING:
            self._left_out_chains.add(name)
        else:
            self._earlier_chains[name] = found
            self._rules[name] = []

    def add_flowtable(self, found: Attributes) -> None:
        if not self._is_earlier(found, _FLOWTABLE_HANDLE):
            super().add_flowtable(found)

    def add_object(self, found: Attributes) -> None:
        if not self._is_earlier(found, _OBJECT_HANDLE):
            super().add_object(found)

    def add_set(self, found: Attributes) -> None:
        if self._is_earlier(found, _SET_HANDLE):
            return
        name = text(found, _SET_NAME)
        if _number(found.get(_SET_FLAGS, b"")) & _SET_F_ANONYMOUS:
            # An anonymous set's name is free to choose, and another set may get this one.
            self._set_names[name] = f"{name.rstrip('0123456789')}{_ADDED + len(self.sets)}"
            found = {**found, _SET_NAME: self._set_names[name].encode() + b"\0"}
        super().add_set(found)
        self.sets[name] = self.sets.pop(text(found, _SET_NAME))

    def add_rule(self, found: Attributes) -> None:
        chain = text(found, _RULE_CHAIN)
        if self._is_earlier(found, _RULE_HANDLE):
            self._chains_begun.add(chain)
            return
        super().add_rule(found)
        if chain in self._earlier_chains and chain not in self._chains_begun:
            rule = self._rules[chain].pop()
            change = rule.change._replace(flags=NLM_F_CREATE)  # at the beginning
            self._first_rules.setdefault(chain, []).append(rule._replace(change=change))

    def finished(self) -> Table:
        for chain, first in self._first_rules.items():
            self._rules[chain] = [*reversed(first), *self._rules[chain]]
        for chain, found in self._earlier_chains.items():
            # The chain's own rules go, but for those that the additions need.
            if self._rules[chain] and chain not in (self._remaining or ()):
                rules = self._rules[chain]
                super().add_chain(found)
                self._rules[chain] = rules
        table = super().finished()
        changes = table.changes if self._remaining is None else table.changes[1:]
        # An empty table is not kept.
        return table._replace(changes=changes if len(table.changes) > 1 else ())


class _Rule(NamedTuple):
    change: Change
    binds: tuple[str, ...]


class _Expressions:
    """The expressions of a rule; `binds` are the anonymous chains to which it leads."""

    def __init__(
        self, family: int, place: Place, bound: Mapping[str, int], set_names: Mapping[str, str]
    ) -> None:
        self.made: list[bytes] = []
        self.key: list[bytes] = []
        self.binds: tuple[str, ...] = ()
        self._family = family
        self._place = place
        self._bound = bound
        self._set_names = set_names
        self._protocols: set[int] = set()  # registers that hold a packet's protocol
        self._interfaces: set[int] = set()  # registers that hold the index of an interface
        self._immediates: dict[int, int] = {}  # the registers' immediate expressions
        self._protocol = b""
        self._is_compat = False

    @property
    def compat(self) -> list[bytes]:
        """Return the expressions for matches and targets of iptables."""
        is_due = self._is_compat and self._protocol
        return [nested(_RULE_COMPAT, [self._protocol])] if is_due else []

    def add(self, kind: int, name: str, content: bytes) -> None:
        parts = attributes(content)
        key: bytes | None = None
        if self._set_names and name in _TO_SETS:
            content = self._renamed(parts, _TO_SETS[name])
            parts = attributes(content)
        if name in _LOADS:
            self._load(name, parts)
        if name == "cmp":
            content = self._compared(content, parts)
        elif name == "immediate":
            self._immediates[_number(parts.get(_IMMEDIATE_DREG, b""))] = len(self.made)
            content, chain = _verdict(content, parts, self._bound)
            self.binds += (chain,) if chain else ()
        elif name in _TO_DEVICES:
            self._translate_device(parts.get(_TO_DEVICES[name], b""))
        elif name in ("match", "target"):
            self._is_compat = True
            content = _with_own_ipset(content, parts, self._place)
        elif name in _STATEFUL:
            content, key = _STATEFUL[name](content)
        elif name == "exthdr":
            content = _option(parts)
        self.made.append(nested(kind & NLA_TYPE_MASK, [_expression(name, content)]))
        self.key.append(self.made[-1] if key is None else _expression(name, key))

    def _renamed(self, parts: Attributes, named: int) -> bytes:
        name = self._set_names.get(text(parts, named))
        return _encoded_bytes({**parts, named: name.encode() + b"\0"} if name else parts)

    def _load(self, name: str, parts: Attributes) -> None:
        register = _number(parts.get(1, b""))  # the register is the first attribute of each
        for known in (self._protocols, self._interfaces):
            known.discard(register)
        if _is_protocol(name, parts, self._family):
            self._protocols.add(register)
        elif _is_interface(name, parts):
            self._interfaces.add(register)

    def _compared(self, content: bytes, parts: Attributes) -> bytes:
        register = _number(parts.get(_CMP_SREG, b""))
        if register in self._protocols and not self._protocol:
            self._protocol = _compat(parts)
        elif register in self._interfaces and _CMP_DATA in parts:
            data = _translated_data(parts[_CMP_DATA], self._place)
            return _encoded_bytes({**parts, _CMP_DATA: data})
        return content

    def _translate_device(self, register: bytes) -> None:
        """Translate the device to which packets go, which an immediate expression has loaded."""
        at = self._immediates.get(_number(register))
        if not register or at is None:
            return
        ((_, expression),) = each(self.made[at])
        found = attributes(attributes(expression)[_EXPRESSION_DATA])
        found[_IMMEDIATE_DATA] = _translated_data(found[_IMMEDIATE_DATA], self._place)
        made = nested(_LIST_ELEMENT, [_expression("immediate", _encoded_bytes(found))])
        self.made[at] = self.key[at] = made


def _rule(data: bytes, rule: _Expressions) -> _Expressions:
    for kind, expression in each(data):
        found = attributes(expression)
        rule.add(kind, text(found, _EXPRESSION_NAME), found.get(_EXPRESSION_DATA, b""))
    return rule


_LOADS = ("meta", "payload", "fib", "immediate", "ct", "rt", "socket", "exthdr", "bitwise", "hash")


def _is_protocol(name: str, parts: Attributes, family: int) -> bool:
    if name == "meta":
        key = _number(parts.get(_META_KEY, b""))
        return key == (_META_PROTOCOL if family == _BRIDGE else _META_L4PROTO)
    numbers = (_number(parts.get(k, b"")) for k in (_PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LEN))
    return name == "payload" and (family, *numbers) in _PROTOCOL_AT


def _is_interface(name: str, parts: Attributes) -> bool:
    if name == "meta":
        return _number(parts.get(_META_KEY, b"")) in (_META_IIF, _META_OIF, _META_SDIF)
    return name == "fib" and _number(parts.get(_FIB_RESULT, b"")) == _FIB_RESULT_OIF


def _compat(parts: Attributes) -> bytes:
    """Return the protocol that iptables-nft sends with a rule whose expressions compare it in this
    way."""
    value = attributes(parts.get(_CMP_DATA, b"")).get(_DATA_VALUE, b"")
    # It is one byte; for bridges two, in the order of the packet and of memory.
    number = int.from_bytes(value, sys.byteorder)
    flags = _COMPAT_F_INV if _number(parts.get(_CMP_OP, b"")) else 0
    return attribute(_COMPAT_PROTO, struct.pack(">I", number)) + attribute(
        _COMPAT_FLAGS, struct.pack(">I", flags)
    )


def _verdict(content: bytes, parts: Attributes, bound: Mapping[str, int]) -> tuple[bytes, str]:
    """Return an immediate expression with its anonymous chain by id, and that chain's name."""
    data = attributes(parts.get(_IMMEDIATE_DATA, b""))
    verdict = attributes(data.get(_DATA_VERDICT, b""))
    chain = text(verdict, _VERDICT_CHAIN)
    if chain not in bound:
        return content, ""
    made = attribute(_VERDICT_CODE, verdict[_VERDICT_CODE]) + attribute(
        _VERDICT_CHAIN_ID, struct.pack(">I", bound[chain])
    )
    register = attribute(_IMMEDIATE_DREG, parts[_IMMEDIATE_DREG])
    return register + nested(_IMMEDIATE_DATA, [nested(_DATA_VERDICT, [made])]), chain


def _translated_data(data: bytes, place: Place) -> bytes:
    """Return a value with the index of an interface translated to the destination's."""
    value = attributes(data).get(_DATA_VALUE, b"")
    if len(value) != 4:
        return data
    return attribute(_DATA_VALUE, struct.pack("=I", own_index(place, *struct.unpack("=I", value))))


def own_index(place: Place, index: int) -> int:
    """Return an interface's index at the destination; loopback has 1 everywhere. A missing
    interface gets a number that no interface has."""
    if index <= 1 or place.devices is None:
        return index
    return place.indices.get(index, _NO_SUCH_INDEX | index)


def _with_own_ipset(content: bytes, parts: Attributes, place: Place) -> bytes:
    """Translate a match or target of iptables, which names ipsets by their index."""
    name, revision = text(parts, 1), _number(parts.get(2, b""))
    info = xtables.with_ipsets(name, revision, parts.get(3, b""), place.ipsets)
    if info == parts.get(3, b""):
        return content
    return _encoded_bytes({**parts, 3: info})


def _expression(name: str, content: bytes) -> bytes:
    made = attribute(_EXPRESSION_NAME, name)
    # Some have no data, such as `masq` without ports.
    return made + nested(_EXPRESSION_DATA, [content])


def _stateful(expression: bytes) -> tuple[bytes, bytes]:
    """Return an expression, and the same without its counters."""
    found = attributes(expression)
    name = text(found, _EXPRESSION_NAME)
    if name not in _STATEFUL:
        return expression, expression
    content, key = _STATEFUL[name](found.get(_EXPRESSION_DATA, b""))
    return _expression(name, content), _expression(name, key)


def _each_stateful(data: bytes) -> tuple[bytes, bytes]:
    found = [_stateful(expression) for _, expression in each(data)]
    content, key = zip(*found, strict=True) if found else ((), ())
    return (
        b"".join(nested(_LIST_ELEMENT, [one]) for one in content),
        b"".join(nested(_LIST_ELEMENT, [one]) for one in key),
    )


def _quota(content: bytes) -> tuple[bytes, bytes]:
    """Remove the state of a quota: the kernel reports whether it is used up, refuses that in a
    request, and finds it out by itself."""
    found = attributes(content)
    flags = _number(found.get(_QUOTA_FLAGS, b"")) & _QUOTA_F_INV
    found[_QUOTA_FLAGS] = struct.pack(">I", flags)
    key = {kind: value for kind, value in found.items() if kind != _QUOTA_CONSUMED}
    return _encoded_bytes(found), _encoded_bytes(key)


def _counted(content: bytes) -> tuple[bytes, bytes]:
    return content, b""


def _dynset(content: bytes) -> tuple[bytes, bytes]:
    """Repair a dynset, which adds elements with expressions. The kernel reports the expressions
    with their counters, and does not report that there are several (net/netfilter/nft_dynset.c:
    nft_dynset_dump). It reports a missing timeout as 0, and accepts that only for sets whose
    elements can have one."""
    kept = parts = attributes(content)
    if not _number(parts.get(_DYNSET_TIMEOUT, b"")):
        kept.pop(_DYNSET_TIMEOUT, None)
    key = {**kept}
    if _DYNSET_EXPR in parts:
        kept[_DYNSET_EXPR], key[_DYNSET_EXPR] = _stateful(parts[_DYNSET_EXPR])
    if _DYNSET_EXPRESSIONS in parts:
        several = _each_stateful(parts[_DYNSET_EXPRESSIONS])
        kept[_DYNSET_EXPRESSIONS], key[_DYNSET_EXPRESSIONS] = several
        flags = _number(parts.get(_DYNSET_FLAGS, b"")) | _DYNSET_F_EXPR
        kept[_DYNSET_FLAGS] = struct.pack(">I", flags)
    return _encoded_bytes(kept), _encoded_bytes(key)


def _option(parts: Attributes) -> bytes:
    """Remove from an expression that sets or strips an option of TCP what the kernel reports and
    refuses (net/netfilter/nft_exthdr.c: nft_exthdr_tcp_set_init, nft_exthdr_tcp_strip_init)."""
    surplus: tuple[int, ...] = ()
    if _EXTHDR_SREG in parts:
        surplus = (_EXTHDR_FLAGS,)
    elif _EXTHDR_DREG not in parts:
        surplus = (_EXTHDR_OFFSET, _EXTHDR_LEN, _EXTHDR_FLAGS)
    return _encoded_bytes({kind: value for kind, value in parts.items() if kind not in surplus})


_STATEFUL: dict[str, Callable[[bytes], tuple[bytes, bytes]]] = {
    "counter": _counted,
    "dynset": _dynset,
    "last": _counted,
    "quota": _quota,
}


def _element(data: bytes) -> tuple[bytes, bytes]:
    """Return an element, and the same without what time and packets change."""
    kept, key = [], []
    for flagged, value in each(data):
        kind = flagged & NLA_TYPE_MASK
        if kind == _ELEMENT_PAD:
            continue
        without = value
        if kind == _ELEMENT_EXPR:
            value, without = _stateful(value)
        elif kind == _ELEMENT_EXPRESSIONS:
            value, without = _each_stateful(value)
        kept.append(attribute(flagged, value))
        if kind != _ELEMENT_EXPIRATION:
            key.append(attribute(flagged, without))
    return b"".join(kept), b"".join(key)


def _place_in_interval_set(element: bytes) -> tuple[bytes, bool]:
    """Return the key that sorts from low to high. If one interval ends where another begins, the
    end comes first."""
    found = attributes(element)
    key = attributes(found.get(_ELEMENT_KEY, b"")).get(_DATA_VALUE, b"")
    return key, not _number(found.get(_ELEMENT_FLAGS, b"")) & _ELEMENT_F_END


def _encoded(found: Mapping[int, bytes]) -> list[bytes]:
    return [attribute(kind, value) for kind, value in found.items()]


def _encoded_bytes(found: Mapping[int, bytes]) -> bytes:
    return b"".join(_encoded(found))


def _named(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes) -> int:
    """Return a number, which nf_tables writes in network byte order."""
    return int.from_bytes(value, "big")


def _kind(message: int) -> int:
    return nfnetlink.NFTABLES << 8 | message
