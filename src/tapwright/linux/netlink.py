"""A small netlink client: requests, dumps, attributes, and errors that say what the kernel refused.

Both the host's supervisor and the guest's agent use it. The message layouts are those of
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
NLA_F_NET_BYTEORDER = 0x4000
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
# The answers to 64 refused requests fit the socket's buffer (a skb each, with the kernel's
# explanation under 2 KiB; net.core.rmem_default is 208 KiB).
_BATCH = 64
_BATCH_BYTES = 32 * 1024

Message = tuple[int, bytes]
Attributes = dict[int, bytes]


class NetlinkError(OSError):
    """The kernel refused a request. `errno` is the reason; the message names the operation."""

    def __init__(self, code: int, operation: str, explanation: str = "") -> None:
        reason = os.strerror(code)
        if explanation:
            reason = f"{reason}: {explanation}"
        super().__init__(code, f"{operation}: {reason}")
        self.operation = operation
        self.explanation = explanation


class NetlinkRequest(NamedTuple):
    """One change for the kernel to make; `operation` names it for the reader of an error."""

    operation: str
    kind: int
    payload: bytes
    flags: int = 0


class Netlink:
    """One netlink socket, bound to the network namespace of the thread that opens it. It speaks
    rtnetlink, unless another `protocol` is named (NETLINK_*).

    `groups` is a bit mask of multicast groups to listen to (RTMGRP_*). `receive_bytes` is the room
    for their messages, 0 for the kernel's choice. Not thread-safe.
    """

    def __init__(
        self, groups: int = 0, receive_bytes: int = 0, protocol: int = socket.NETLINK_ROUTE
    ) -> None:
        self._groups, self._receive_bytes, self._protocol = groups, receive_bytes, protocol
        self._socket = self._opened()
        self._sequence = 0

    def _opened(self) -> socket.socket:
        return opened(self._protocol, self._receive_bytes, self._groups)

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

        Raises NetlinkError when the kernel refuses it; `operation` names it for the reader of the
        error.
        """
        (refused,) = self.request_many([NetlinkRequest(operation, kind, payload, flags)])
        if refused:
            raise refused

    def request_many(self, requests: Sequence[NetlinkRequest]) -> list[NetlinkError | None]:
        """Send all requests, which the kernel does in their order; a failure does not stop the
        later ones. Return for each None, or the reason of its refusal. One message carries many
        requests, which is fast."""
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

    def replay(self, encoded: bytes) -> list[tuple[int, int, str]]:
        """Send encoded requests, which the kernel does one after the other; a failure does not stop
        the later ones. Return (sequence number, errno, explanation) of those that it refused."""
        found: list[tuple[int, int, str]] = []
        data = bytearray(encoded)
        start = offset = count = 0
        while offset < len(data):
            length, kind, flags, number, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                raise ValueError(f"a message of {length} bytes")
            following = offset + ((length + 3) & ~3)
            count += 1
            large = following - start > _BATCH_BYTES
            if count == _BATCH or large or following >= len(data):
                _HEADER.pack_into(data, offset, length, kind, flags | NLM_F_ACK, number, 0)
                self._socket.send(data[start:following])
                found += self._refused(number)
                start, count = following, 0
            offset = following
        return found

    def _refused(self, last: int) -> Iterator[tuple[int, int, str]]:
        """Yield the refusals up to the request with the number `last`, which asks for an
        acknowledgement."""
        while True:
            for kind, flags, number, body in messages(self._socket.recv(_RECEIVE_BYTES)):
                if kind != NLMSG_ERROR:
                    continue
                if refused := refusal("", flags, body):
                    yield number, refused.errno or 0, refused.explanation
                if number == last:
                    return

    def dump(
        self,
        operation: str,
        kind: int,
        payload: bytes,
        most: int = 0,
        at_most: int | None = None,
    ) -> list[bytes]:
        """Return all objects of a kind, from one consistent walk of the kernel's tables. If there
        are more than `at_most`, return one more than that, and stop the walk.

        A walk that a concurrent change interrupted (NLM_F_DUMP_INTR) starts again. With `most`, a
        walk of more bytes than that ends with NetlinkError(EMSGSIZE).
        """
        for _ in range(_DUMP_ATTEMPTS):
            self._send(kind, payload, NLM_F_DUMP)
            found = []
            try:
                for body in _within(self._replies(operation), most, operation):
                    found.append(body)
                    if at_most is not None and len(found) > at_most:
                        self._give_up_dump()
                        break
                return found
            except InterruptedError:
                continue
        raise NetlinkError(errno.EBUSY, operation, "the table kept changing while it was read")

    def notifications(self) -> list[Message]:
        """Return the multicast messages that wait in the socket, without blocking.

        Raises OSError(ENOBUFS) when the kernel had to drop some: the caller must read everything
        again.
        """
        found: list[Message] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found.extend((kind, body) for kind, _, _, body in messages(data))

    def _give_up_dump(self) -> None:
        """Open another socket: on this one, the kernel would continue the walk."""
        self._socket.close()
        self._socket = self._opened()

    def _send(self, kind: int, payload: bytes, flags: int) -> None:
        self._socket.send(self._message(kind, payload, flags))

    def _message(self, kind: int, payload: bytes, flags: int) -> bytes:
        self._sequence += 1
        return encode(kind, payload, flags | NLM_F_REQUEST, self._sequence)

    def _batch(self, requests: Sequence[NetlinkRequest]) -> list[NetlinkError | None]:
        """Send the requests. The kernel answers those that it refuses, and the last one
        (netlink_rcv_skb in net/netlink/af_netlink.c)."""
        first, last = self._sequence + 1, len(requests) - 1
        self._socket.send(
            b"".join(
                self._message(kind, payload, flags | (NLM_F_ACK if number == last else 0))
                for number, (_, kind, payload, flags) in enumerate(requests)
            )
        )
        found: list[NetlinkError | None] = [None] * len(requests)
        while True:
            for kind, flags, sequence, body in messages(self._socket.recv(_RECEIVE_BYTES)):
                number = sequence - first
                if kind == NLMSG_ERROR and 0 <= number <= last:
                    found[number] = refusal(requests[number].operation, flags, body)
                    if number == last:
                        return found

    def _replies(self, operation: str) -> Iterator[Message]:
        interrupted = False
        while True:
            for kind, flags, sequence, body in messages(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue  # the rest of an abandoned dump
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_ERROR:
                    if refused := refusal(operation, flags, body):
                        raise refused
                    return
                if kind == NLMSG_DONE:
                    if interrupted:
                        raise InterruptedError(errno.EINTR, operation)
                    return
                yield kind, body


def opened(protocol: int, receive_bytes: int = 0, groups: int = 0) -> socket.socket:
    """Return a socket as that of a `Netlink`, whose errors have explanations."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK):
        made.setsockopt(SOL_NETLINK, option, 1)
    if receive_bytes:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
    made.bind((0, groups))
    return made


def encode(kind: int, payload: bytes, flags: int, number: int) -> bytes:
    """Return a message with its header and this sequence number."""
    length = _HEADER.size + len(payload)
    return _HEADER.pack(length, kind, flags, number, 0) + payload + b"\0" * (-length % 4)


def _within(found: Iterable[Message], most: int, operation: str) -> Iterator[bytes]:
    size = 0
    for _, body in found:
        size += len(body)
        if most and size > most:
            raise NetlinkError(errno.EMSGSIZE, operation, f"more than {most} bytes")
        yield body


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (kind, flags, sequence number, payload) of each message in received data."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def refusal(operation: str, flags: int, body: bytes) -> NetlinkError | None:
    """Return the error of an NLMSG_ERROR message, None if it acknowledges success."""
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


def each(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes from `offset` on, including several of one kind. Each kind keeps its
    flags (NLA_F_NESTED)."""
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def u32(found: Attributes, kind: int, default: int = 0) -> int:
    """Return the u32 attribute `kind`, or the default if the kernel sent none."""
    value = found.get(kind)
    return struct.unpack("=I", value)[0] if value is not None else default


def text(found: Attributes, kind: int) -> str:
    """Return the string attribute `kind`, empty if the kernel sent none."""
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def family_of(address: str) -> int:
    """Return AF_INET6 for an address with a colon, else AF_INET."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def pack_address(address: str) -> bytes:
    """Return the 4 or 16 bytes of an IP address. Raises ValueError if it is invalid."""
    try:
        return socket.inet_pton(family_of(address), address)
    except OSError:
        raise ValueError(f"{address!r} is not an IP address") from None


def unpack_address(packed: bytes) -> str:
    """Return the text of a packed IPv4 or IPv6 address."""
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)


def pack_mac(mac: str) -> bytes:
    """Return the six bytes of a MAC address. Raises ValueError if it is invalid."""
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
