"""JSON as Go's decoder takes it: UTF-8, no NaN, no bottomless nesting.

Whatever `parse` returns can be written as JSON again and be read by any plugin.
"""

import json

TYPE_CHECKING = False  # `typing` would cost every plugin 3 ms; type checkers know this name
if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_DEPTH = 100


def parse(data: bytes) -> "Any":
    """The value that the bytes stand for. Raises ValueError, which says what is wrong: its
    subclass JSONDecodeError, with line and column, where the text is not JSON."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    _check_depth(value)
    return value


def _refuse(constant: str) -> "NoReturn":
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits} is too large")
    return value


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
