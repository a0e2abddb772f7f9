"""ipsets of one network namespace, as data from which the same sets are made in another one.

They are read and made by netlink (include/uapi/linux/netfilter/ipset/ip_set.h). Elements and
settings stay in the kernel's encoding.
"""

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tapwright.linux import nfnetlink
from tapwright.linux.netlink import (
    NLA_F_NESTED,
    NLA_F_NET_BYTEORDER,
    NLA_TYPE_MASK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Attributes,
    Netlink,
    NetlinkError,
    NetlinkRequest,
    attribute,
    attributes,
    each,
    nested,
    text,
)

MOST_BYTES = 16 << 20
"""The limit for all sets of a namespace together, in the kernel's encoding."""

_CREATE, _DESTROY, _SWAP, _LIST, _ADD, _GET_BYNAME = 2, 3, 6, 7, 9, 14
_PROTOCOL, _NAME, _TYPE, _REVISION, _FAMILY, _DATA, _ADT, _LINE = 1, 2, 3, 4, 5, 7, 8, 9
_TYPE_NAME = 3  # also the second name in a request with two
_INDEX = 11
_VERSIONS = 7, 6
# Attributes of a set's settings that report its state: size in memory, references, elements.
_STATE = (24, 25, 26)
_TIMEOUT, _BYTES, _PACKETS = 6, 24, 25  # of an element
_LIST_OF_SETS = "list:set"
_BATCH_BYTES = 16 << 10
_NO_SUCH_TYPE, _EXISTS = 4098, 4103  # IPSET_ERR_FIND_TYPE, IPSET_ERR_EXIST
_REASONS = {
    4097: "it does not speak this protocol",
    _NO_SUCH_TYPE: "it has no such type of set",
    4099: "there are too many sets",
    4100: "the set is in use",
    4102: "a set of that name is of another type",
}


class Set(NamedTuple):
    """A set: its type and settings, and its elements in the kernel's encoding. `number` is the
    index by which rules name it."""

    name: str
    kind: str
    revision: int
    family: int
    settings: bytes
    elements: tuple[bytes, ...]
    number: int = 0

    @property
    def key(self) -> object:
        """Return a key that is equal for sets that do the same: without what time and packets
        change in the elements."""
        return self[:5], frozenset(map(_lasting, self.elements))

    def __str__(self) -> str:
        return f"ipset {self.name}"


def read(nl: Netlink) -> list[Set]:
    """Return the namespace's sets; sets that are members of others come before these. Raises
    NetlinkError: EMSGSIZE if there is more than MOST_BYTES."""
    found: dict[str, Set] = {}
    asked = nfnetlink.header(0) + _version(_VERSIONS[0])
    for body in nl.dump("read the ipsets", _kind(_LIST), asked, MOST_BYTES):
        parts = attributes(body, 4)
        name = text(parts, _NAME)
        elements = tuple(_taken(element) for _, element in each(parts.get(_ADT, b"")))
        if _TYPE in parts:
            found[name] = Set(
                name,
                text(parts, _TYPE),
                parts[_REVISION][0],
                parts[_FAMILY][0],
                _settings(parts),
                elements,
                int.from_bytes(parts.get(_INDEX, b"\xff\xff"), "big"),
            )
        elif before := found.get(name):
            found[name] = before._replace(elements=before.elements + elements)
    return sorted(found.values(), key=lambda one: one.kind == _LIST_OF_SETS)


def put(nl: Netlink, wanted: Set) -> int:
    """Give a set the wanted content, in one step for the rules that use it; return its index here.

    An older kernel may have an earlier revision of the set's type. Raises NetlinkError.
    """
    passing = wanted._replace(name=f"{wanted.name[:24]}%tw")
    _remove(nl, passing.name)
    _create(nl, passing)
    try:
        _fill(nl, passing)
        try:
            _create(nl, wanted)
        except NetlinkError as error:
            if error.errno not in (errno.EEXIST, _EXISTS):
                raise
        two = _named(passing.name) + attribute(_TYPE_NAME, wanted.name)
        _request(nl, f"ipset {wanted.name}", _SWAP, two)
    finally:
        _remove(nl, passing.name)
    return index_of(nl, wanted.name)


def remove(nl: Netlink, name: str) -> None:
    """Remove a set, if it exists. Raises NetlinkError when it is in use."""
    try:
        _request(nl, f"remove ipset {name}", _DESTROY, _named(name))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise


def index_of(nl: Netlink, name: str) -> int:
    """Return the index by which rules name a set. Raises NetlinkError."""
    payload = nfnetlink.header(0) + _version(_VERSIONS[0]) + attribute(_NAME, name)
    answer = attributes(nl.get(f"find ipset {name}", _kind(_GET_BYNAME), payload), 4)
    return int.from_bytes(answer.get(_INDEX, b"\xff\xff"), "big")


def _remove(nl: Netlink, name: str) -> None:
    with contextlib.suppress(NetlinkError):  # a process that died has left it
        remove(nl, name)


def _create(nl: Netlink, wanted: Set) -> None:
    for revision in range(wanted.revision, -1, -1):
        payload = b"".join(
            (
                _named(wanted.name),
                attribute(_TYPE, wanted.kind),
                attribute(_REVISION, bytes([revision])),
                attribute(_FAMILY, bytes([wanted.family])),
                nested(_DATA, [wanted.settings]),
            )
        )
        try:
            _request(nl, str(wanted), _CREATE, payload, NLM_F_CREATE | NLM_F_EXCL)
        except NetlinkError as error:
            if error.errno != _NO_SUCH_TYPE or not revision:
                raise
        else:
            return


def _fill(nl: Netlink, wanted: Set) -> None:
    for part in _parts(wanted.elements):
        elements = nested(_ADT, [nested(_DATA, [element]) for element in part])
        payload = _named(wanted.name) + attribute(_LINE, struct.pack("=I", 1)) + elements
        _request(nl, f"elements of {wanted}", _ADD, payload)


def _request(nl: Netlink, operation: str, command: int, payload: bytes, flags: int = 0) -> None:
    message = nfnetlink.header(socket.AF_INET) + payload
    (refused,) = nl.request_many([NetlinkRequest(operation, _kind(command), message, flags)])
    if refused is None:
        return
    known = _REASONS.get(refused.errno or 0)
    raise NetlinkError(refused.errno or 0, operation, known or "") if known else refused


def _parts(elements: Iterable[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for element in elements:
        if part and size + len(element) > _BATCH_BYTES:
            yield part
            part, size = [], 0
        part.append(element)
        size += len(element) + 4
    if part:
        yield part


def _settings(parts: Attributes) -> bytes:
    found = each(_taken(parts.get(_DATA, b"")))
    return b"".join(attribute(k, v) for k, v in found if k & NLA_TYPE_MASK not in _STATE)


def _taken(data: bytes) -> bytes:
    """Return settings, or an element, as the kernel accepts them: an address needs its byte order,
    which the kernel's own message leaves out."""
    return b"".join(
        nested(kind & NLA_TYPE_MASK, [_address(value)])
        if kind & NLA_F_NESTED
        else attribute(kind, value)
        for kind, value in each(data)
    )


def _address(data: bytes) -> bytes:
    return b"".join(attribute(kind | NLA_F_NET_BYTEORDER, value) for kind, value in each(data))


def _lasting(element: bytes) -> bytes:
    state = (_TIMEOUT, _BYTES, _PACKETS)
    return b"".join(attribute(k, v) for k, v in each(element) if k & NLA_TYPE_MASK not in state)


def _named(name: str) -> bytes:
    return _version(_VERSIONS[1]) + attribute(_NAME, name)


def _version(number: int) -> bytes:
    return attribute(_PROTOCOL, bytes([number]))


def _kind(command: int) -> int:
    return nfnetlink.IPSET << 8 | command
