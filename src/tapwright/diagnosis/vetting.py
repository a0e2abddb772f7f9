"""Checks the answer of a hostile guest, part by part. Pure.

Strings of a guest become part of commands that a person runs as root. So an address must be in the
spelling of inet_ntop(3), without a zone (as in fe80::1%eth0). A name has letters, digits and a few
marks that mean nothing to a shell or to nft(8). A number has bounds. Each function returns a valid
part, and raises ValueError for an invalid one.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from tapwright.linux.netlink import pack_address, unpack_address

MOST_TEXT = 300
MOST_ERROR = 4095
"""MAX_ERRNO (include/linux/err.h)."""

_NAME = re.compile(r"[A-Za-z0-9_.:@][A-Za-z0-9_.:@/-]{0,254}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){0,31}")
_SOCKET = re.compile(r"[0-9A-Fa-f]{8}|[0-9A-Fa-f]{32}")

Part = Callable[[Any], Any]


def number(most: int = 2**32 - 1, least: int = 0) -> Part:
    """Take an integer within bounds, both included."""

    def vet(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"a number is not from {least} to {most}")
        return value

    return vet


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is expected, and something else found")
    return value


def name(value: Any) -> str:
    """Check the name of an interface, a table, a chain, a kind or a state."""
    return _matching(_NAME, value, "name")


def mac(value: Any) -> str:
    """Check a link-layer address: of any length, in lower case."""
    return _matching(_MAC, value, "MAC address")


def socket_address(value: Any) -> str:
    """Check the address of a socket in the format of /proc/net/tcp."""
    return _matching(_SOCKET, value, "address of a socket")


def address(value: Any) -> str:
    """Check an IP address, and return it in the kernel's spelling."""
    if not isinstance(value, str) or len(value) > 45 or "%" in value:
        raise ValueError("an IP address is expected, and something else found")
    try:
        return unpack_address(pack_address(value))
    except ValueError:
        raise ValueError("an IP address is expected, and something else found") from None


def network(value: Any) -> str:
    """Check ADDRESS/PREFIX."""
    base, _, length = value.partition("/") if isinstance(value, str) else ("", "", "")
    found = address(base)
    most = 128 if ":" in found else 32
    if not (length.isascii() and length.isdecimal() and len(length) < 4 and int(length) <= most):
        raise ValueError("ADDRESS/PREFIX is expected, and something else found")
    return f"{found}/{int(length)}"


def text(value: Any) -> str:
    """Check a text for people, which is never part of a command: it is short and printable."""
    if not isinstance(value, str) or len(value) > MOST_TEXT or not value.isprintable():
        raise ValueError("a text is too long, or not printable")
    return value


def or_empty(part: Part) -> Part:
    return lambda value: "" if value == "" else part(value)


def each(part: Part, most: int) -> Part:
    """Take a list, and at most `most` of its items."""

    def vet(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError("a list is expected, and something else found")
        return [part(one) for one in value[:most]]

    return vet


def each_that_fits(part: Part, most: int) -> Part:
    """Take a list as `each` does, without its invalid items: even an honest guest may have some."""

    def vet(value: Any) -> list[Any]:
        found = []
        for one in each(lambda inner: inner, most)(value):
            try:
                found.append(part(one))
            except ValueError:
                continue
        return found

    return vet


def entry(shape: Mapping[str, Part], *, lacking: bool = False) -> Part:
    """Build an object anew, with these keys and no others. With `lacking`, keys may be missing."""

    def vet(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("an object is expected, and something else found")
        found = {}
        for key, part in shape.items():
            if key in value:
                found[key] = part(value[key])
            elif not lacking:
                raise ValueError(f"{key} is missing")
        return found

    return vet


def _matching(pattern: re.Pattern[str], value: Any, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"a {what} is expected, and something else found")
    return value
