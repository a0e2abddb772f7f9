"""Netfilter's netlink: sockets, the header of its messages, and transactions of nf_tables.

The host uses it to read, and the guest to write. The layouts are those of
include/uapi/linux/netfilter/nfnetlink.h.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tapwright.linux import netlink
from tapwright.linux.netlink import (
    NLM_F_REQUEST,
    NLMSG_ERROR,
    Netlink,
    NetlinkError,
    attribute,
    encode,
    messages,
    refusal,
)

NETLINK_NETFILTER = 12
NFTABLES, IPSET = 10, 6
"""Subsystems: the upper byte of a message's kind."""

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_BATCH_GENERATION = 1
_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; not in Python's socket
_ANSWERS_BYTES = 4 << 20
_RECEIVE_BYTES = 1 << 17
# The errors of a kernel without netfilter's netlink, or without the subsystem.
_ABSENT = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP)


class Change(NamedTuple):
    """One message of a transaction; `description` names it for the reader of an error."""

    kind: int
    flags: int
    payload: bytes
    description: str = ""


class Refusal(NamedTuple):
    """A message that the kernel refused: its number in the transaction, 0 for all messages, and the
    reason."""

    number: int
    code: int
    reason: str


def opened() -> Netlink:
    """Open a socket in the thread's namespace. Raises OSError if the kernel has no netfilter
    (`is_absent`)."""
    return Netlink(protocol=NETLINK_NETFILTER)


def is_absent(error: OSError) -> bool:
    """Whether an error means that the kernel lacks netfilter, or the subsystem."""
    return error.errno in _ABSENT


def header(family: int, resource: int = 0) -> bytes:
    """struct nfgenmsg."""
    return struct.pack("!BBH", family, 0, resource)


def packed(changes: Iterable[Change], first: int = 1) -> bytes:
    """Return messages one after another, as `commit` takes them, numbered from `first`."""
    return b"".join(
        encode(change.kind, change.payload, change.flags | NLM_F_REQUEST, number)
        for number, change in enumerate(changes, first)
    )


def commit(changes: bytes, generation: int = 0) -> list[Refusal]:
    """Make nf_tables do all messages of `packed`, or none; return what it refused. With a
    `generation`, nf_tables does nothing and answers ERESTART if the ruleset has another generation
    by now.

    Raises OSError if there is no netfilter, or no room for so many messages.
    """
    with netlink.opened(NETLINK_NETFILTER, _ANSWERS_BYTES) as connection:
        return commit_by(connection, changes, generation)


def commit_by(connection: socket.socket, changes: bytes, generation: int = 0) -> list[Refusal]:
    """Do the same by a socket of the caller's (`netlink.opened`), which can own a table."""
    resource = header(socket.AF_UNSPEC, NFTABLES)
    begin = resource
    if generation:
        begin += attribute(_BATCH_GENERATION, generation.to_bytes(4, "big"))
    data = (
        encode(_BATCH_BEGIN, begin, NLM_F_REQUEST, 0)
        + changes
        + encode(_BATCH_END, resource, NLM_F_REQUEST, 0xFFFFFFFF)
    )
    connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(data) + (1 << 16))
    connection.send(data)
    # The kernel has done everything when the send returns (net/netlink/af_netlink.c:
    # netlink_unicast_kernel).
    return list(_answers(connection))


def _answers(connection: socket.socket) -> Iterator[Refusal]:
    while True:
        try:
            data = connection.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield Refusal(
                0, errno.ENOBUFS, "the kernel refused more changes than its answer has room for"
            )
            continue
        for kind, flags, sequence, body in messages(data):
            if kind == NLMSG_ERROR and (refused := refusal("", flags, body)):
                yield Refusal(sequence, refused.errno or 0, reason(refused))


def reason(error: NetlinkError) -> str:
    """Return why the kernel refused a request, without the name of the operation."""
    return str(error.args[-1]).removeprefix(f"{error.operation}: ")
