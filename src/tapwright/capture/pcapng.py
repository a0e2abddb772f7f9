"""Writes pcapng, the format of Wireshark's files (draft-ietf-opsawg-pcapng; https://pcapng.com).

A file has a section header, an interface for each point, packets with nanoseconds and directions,
and at the end the received and dropped packets of each point.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tapwright.capture import listening

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER, _VERSION, _ANY_LENGTH = 0x1A2B3C4D, (1, 0), -1
_ETHERNET, _NO_LIMIT = 1, 0  # LINKTYPE_ETHERNET; a SnapLen
_BILLIONTH = b"\x09"  # if_tsresol: 10^-9

_END, _COMMENT = 0, 1
_SHB_APPLICATION = 4
_IF_NAME, _IF_DESCRIPTION, _IF_MAC, _IF_RESOLUTION, _IF_FILTER = 2, 3, 6, 9, 11
_EPB_FLAGS = 2
_ISB_START, _ISB_END, _ISB_RECEIVED, _ISB_DROPPED, _ISB_DELIVERED = 2, 3, 4, 5, 8

_BLOCK = struct.Struct("<II")
_OPTION = struct.Struct("<HH")
_OF_SECTION = struct.Struct("<IHHq")
_OF_INTERFACE = struct.Struct("<HHI")
_OF_PACKET = struct.Struct("<IIIII")

_INBOUND, _OUTBOUND = 1, 2
_UNICAST, _MULTICAST, _BROADCAST, _PROMISCUOUS = 1 << 2, 2 << 2, 3 << 2, 4 << 2
_FLAGS = {
    listening.HOST: _INBOUND | _UNICAST,
    listening.BROADCAST: _INBOUND | _BROADCAST,
    listening.MULTICAST: _INBOUND | _MULTICAST,
    listening.OTHERHOST: _INBOUND | _PROMISCUOUS,
    listening.OUTGOING: _OUTBOUND,
}
"""epb_flags: direction and reception type."""

_LAST_MOMENT = 2**63 - 1
STATISTICS_BYTES = 88
"""The length of a block of statistics."""


@dataclass(frozen=True)
class Interface:
    """An interface of the file; `mac` is its MAC address, empty if it is not known."""

    name: str
    description: str
    mac: str = ""


class Writer:
    """Writes to `write`, which must write all bytes that it gets. `size` is the number of bytes so
    far."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self.size = 0

    def begin(
        self, application: str, comment: str, interfaces: Sequence[Interface], expression: str = ""
    ) -> None:
        """Write the section's header, and all interfaces; packets name an interface by its
        number."""
        options = _option(_COMMENT, comment) + _option(_SHB_APPLICATION, application)
        head = _OF_SECTION.pack(_BYTE_ORDER, *_VERSION, _ANY_LENGTH)
        self._block(_SECTION, head + options + _option(_END))
        for interface in interfaces:
            options = _option(_IF_NAME, interface.name)
            options += _option(_IF_DESCRIPTION, interface.description)
            if interface.mac:
                options += _option(_IF_MAC, bytes.fromhex(interface.mac.replace(":", "")))
            options += _option(_IF_RESOLUTION, _BILLIONTH)
            if expression:
                options += _option(_IF_FILTER, b"\0" + expression.encode())
            head = _OF_INTERFACE.pack(_ETHERNET, 0, _NO_LIMIT)
            self._block(_INTERFACE, head + options + _option(_END))

    def packet(self, interface: int, moment: int, where: int, length: int, data: bytes) -> None:
        """Write a packet. `moment` is in nanoseconds since the epoch, `where` is the direction as
        in `listening`."""
        self._block(_PACKET, _packet(interface, moment, where, length, data))

    def statistics(
        self, interface: int, moments: tuple[int, int], received: int, dropped: int, written: int
    ) -> None:
        """Write the counters of an interface for the time between two moments."""
        first, last = map(_time, moments)
        options = _option(_ISB_START, first) + _option(_ISB_END, last)
        for kind, count in (
            (_ISB_RECEIVED, received),
            (_ISB_DROPPED, dropped),
            (_ISB_DELIVERED, written),
        ):
            options += _option(kind, struct.pack("<Q", count))
        head = struct.pack("<I", interface) + last
        self._block(_STATISTICS, head + options + _option(_END))

    def _block(self, kind: int, body: bytes) -> None:
        length = _BLOCK.size + len(body) + 4
        self._write(_BLOCK.pack(kind, length) + body + struct.pack("<I", length))
        self.size += length


def size_of(data: bytes) -> int:
    """Return how many bytes of the file a packet takes."""
    # The header and length of the block, the packet's header, flags and the end of the options.
    return _BLOCK.size + 4 + _OF_PACKET.size + len(data) + -len(data) % 4 + 8 + 4


def _packet(interface: int, moment: int, where: int, length: int, data: bytes) -> bytes:
    flags = _option(_EPB_FLAGS, struct.pack("<I", _FLAGS.get(where, 0)))
    high, low = struct.unpack("<II", _time(moment))
    head = _OF_PACKET.pack(interface, high, low, len(data), length)
    return head + _padded(data) + flags + _option(_END)


def _time(moment: int) -> bytes:
    """Return a time; in all blocks, the upper half comes first."""
    moment = min(max(moment, 0), _LAST_MOMENT)
    return struct.pack("<II", moment >> 32, moment & 0xFFFFFFFF)


def _option(kind: int, value: bytes | str = b"") -> bytes:
    if isinstance(value, str):
        value = value.encode()
    return _OPTION.pack(kind, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
