"""As much of protobuf's wire format as the CRI needs (protobuf.dev, "Encoding").

A message is a dict from field numbers to values: text, bytes, whole numbers that are not negative,
messages, and lists of these for repeated fields. Maps are repeated messages {1: key, 2: value}.
"""

from collections.abc import Iterator
from typing import Any

Message = dict[int, Any]
_VARINT, _LENGTH = 0, 2


def encode(message: Message) -> bytes:
    return b"".join(
        _field(number, value)
        for number, values in message.items()
        for value in (values if isinstance(values, list) else [values])
    )


def decode(data: bytes) -> dict[int, list[Any]]:
    """The values of each field: numbers, or bytes, which may be a message's."""
    found: dict[int, list[Any]] = {}
    source = iter(data)
    for key in source:
        number, kind = divmod(_varint(source, key), 8)
        value: Any = _varint(source, next(source))
        if kind == _LENGTH:
            value = bytes(next(source) for _ in range(value))
        elif kind != _VARINT:
            raise ValueError(f"field {number} has wire type {kind}, which the CRI does not use")
        found.setdefault(number, []).append(value)
    return found


def _field(number: int, value: Any) -> bytes:
    if isinstance(value, int):
        return _number(number * 8 + _VARINT) + _number(value)
    if isinstance(value, dict):
        value = encode(value)
    content = value.encode() if isinstance(value, str) else value
    return _number(number * 8 + _LENGTH) + _number(len(content)) + content


def _number(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _varint(source: Iterator[int], first: int) -> int:
    value, shift, digit = first & 0x7F, 7, first
    while digit & 0x80:
        digit = next(source)
        value |= (digit & 0x7F) << shift
        shift += 7
    return value
