"""Two runs of the checks, field by field, and what is known to differ."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.programs.checks.frame import ENDED as ENDED

_MISSING = "missing"
_LONG = 20
"""Lists longer than this are compared entry by entry."""


class Difference(NamedTuple):
    """`field` is the check, and what was tried there."""

    field: str
    runc: str
    tapwright: str

    def __str__(self) -> str:
        return f"{self.field}: runc {self.runc!r}, Tapwright {self.tapwright!r}"


Kernel = tuple[int, int]
"""A version of Linux: 6.12 is (6, 12)."""


class Known(NamedTuple):
    """Fields in which Tapwright has something else (two regular expressions), and what that is
    about. It is so with guests' kernels that are older than `until`, and hosts' from `since` on."""

    fields: str
    tapwright: str
    what: str
    until: Kernel | None = None
    since: Kernel = (0, 0)

    def holds(self, host: Kernel, guest: Kernel) -> bool:
        return host >= self.since and (self.until is None or guest < self.until)

    def covers(self, difference: Difference) -> bool:
        return bool(
            re.fullmatch(self.fields, difference.field)
            and re.fullmatch(self.tapwright, difference.tapwright)
        )


def differences(runc: Mapping[str, Any], tapwright: Mapping[str, Any]) -> list[Difference]:
    """Of the outcomes of checks, by their names; in their order."""
    found: list[Difference] = []
    for check in dict.fromkeys([*runc, *tapwright]):
        _compare(check, runc.get(check, _MISSING), tapwright.get(check, _MISSING), found)
    return found


def unexpected(found: Sequence[Difference], known: Sequence[Known]) -> list[str]:
    """A line for each difference that is not a known one, and for each known one that is none."""
    lines = [str(each) for each in found if not any(entry.covers(each) for entry in known)]
    gone = [entry for entry in known if not any(entry.covers(each) for each in found)]
    return [*lines, *(f"{entry.what}: does not differ any more" for entry in gone)]


def kernel(release: str) -> Kernel:
    """Of what `uname -r` prints."""
    major, minor = re.split(r"[.-]", release)[:2]
    return int(major), int(minor)


def _compare(field: str, ours: Any, theirs: Any, found: list[Difference]) -> None:
    if ours == theirs:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict) and ENDED not in {*ours, *theirs}:
        for key in dict.fromkeys([*ours, *theirs]):
            _compare(f"{field}: {key}", ours.get(key, _MISSING), theirs.get(key, _MISSING), found)
    elif _is_long(ours) and _is_long(theirs):
        for number, pair in enumerate(zip(ours, theirs, strict=False)):
            _compare(f"{field}: {number}", *pair, found)
        if len(ours) != len(theirs):
            found.append(Difference(f"{field}: length", str(len(ours)), str(len(theirs))))
    else:
        found.append(Difference(field, _text(ours), _text(theirs)))


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > _LONG


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get(ENDED, f"{len(value)} results"))
    return value if isinstance(value, str) else json.dumps(value)
