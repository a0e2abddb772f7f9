"""Takes a library from a program that can do without.

A guest's processor may be emulated; then loading its libraries takes a program half of its time.
The layout is that of elf(5); that of the versions is in the Linux Standard Base ("Symbol
Versioning").
"""

import struct
from collections.abc import Iterator

from tapwright.errors import ImageError

_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_FILE = struct.Struct("<HHIII")  # Elf64_Verneed
_VERSION = struct.Struct("<IHHII")  # Elf64_Vernaux
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_SYMTAB = 1, 5, 6
_DT_VERSYM, _DT_VERNEED = 0x6FFFFFF0, 0x6FFFFFFE
_STB_WEAK, _SHN_UNDEF = 2, 0


def without(program: bytes, library: str) -> bytes:
    """Return a 64-bit program that does not need a library any more. It lacks the library's
    functions; if it calls one, it crashes. Raises ImageError for what is no such program."""
    try:
        return _without(bytearray(program), library.encode())
    except (struct.error, KeyError, ValueError, StopIteration) as error:
        raise ImageError(f"{library} can't be taken from a program: {error!r}") from None


def _without(data: bytearray, library: bytes) -> bytes:
    (place,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [_SEGMENT.unpack_from(data, place + number * size) for number in range(count)]

    def at(address: int) -> int:
        loaded = (one for one in segments if one[0] == _PT_LOAD)
        found = (one[2] - one[3] for one in loaded if one[3] <= address < one[3] + one[5])
        return address + int(next(found))

    start, length = next((one[2], one[5]) for one in segments if one[0] == _PT_DYNAMIC)
    places = range(start, start + length, _DYNAMIC.size)
    entries = [(place, *_DYNAMIC.unpack_from(data, place)) for place in places]
    tables = {tag: value for _, tag, value in entries}
    texts = at(tables[_DT_STRTAB])

    def text(offset: int) -> bytes:
        return bytes(data[texts + offset : data.index(0, texts + offset)])

    needed = {text(value): (place, value) for place, tag, value in entries if tag == _DT_NEEDED}
    if library not in needed:
        return bytes(data)
    files = list(_files(data, at(tables[_DT_VERNEED])))
    # The needs become those of another library that the program needs in any case.
    other, kept = next((one, all_) for one, all_ in files if text(_name(data, one)) != library)
    place, _ = needed[library]
    _DYNAMIC.pack_into(data, place, _DT_NEEDED, _name(data, other))
    hashed, _, _, name, _ = _VERSION.unpack_from(data, kept[0])
    gone = set[int]()
    for one, versions in files:
        if text(_name(data, one)) == library:
            struct.pack_into("<I", data, one + 4, _name(data, other))
            for version in versions:
                _, flags, number, _, following = _VERSION.unpack_from(data, version)
                _VERSION.pack_into(data, version, hashed, flags, number, name, following)
                gone.add(number)
    # A weak symbol that nothing defines is no error.
    symbols, numbers = at(tables[_DT_SYMTAB]), at(tables[_DT_VERSYM])
    for index in range((texts - symbols) // _SYMBOL.size):
        place = symbols + index * _SYMBOL.size
        _, info, _, section, _, _ = _SYMBOL.unpack_from(data, place)
        (number,) = struct.unpack_from("<H", data, numbers + 2 * index)
        if section == _SHN_UNDEF and number in gone:
            data[place + 4] = _STB_WEAK << 4 | info & 15
    return bytes(data)


def _files(data: bytearray, place: int) -> Iterator[tuple[int, list[int]]]:
    """Yield where the needs of each library are, and where its versions."""
    while True:
        _, count, _, first, following = _FILE.unpack_from(data, place)
        versions = [place + first]
        while len(versions) < count:
            versions.append(versions[-1] + _VERSION.unpack_from(data, versions[-1])[-1])
        yield place, versions
        if not following:
            return
        place += following


def _name(data: bytearray, file: int) -> int:
    """Return the place of a library's name among the texts."""
    return int(_FILE.unpack_from(data, file)[2])
