"""The users as which QEMU runs: numbers that no account has, one for each sandbox.

A sandbox's number is the first of a range plus the pid of its supervisor, which is below 2^22
(proc(5), pid_max). So no two living sandboxes share a number, and no QEMU can reach another's
processes. By default, no tool gives accounts numbers of these ranges. They are above those that
SSSD takes for accounts of directories (200000 to 2000200000: sssd.conf(5), ldap_idmap_range_max)
and FreeIPA from the same, above those of systemd's containers (524288 to 1879048191), below its
foreign ones (2147352576 on: systemd's docs/UIDS-GIDS.md), and below those that podman has for
containers by its manual (2147483647 on: podman-run(1), --userns=auto).

If a file of this host has an account, or subordinate ids, in a range nevertheless, the next range
is used.
"""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

_PIDS = 1 << 22
_RANGES = tuple(range(0x78000000, 0x7F000000, 0x1000000))
_BEFORE = 0x70000000
"""The range of earlier versions, whose sandboxes may still run."""

_ACCOUNTS, _SUBORDINATE = ("passwd", "group"), ("subuid", "subgid")
_NUMBERS = re.compile(rb":(\d{10})(?=[:\n])")
_COUNTED = re.compile(rb"^[^:\n]*:(\d+):(\d+)\s*$", re.MULTILINE)


def of(supervisor: int) -> int:
    """Return the number of the user, and of the group, of QEMU below the supervisor of that pid."""
    return first() + supervisor


def all_of(supervisor: int) -> list[int]:
    """Return the numbers that a running QEMU may have, whatever version started it."""
    return [base + supervisor for base in (*_RANGES, _BEFORE)]


@functools.cache
def first(directory: Path = Path("/etc")) -> int:
    """Return the first number of the range that this host uses. `directory` has the files of
    accounts (passwd(5), group(5), subuid(5), subgid(5)). If no range is free, it is the first
    range's."""
    taken = list(_taken(directory))
    free = (base for base in _RANGES if not any(_overlap(base, *each) for each in taken))
    return next(free, _RANGES[0])


def owners(directory: Path = Path("/etc")) -> list[str]:
    """Return the files of this host that have numbers of the first range."""
    return [
        str(directory / name)
        for name in (*_ACCOUNTS, *_SUBORDINATE)
        if any(_overlap(_RANGES[0], *each) for each in _numbers(directory, name))
    ]


def last() -> int:
    """Return the last number of the range that this host uses."""
    return first() + _PIDS - 1


def _overlap(base: int, start: int, count: int) -> bool:
    return start < base + _PIDS and base < start + count


def _taken(directory: Path) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of the numbers of accounts."""
    for name in (*_ACCOUNTS, *_SUBORDINATE):
        yield from _numbers(directory, name)


def _numbers(directory: Path, name: str) -> Iterator[tuple[int, int]]:
    try:
        with open(os.path.join(directory, name), "rb") as file:
            content = file.read()
    except OSError:
        return  # most hosts have no subgid
    if name in _ACCOUNTS:
        yield from ((int(number), 1) for number in _NUMBERS.findall(content))
    else:
        yield from ((int(start), int(count)) for start, count in _COUNTED.findall(content))
