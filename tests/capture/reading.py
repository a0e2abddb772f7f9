"""Reads pcapng, by the draft (draft-ietf-opsawg-pcapng) and not by what writes it."""

import struct
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Packet:
    interface: int
    nanoseconds: int
    length: int
    data: bytes
    flags: int


@dataclass
class Section:
    comment: str = ""
    interfaces: list[dict[int, bytes]] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    statistics: dict[int, dict[int, bytes]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [options[2].decode() for options in self.interfaces]

    def at(self, name: str) -> list[Packet]:
        number = self.names.index(name)
        return [packet for packet in self.packets if packet.interface == number]

    def counts(self, name: str) -> tuple[int, int, int]:
        """(received, dropped, written)."""
        options = self.statistics[self.names.index(name)]
        received, dropped, written = (struct.unpack("<Q", options[kind])[0] for kind in (4, 5, 8))
        return received, dropped, written


def read(data: bytes) -> Section:
    """Insists on whole blocks."""
    section = Section()
    place = 0
    while place < len(data):
        kind, length = struct.unpack_from("<II", data, place)
        assert length % 4 == 0
        assert struct.unpack_from("<I", data, place + length - 4) == (length,)
        body = data[place + 8 : place + length - 4]
        if place == 0:
            assert kind == 0x0A0D0D0A
        _READERS[kind](section, body)
        place += length
    assert place == len(data)
    return section


def _read_section(section: Section, body: bytes) -> None:
    assert struct.unpack_from("<IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
    section.comment = _options(body, 16)[1].decode()


def _read_interface(section: Section, body: bytes) -> None:
    link, _, _ = struct.unpack_from("<HHI", body)
    assert link == 1  # Ethernet
    options = _options(body, 8)
    assert options[9] == b"\x09"  # nanoseconds
    section.interfaces.append(options)


def _read_packet(section: Section, body: bytes) -> None:
    interface, high, low, captured, length = struct.unpack_from("<IIIII", body)
    padded = captured + -captured % 4
    (flags,) = struct.unpack("<I", _options(body, 20 + padded)[2])
    data = body[20 : 20 + captured]
    section.packets.append(Packet(interface, high << 32 | low, length, data, flags))


def _read_statistics(section: Section, body: bytes) -> None:
    (interface,) = struct.unpack_from("<I", body)
    section.statistics[interface] = _options(body, 12)


def _options(body: bytes, place: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while True:
        kind, length = struct.unpack_from("<HH", body, place)
        if kind == 0:
            assert (length, place + 4) == (0, len(body))
            return found
        found[kind] = body[place + 4 : place + 4 + length]
        place += 4 + length + -length % 4


_READERS: dict[int, Any] = {
    0x0A0D0D0A: _read_section,
    1: _read_interface,
    6: _read_packet,
    5: _read_statistics,
}
