"""The tables of iptables-legacy, ip6tables-legacy and arptables-legacy: reads them in one network
namespace, and replaces them in another.

A socket option reads or replaces a whole table (include/uapi/linux/netfilter_ipv4/ip_tables.h and
its counterparts for IPv6 and ARP, which have the same numbers and the same shape). Rules stay in
the kernel's encoding; only the indices of ipsets in them are translated.

Reading a table makes the kernel set it up; `packet_rules` says which tables exist.
"""

import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tapwright.linux import libc

MOST_BYTES = 16 << 20
"""The limit for one table."""

_INFO, _ENTRIES, _REPLACE, _ADD_COUNTERS = 0, 1, 0, 1  # added to the family's base
_NAME_BYTES = 32
_ATTEMPTS = 5
_PART = struct.Struct("=H29sB")  # struct xt_entry_match and xt_entry_target: size, name, revision
_COUNTERS = struct.Struct("=QQ")
_VERDICT_ACCEPT = struct.pack("=i", -2)  # -NF_ACCEPT - 1


class _Kind(NamedTuple):
    """The access to a family's tables, and the shape of their entries: the offset of
    `target_offset`, which `next_offset` follows, that of the counters, and the size of the part
    before the matches."""

    family: int
    level: int
    base: int
    hooks: int
    offsets: int
    counters: int
    size: int

    @property
    def info(self) -> struct.Struct:
        """struct ipt_getinfo: name, valid hooks, hook entries, underflows, entries, bytes."""
        return struct.Struct(f"={_NAME_BYTES}sI{2 * self.hooks}III")

    @property
    def replacement(self) -> struct.Struct:
        """struct ipt_replace: as ipt_getinfo, then the number of old counters and their address."""
        return struct.Struct(f"={_NAME_BYTES}sIII{2 * self.hooks}IIQ")


_KINDS = {
    "ip": _Kind(socket.AF_INET, 0, 64, 5, 88, 96, 112),
    "ip6": _Kind(socket.AF_INET6, 41, 64, 5, 140, 152, 168),
    "arp": _Kind(socket.AF_INET, 0, 96, 3, 164, 176, 192),
}
PROGRAMS = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy", "arp": "arptables-legacy"}
MODULES = {"ip": "ip_tables", "ip6": "ip6_tables", "arp": "arp_tables"}
"""The module with a family's tables; the kernel never loads it by itself."""


class Table(NamedTuple):
    """A table. `hooks` has the valid ones (a mask), the start of each, and the place of its policy.
    `counters` has two numbers of 64 bits for each entry. Two tables with the same hooks and entries
    do the same."""

    family: str
    name: str
    hooks: tuple[int, ...]
    number: int
    entries: bytes
    counters: bytes

    @property
    def is_untouched(self) -> bool:
        """Whether the table has no rules and no chains of its own, and accepts everything."""
        if self.number > self.hooks[0].bit_count() + 1:
            return False
        *policies, _ = (
            self.entries[start + target + _PART.size :][: len(_VERDICT_ACCEPT)]
            for start, target, _ in _each_entry(_KINDS[self.family], self.entries)
        )
        return all(policy == _VERDICT_ACCEPT for policy in policies)

    @property
    def key(self) -> bytes:
        """Everything but the counters."""
        return repr(self.hooks).encode() + self.entries

    def __str__(self) -> str:
        return f"table {self.name} of {PROGRAMS[self.family]}"

    def with_ipsets(self, indices: Mapping[int, int]) -> "Table":
        """Return the table for a place where ipsets have other indices."""
        made = bytearray(self.entries)
        kind = _KINDS[self.family]
        for start, target, end in _each_entry(kind, self.entries):
            offset = start + kind.size
            while offset + _PART.size <= start + end:
                size, name, revision = _PART.unpack_from(made, offset)
                if size < _PART.size:
                    break
                data = offset + _PART.size
                own = with_ipsets(_text(name), revision, bytes(made[data : offset + size]), indices)
                made[data : offset + size] = own
                offset = (
                    start + target if offset < start + target < offset + size else offset + size
                )
        return self._replace(entries=bytes(made))


def read(family: str, name: str) -> Table:
    """Return a table of the thread's namespace. Raises OSError: EMSGSIZE for more than MOST_BYTES,
    EAGAIN if the table kept changing meanwhile."""
    kind = _KINDS[family]
    with _opened(kind) as connection:
        for _ in range(_ATTEMPTS):
            _, *hooks, number, size = _info(connection, kind, name)
            if size > MOST_BYTES:
                raise OSError(errno.EMSGSIZE, f"more than {MOST_BYTES} bytes", name)
            # struct ipt_get_entries: aligned to 8 bytes.
            asked = struct.pack(f"={_NAME_BYTES}sI4x", name.encode(), size) + bytes(size)
            try:
                answer = libc.getsockopt(
                    connection.fileno(), kind.level, kind.base + _ENTRIES, asked
                )
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINVAL):
                    raise
                continue  # its size has changed meanwhile
            return _table(kind, family, name, tuple(hooks), number, answer[_NAME_BYTES + 8 :])
    raise OSError(errno.EAGAIN, "it changed again and again while it was read", name)


def replace(table: Table) -> None:
    """Replace a table of the thread's namespace by this one. Raises OSError: ENOENT if the kernel
    lacks a match or target that the table names."""
    kind = _KINDS[table.family]
    name = table.name.encode()
    with _opened(kind) as connection:
        for _ in range(_ATTEMPTS):
            *_, old, _ = _info(connection, kind, table.name)
            room = bytearray(old * _COUNTERS.size)
            with libc.address_of(room) as place:
                valid, *hooks = table.hooks
                head = kind.replacement.pack(
                    *(name, valid, table.number, len(table.entries)),
                    *(*hooks, old, place),
                )
                try:
                    connection.setsockopt(kind.level, kind.base + _REPLACE, head + table.entries)
                except BlockingIOError:
                    continue  # another process has changed it
                break
        else:
            raise OSError(errno.EAGAIN, "it changed again and again", table.name)
        head = struct.pack(f"={_NAME_BYTES}sI4x", name, table.number)
        connection.setsockopt(kind.level, kind.base + _ADD_COUNTERS, head + table.counters)


def with_ipsets(name: str, revision: int, info: bytes, indices: Mapping[int, int]) -> bytes:
    """Return the data of the match `set` or the target `SET` of iptables, with the indices of other
    ipsets (include/uapi/linux/netfilter/xt_set.h: struct xt_set_info has 4 bytes, its index
    first)."""
    offsets: tuple[int, ...] = ()
    if name == "set":
        offsets = (0,)
    elif name == "SET" and revision:
        offsets = (0, 4, 8) if revision >= 3 else (0, 4)
    made = bytearray(info)
    for offset in offsets:
        if offset + 2 <= len(made):
            (index,) = struct.unpack_from("=H", made, offset)
            struct.pack_into("=H", made, offset, indices.get(index, NO_IPSET))
    return bytes(made)


NO_IPSET = 0xFFFF
"""The index of no set; the kernel refuses it if there must be one."""


def _opened(kind: _Kind) -> socket.socket:
    return socket.socket(kind.family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)


def _info(connection: socket.socket, kind: _Kind, name: str) -> tuple[int, ...]:
    asked = name.encode().ljust(kind.info.size, b"\0")
    answer = libc.getsockopt(connection.fileno(), kind.level, kind.base + _INFO, asked)
    found: tuple[int, ...] = kind.info.unpack(answer)
    return found


def _table(
    kind: _Kind, family: str, name: str, hooks: tuple[int, ...], number: int, entries: bytes
) -> Table:
    made = bytearray(entries)
    counters = []
    for start, _, _ in _each_entry(kind, entries):
        offset = start + kind.counters
        counters.append(entries[offset : offset + _COUNTERS.size])
        made[offset : offset + _COUNTERS.size] = bytes(_COUNTERS.size)
        # The kernel's mark from its search for loops is cleared.
        struct.pack_into("=I", made, start + kind.offsets + 4, 0)
    return Table(family, name, hooks, number, bytes(made), b"".join(counters))


def _each_entry(kind: _Kind, entries: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (start, offset of the target, offset of the next entry) of each entry."""
    start = 0
    while start + kind.size <= len(entries):
        target, following = struct.unpack_from("=HH", entries, start + kind.offsets)
        if following < kind.size:
            return
        yield start, target, following
        start += following


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode(errors="replace")
