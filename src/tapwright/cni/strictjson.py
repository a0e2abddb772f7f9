"""Reads JSON like Go's decoder: no NaN, bounded nesting, U+FFFD for bytes that are no UTF-8.

Every plugin can read the values of `parse` when they are written as JSON again. A whole number
becomes an integer, also when the file has 1e3 or 1.0: a plugin in Go accepts no other form for an
integer, and libcni writes integers, too (it decodes to float64 and encodes again: libcni/conf.go,
InjectConf). Unlike in libcni, an integer keeps all its digits.
"""

import json

TYPE_CHECKING = False  # `typing` would cost every plugin 3 ms; type checkers know this name
if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_DEPTH = 100
_WITH_EXPONENT = 1e21


def parse(data: bytes) -> "Any":
    """The value of a JSON text. Raises ValueError with the reason; for a syntax error, its subclass
    JSONDecodeError with line and column."""
    try:
        text = data.decode(errors="replace")
        value = json.loads(text, parse_constant=_refuse, parse_float=_number)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    _check_depth(value)
    return value


def _refuse(constant: str) -> "NoReturn":
    raise ValueError(f"{constant} is not JSON")


def _number(digits: str) -> float | int:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits} is too large")
    # From here on Go writes an exponent, too (encoding/json/encode.go, floatEncoder).
    return int(value) if value.is_integer() and abs(value) < _WITH_EXPONENT else value


def _check_depth(value: "Any") -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
