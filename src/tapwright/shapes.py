"""Checks that data from a file has the expected types, so that other code can rely on them. The
module imports nothing, because every command is a new process."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Json = dict[str, Any]

NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def fits(value: object, kind: "Any") -> bool:
    """Whether a JSON value has a type, which is written as an annotation: `str`, `list[str]`,
    `dict[str, int]`, `int | None`. A type that JSON lacks fits any value."""
    inner = getattr(kind, "__args__", ())
    origin = getattr(kind, "__origin__", kind)
    if inner and origin in (kind, type(kind)):  # a union; the second since Python 3.14
        return any(fits(value, each) for each in inner)
    if kind is None or kind is type(None):
        return value is None
    if origin is list:
        return isinstance(value, list) and all(fits(each, *inner or (object,)) for each in value)
    if origin is dict:
        of_values = inner[1] if inner else object
        return isinstance(value, dict) and all(fits(each, of_values) for each in value.values())
    if origin in (int, float):
        return type(value) is int or (type(value) is float and origin is float)
    return not isinstance(origin, type) or origin not in NAMES or isinstance(value, origin)


def mistake(content: "Mapping[str, Any]", shape: "Mapping[str, Any]") -> str:
    """Say which key of an object is missing, or has another type than its shape says; empty for a
    valid object. An object may have more keys than its shape."""
    for key, kind in shape.items():
        if key not in content:
            return f"{key} is missing"
        if not fits(content[key], kind):
            return f"{key} must be {_name(kind)}"
    return ""


def _name(kind: "Any") -> str:
    origin = getattr(kind, "__origin__", kind)
    if origin in (kind, type(kind)) and (inner := getattr(kind, "__args__", ())):
        return " or ".join(map(_name, inner))
    return NAMES.get(origin, "null")
