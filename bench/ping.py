"""The first ping that is answered: ICMP echo requests over a raw socket, until there is a reply.

The ping command would take longer to start than the networks that are measured take to answer.
"""

import os
import select
import socket
import struct
import time

from bench.samples import Milliseconds

_PAUSE_MS = 2.0
_ECHO_REPLY, _ECHO_REQUEST = 0, 8
_HEADER = struct.Struct("!BBHHH")  # RFC 792: type, code, checksum, identifier, sequence number
_IP_HEADER_WORDS = 0x0F


def first_ping(address: str, seconds: float = 20.0) -> float:
    """Ask every 2 ms; return when the first answer came (monotonic clock).

    Raises TimeoutError when there is none.
    """
    identifier = os.getpid() & 0xFFFF
    deadline = time.monotonic() + seconds
    # Not connected: then sending would fail with what the network said of an earlier request.
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as asking:
        asking.setblocking(False)
        answers = select.poll()
        answers.register(asking, select.POLLIN)
        sequence = 0
        while time.monotonic() < deadline:
            sequence += 1
            asking.sendto(_request(identifier, sequence & 0xFFFF), (address, 0))
            while answers.poll(_PAUSE_MS):
                packet, (source, _) = asking.recvfrom(2048)
                if source == address and _is_reply(packet, identifier):
                    return time.monotonic()
    raise TimeoutError(f"{address} answered no ping within {seconds:g} s")


def ping_after(start: float, address: str) -> Milliseconds:
    """From `start` to the first answer."""
    return (first_ping(address) - start) * 1e3


def _request(identifier: int, sequence: int) -> bytes:
    # The ones' complement of the ones' complement sum (RFC 1071).
    checksum = 0xFFFF - ((_ECHO_REQUEST << 8) + identifier + sequence) % 0xFFFF
    return _HEADER.pack(_ECHO_REQUEST, 0, checksum, identifier, sequence)


def _is_reply(packet: bytes, identifier: int) -> bool:
    header = packet[(packet[0] & _IP_HEADER_WORDS) * 4 :]
    kind, _, _, found, _ = _HEADER.unpack_from(header)
    return (kind, found) == (_ECHO_REPLY, identifier)
