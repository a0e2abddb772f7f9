"""A small rtnetlink client: requests, dumps, attributes, and errors that say what was refused.

Used by the host's supervisor and by the guest's agent alike. Message layouts are those of
include/uapi/linux/netlink.h and rtnetlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_ACK_TLVS = 0x200
NLM_F_CAPPED = 0x100
NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h; not in Python's socket

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_U32_ATTRIBUTE = struct.Struct("=HHI")
_RECEIVE_BYTES = 1 << 17
_DUMP_ATTEMPTS = 10
# Of at most 64 requests that are all refused the answers fit the socket's buffer (a skb each, with
# the kernel's explanation under 2 KiB; net.core.rmem_default is 208 KiB).
_BATCH = 64

Message = tuple[int, bytes]
Attributes = dict[int, bytes]


class NetlinkError(OSError):
    """The kernel refused a request. `errno` is its reason; the message names the operation."""

    def __init__(self, code: int, operation: str, explanation: str = "") -> None:
        reason = os.strerror(code)
        if explanation:
            reason = f"{reason}: {explanation}"
        super().__init__(code, f"{operation}: {reason}")
        self.operation = operation


class Request(NamedTuple):
    """One change that is asked of the kernel; `operation` names it for the reader of an error."""

    operation: str
    kind: int
    payload: bytes
    flags: int = 0


class Netlink:
    """One rtnetlink socket, bound to the network namespace of the thread that opens it.

    `groups` is a bit mask of the multicast groups to listen to (RTMGRP_*), `receive_bytes` the room
    for messages of theirs, 0 for the kernel's choice. Not thread-safe.
    """

    def __init__(self, groups: int = 0, receive_bytes: int = 0) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        if receive_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
        self._socket.bind((0, groups))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, operation: str, kind: int, payload: bytes, flags: int = 0) -> None:
        """Send one request and wait for the kernel's acknowledgement.

        Raises NetlinkError when it is refused; `operation` names it for the reader of the error.
        """
        (refusal,) = self.request_many([Request(operation, kind, payload, flags)])
        if refusal:
            raise refusal

    def request_many(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        """Have the kernel do all requests in their order, each whatever became of those before;
        return for each None, or why it was refused. Many go in one message, so that it is quick."""
        found: list[NetlinkError | None] = []
        for start in range(0, len(requests), _BATCH):
            found += self._batch(requests[start : start + _BATCH])
        return found

    def get(self, operation: str, kind: int, payload: bytes) -> bytes:
        """Send a request that is answered by exactly one object; return the object."""
        self._send(kind, payload, NLM_F_ACK)
        answers = [body for _, body in self._replies(operation)]
        if not answers:
            raise NetlinkError(errno.ENODATA, operation)
        return answers[0]

    def dump(self, operation: str, kind: int, payload: bytes) -> list[bytes]:
        """Return all objects of a kind, from one consistent walk of the kernel's tables.

        A walk that a concurrent change interrupted (NLM_F_DUMP_INTR) is begun again.
        """
        for _ in range(_DUMP_ATTEMPTS):
            self._send(kind, payload, NLM_F_DUMP)
            try:
                return [body for _, body in self._replies(operation)]
            except InterruptedError:
                continue
        raise NetlinkError(errno.EBUSY, operation, "the table kept changing while it was read")

    def notifications(self) -> list[Message]:
        """Return the multicast messages that wait in the socket, without blocking.

        Raises OSError(ENOBUFS) when the kernel had to drop some: the caller must look again
        at everything.
        """
        found: list[Message] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found.extend((kind, body) for kind, _, _, body in _messages(data))

    def _send(self, kind: int, payload: bytes, flags: int) -> None:
        self._socket.send(self._message(kind, payload, flags))

    def _message(self, kind: int, payload: bytes, flags: int) -> bytes:
        self._sequence += 1
        length = _HEADER.size + len(payload)
        header = _HEADER.pack(length, kind, flags | NLM_F_REQUEST, self._sequence, 0)
        return header + payload + b"\0" * (-length % 4)

    def _batch(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        """The kernel answers what it refuses, and the last one (netlink_rcv_skb in
        net/netlink/af_netlink.c)."""
        first, last = self._sequence + 1, len(requests) - 1
        self._socket.send(
            b"".join(
                self._message(kind, payload, flags | (NLM_F_ACK if number == last else 0))
                for number, (_, kind, payload, flags) in enumerate(requests)
            )
        )
        found: list[NetlinkError | None] = [None] * len(requests)
        while True:
            for kind, flags, sequence, body in _messages(self._socket.recv(_RECEIVE_BYTES)):
                number = sequence - first
                if kind == NLMSG_ERROR and 0 <= number <= last:
                    found[number] = _refusal(requests[number].operation, flags, body)
                    if number == last:
                        return found

    def _replies(self, operation: str) -> Iterator[Message]:
        interrupted = False
        while True:
            for kind, flags, sequence, body in _messages(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue  # the rest of a dump that was given up
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_ERROR:
                    if refusal := _refusal(operation, flags, body):
                        raise refusal
                    return
                if kind == NLMSG_DONE:
                    if interrupted:
                        raise InterruptedError(errno.EINTR, operation)
                    return
                yield kind, body


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _refusal(operation: str, flags: int, body: bytes) -> NetlinkError | None:
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    explanation = ""
    if flags & NLM_F_ACK_TLVS:
        # struct nlmsgerr: the error, the header of the request, and (unless capped) its payload.
        offset = 4 + _HEADER.size
        if not flags & NLM_F_CAPPED:
            offset = 4 + struct.unpack_from("=I", body, 4)[0]
        text = attributes(body, offset).get(NLMSGERR_ATTR_MSG, b"")
        explanation = text.rstrip(b"\0").decode(errors="replace")
    return NetlinkError(-code, operation, explanation)


def attribute(kind: int, value: bytes | int | str) -> bytes:
    """Encode one attribute: an int as u32, a str with its closing NUL, bytes as they are."""
    if isinstance(value, int):
        return _U32_ATTRIBUTE.pack(_U32_ATTRIBUTE.size, kind, value)
    if isinstance(value, str):
        value = value.encode() + b"\0"
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def nested(kind: int, parts: Iterable[bytes]) -> bytes:
    """Encode an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def attributes(data: bytes, offset: int = 0) -> Attributes:
    """Decode the attributes that begin at `offset`; the last of a kind wins."""
    found: Attributes = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & NLA_TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def u32(found: Attributes, kind: int, default: int = 0) -> int:
    """The u32 attribute `kind`, or the default where the kernel sent none."""
    value = found.get(kind)
    return struct.unpack("=I", value)[0] if value is not None else default


def text(found: Attributes, kind: int) -> str:
    """The string attribute `kind`, empty where the kernel sent none."""
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def family_of(address: str) -> int:
    """AF_INET6 for an address with a colon, else AF_INET."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def pack_address(address: str) -> bytes:
    """The 4 or 16 bytes of an IP address. Raises ValueError when it is none."""
    try:
        return socket.inet_pton(family_of(address), address)
    except OSError:
        raise ValueError(f"{address!r} is not an IP address") from None


def unpack_address(packed: bytes) -> str:
    """The text of a packed IPv4 or IPv6 address."""
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)


def pack_mac(mac: str) -> bytes:
    """The six bytes of a MAC address. Raises ValueError when it is none."""
    try:
        packed = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        packed = b""
    if len(packed) != 6 or mac.count(":") != 5:
        raise ValueError(f"{mac!r} is not a MAC address")
    return packed


def unpack_mac(packed: bytes) -> str:
    return packed.hex(":")


def record(cls: Any, fields: dict[str, Any]) -> Any:
    """Build a NamedTuple from decoded JSON, ignoring fields that a newer peer may send."""
    return cls(**{key: fields[key] for key in cls._fields if key in fields})
