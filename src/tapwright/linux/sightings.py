"""Watches frames that pass an interface, to see whether a probe came by (packet(7)).

A watch changes nothing of the interface: no promiscuous mode, no filter. Both host and guest use
it. A sighting is read from the headers alone (RFC 791, 8200, 792, 4443, 793, 768, 826, 4861).
"""

import socket
import struct
from contextlib import suppress
from typing import NamedTuple, Self

from tapwright.linux.netlink import SO_RCVBUFFORCE, unpack_address, unpack_mac

_ALL, _IPV4, _IPV6, _ARP = 0x0003, 0x0800, 0x86DD, 0x0806
_OUTGOING, _HEAD_BYTES, _BUFFER_BYTES, _MOST = 4, 2048, 1 << 20, 4000
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_ERRORS = {1: (3, 4, 5, 11, 12), 58: (1, 2, 3, 4)}
_ECHO = {(1, 8): "echo-request", (1, 0): "echo-reply", (58, 128): "echo-request"}
_ECHO |= {(58, 129): "echo-reply", (58, 135): "arp-request", (58, 136): "arp-reply"}
_SYN, _RST, _ACK = 0x02, 0x04, 0x10


class Sighting(NamedTuple):
    """A frame. `what` is echo-request, echo-reply, syn, syn-ack, rst, tcp, udp, icmp-error
    (`detail` has type and code, `about` the destination of the packet that caused it), or
    arp-request and arp-reply (also for IPv6's neighbour discovery; `destination` is the address
    asked for). `size` is that of the IP packet. Ports are 0 if there are none. `marked` is true if
    the frame has the token."""

    what: str
    outgoing: bool
    source: str
    destination: str
    from_mac: str = ""
    to_mac: str = ""
    size: int = 0
    source_port: int = 0
    destination_port: int = 0
    detail: str = ""
    about: str = ""
    marked: bool = False


class Watch:
    """Watches the interface with this index in the calling thread's namespace. Raises OSError."""

    def __init__(self, index: int, token: bytes) -> None:
        self._token = token
        # The socket has no protocol at first. Otherwise it would receive from all interfaces until
        # it is bound, and the bind would wait for the kernel (net/packet/af_packet.c:
        # packet_do_bind).
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.bind((socket.if_indextoname(index), _ALL))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def sightings(self) -> list[Sighting]:
        """Return what has passed so far, at most a few thousand frames."""
        found = []
        with suppress(BlockingIOError):
            for _ in range(_MOST):
                try:
                    data, place = self._socket.recvfrom(_HEAD_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # the interface went down meanwhile
                with suppress(struct.error, IndexError, ValueError):
                    if seen := read(data, place[2] == _OUTGOING, self._token):
                        found.append(seen)
        return found


def read(frame: bytes, outgoing: bool, token: bytes) -> Sighting | None:
    """Read a frame from its Ethernet header on; None for a frame of no interest."""
    to_mac, from_mac = unpack_mac(frame[:6]), unpack_mac(frame[6:12])
    (kind,) = struct.unpack_from("!H", frame, 12)
    packet = frame[14:]
    if kind == 0x8100:
        (kind,), packet = struct.unpack_from("!H", frame, 16), frame[18:]
    seen = None
    if kind == _ARP and packet[:4] == b"\0\1\x08\0":
        (operation,) = struct.unpack_from("!H", packet, 6)
        seen = Sighting(
            "arp-request" if operation == 1 else "arp-reply",
            outgoing,
            unpack_address(packet[14:18]),
            unpack_address(packet[24:28]),
            detail=unpack_mac(packet[8:14]),
        )
    elif kind in (_IPV4, _IPV6):
        seen = _packet(packet, outgoing, token)
    return seen._replace(from_mac=from_mac, to_mac=to_mac) if seen else None


def _packet(packet: bytes, outgoing: bool, token: bytes) -> Sighting | None:
    source, destination, protocol, size, rest = _split(packet)
    seen = Sighting("", outgoing, source, destination, size=size, marked=token in rest)
    if protocol in (_ICMP, _ICMPV6):
        kind, code = rest[0], rest[1]
        if what := _ECHO.get((protocol, kind)):
            if what.startswith("arp"):
                seen = seen._replace(destination=unpack_address(rest[8:24]))
                if what == "arp-reply":
                    seen = seen._replace(source=unpack_address(rest[8:24]))
            return seen._replace(what=what)
        if kind in _ERRORS[protocol]:
            about = _split(rest[8:])
            return seen._replace(what="icmp-error", detail=f"{kind}/{code}", about=about[1])
        return None
    if protocol not in (_TCP, _UDP):
        return None
    ports = struct.unpack_from("!HH", rest)
    seen = seen._replace(source_port=ports[0], destination_port=ports[1])
    if protocol == _UDP:
        return seen._replace(what="udp")
    flags = rest[13]
    what = "tcp"
    if flags & _RST:
        what = "rst"
    elif flags & _SYN:
        what = "syn-ack" if flags & _ACK else "syn"
    return seen._replace(what=what)


def _split(packet: bytes) -> tuple[str, str, int, int, bytes]:
    """Return (source, destination, protocol, size, payload)."""
    if packet[0] >> 4 == 4:
        (size,) = struct.unpack_from("!H", packet, 2)
        length = (packet[0] & 15) * 4
        addresses = unpack_address(packet[12:16]), unpack_address(packet[16:20])
        return *addresses, packet[9], size, packet[length:]
    (size,) = struct.unpack_from("!H", packet, 4)
    addresses = unpack_address(packet[8:24]), unpack_address(packet[24:40])
    return *addresses, packet[6], size + 40, packet[40:]
