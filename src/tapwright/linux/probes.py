"""Bounded probes: a few packets to one address, and the answers.

The probes are ICMP echo (RFC 792, 4443), small and as large as the interface allows, with "don't
fragment"; a TCP connection that is closed at once; a UDP datagram; a question to a name server (RFC
1035); and questions on the link for other holders of an address (RFC 5227, 4861) and for a router.
Both host and guest use it.
"""

import errno
import os
import select
import socket
import struct
import time
from contextlib import suppress
from typing import Any, NamedTuple

from tapwright.linux.netlink import pack_address, pack_mac, unpack_address, unpack_mac

ANSWERED, SILENT, REFUSED, FAILED = "answered", "silent", "refused", "failed"
_AGAIN_SECONDS, _ROUTER_SECONDS = 0.35, 1.1
_OF_ERRORS = socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
_IP_RECVERR, _IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IPV6_RECVERR, _PROBE = 11, 10, 23, 25, 3
_ERROR = struct.Struct("=IBBBxII")
_ORIGINS = {1: "here", 2: "icmp", 3: "icmp"}
_IPV4_HEADER, _IPV6_HEADER, _ICMP_HEADER = 20, 40, 8
_ALL, _IPV4, _ARP = 0x0003, 0x0800, 0x0806


class Result:
    """The result of the probe `name`. `outcome` is answered, silent, refused or failed. `error` is
    the system's error; its `origin` is here, peer or icmp, and then `reporter` sent it. `size` is
    that of the IP packet, `port` the source port. `macs` are those that answered a question on the
    link.

    It is no dataclass, because that module is not in the guest.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.outcome = SILENT
        self.error = 0
        self.origin = ""
        self.reporter = ""
        self.size = 0
        self.mtu = 0
        self.port = 0
        self.macs: tuple[str, ...] = ()


class _Probe:
    """A probe in progress."""

    def __init__(self, name: str) -> None:
        self.result = Result(name)
        self.opened: socket.socket | None = None
        self.events = select.POLLIN
        self.is_over = False

    @property
    def socket(self) -> socket.socket:
        """Raises OSError if the probe could not be started."""
        if self.opened is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.opened

    def close(self) -> None:
        if self.opened:
            self.opened.close()

    def send(self) -> None:
        """Send the probe, for the first time or again. Raises OSError."""

    def take(self) -> None:
        """Take in what has arrived. Raises OSError."""

    def end(self, outcome: str) -> None:
        self.result.outcome = outcome
        self.is_over = True

    def fail(self, error: OSError) -> None:
        self.result.error = error.errno or 0
        self.result.origin = self.result.origin or "here"
        refused = error.errno == errno.ECONNREFUSED
        self.end(REFUSED if refused else FAILED)

    def take_error(self) -> bool:
        """Whether the kernel has reported an error (ip(7), IP_RECVERR), which ends the probe."""
        try:
            _, more, _, _ = self.socket.recvmsg(2048, 512, _OF_ERRORS)
        except OSError:
            return False
        for _, kind, data in more:
            if kind not in (_IP_RECVERR, _IPV6_RECVERR) or len(data) < _ERROR.size:
                continue
            number, origin, _, _, info, _ = _ERROR.unpack_from(data)
            self.result.error, self.result.origin = number, _ORIGINS.get(origin, "")
            if number == errno.EMSGSIZE:
                self.result.mtu = info
            with suppress(ValueError, OSError):
                at = _ERROR.size + (4 if kind == _IP_RECVERR else 8)
                length = 4 if kind == _IP_RECVERR else 16
                self.result.reporter = unpack_address(data[at : at + length])
            self.end(REFUSED if number == errno.ECONNREFUSED else FAILED)
            return True
        return False


class _Echo(_Probe):
    def __init__(self, name: str, target: str, token: bytes, size: int, source: str) -> None:
        super().__init__(name)
        self._token = token
        self._six = ":" in target
        overhead = (_IPV6_HEADER if self._six else _IPV4_HEADER) + _ICMP_HEADER
        self._payload = token.ljust(max(0, size - overhead), b"\0")
        self.result.size = overhead + len(self._payload)
        self._id = struct.unpack("!H", os.urandom(2))[0]
        family = socket.AF_INET6 if self._six else socket.AF_INET
        self.opened = socket.socket(
            family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if self._six else socket.IPPROTO_ICMP
        )
        self.socket.setblocking(False)
        level = socket.IPPROTO_IPV6 if self._six else socket.IPPROTO_IP
        self.socket.setsockopt(level, _IPV6_RECVERR if self._six else _IP_RECVERR, 1)
        self.socket.setsockopt(level, _IPV6_MTU_DISCOVER if self._six else _IP_MTU_DISCOVER, _PROBE)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((target, 0))

    def send(self) -> None:
        head = struct.pack("!BBHHH", 128 if self._six else 8, 0, 0, self._id, 1)
        if not self._six:  # for IPv6 the kernel computes the checksum
            head = struct.pack("!BBHHH", 8, 0, _sum(head + self._payload), self._id, 1)
        self.socket.send(head + self._payload)

    def take(self) -> None:
        while not self.take_error():
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                return
            if not self._six:
                data = data[(data[0] & 15) * 4 :]
            kind, _, _, number, _ = struct.unpack_from("!BBHHH", data)
            if (kind, number) == (129 if self._six else 0, self._id) and self._token in data:
                self.end(ANSWERED)
                return


class _Tcp(_Probe):
    def __init__(self, target: str, port: int, source: str) -> None:
        super().__init__("tcp")
        self.events = select.POLLOUT
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        self.opened = socket.socket(family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        if source:
            self.socket.bind((source, 0))
        self._place, self._is_begun = (target, port), False

    def send(self) -> None:
        if self._is_begun:  # TCP retransmits by itself
            return
        self._is_begun = True
        with suppress(BlockingIOError):
            self.socket.connect(self._place)
        self.result.port = self.socket.getsockname()[1]

    def take(self) -> None:
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.result.origin = "here" if number != errno.ECONNREFUSED else "peer"
            raise OSError(number, os.strerror(number))
        self.end(ANSWERED)


class _Udp(_Probe):
    def __init__(self, target: str, port: int, token: bytes, source: str) -> None:
        super().__init__("udp")
        self._token = token
        six = ":" in target
        self.opened = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(
            socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP,
            _IPV6_RECVERR if six else _IP_RECVERR,
            1,
        )
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((target, port))
        self.result.port = self.socket.getsockname()[1]

    def send(self) -> None:
        self.socket.send(self._token)

    def take(self) -> None:
        if not self.take_error():
            with suppress(BlockingIOError):
                self.socket.recv(65536)
                self.end(ANSWERED)


class _Question(_Probe):
    """A question for other holders of the NIC's own address. Its source is 0.0.0.0 (or ::), so no
    receiver learns anything from it."""

    def __init__(self, device: str, mac: str, address: str) -> None:
        super().__init__(f"duplicate {address}")
        self._mac, self._address = mac, address
        self.opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setblocking(False)
        self.socket.bind((device, _ALL))
        self._macs: set[str] = set()

    def send(self) -> None:
        mac, address = pack_mac(self._mac), pack_address(self._address)
        if len(address) == 4:
            body = struct.pack(
                "!HHBBH6s4s6s4s", 1, _IPV4, 6, 4, 1, mac, bytes(4), bytes(6), address
            )
            frame = b"\xff" * 6 + mac + struct.pack("!H", _ARP) + body
        else:
            group = b"\xff\x02" + bytes(9) + b"\x01\xff" + address[-3:]
            message = struct.pack("!BBHI16s", 135, 0, 0, 0, address)
            pseudo = bytes(16) + group + struct.pack("!II", len(message), 58)
            message = struct.pack("!BBHI16s", 135, 0, _sum(pseudo + message), 0, address)
            head = struct.pack("!IHBB16s16s", 6 << 28, len(message), 58, 255, bytes(16), group)
            frame = b"\x33\x33" + group[-4:] + mac + b"\x86\xdd" + head + message
        self.socket.send(frame)

    def take(self) -> None:
        while True:
            try:
                data, place = self.socket.recvfrom(2048)
            except BlockingIOError:
                return
            if place[2] != 4 and (mac := self._answer(data)) and mac != self._mac:
                self._macs.add(mac)
                self.result.macs = tuple(sorted(self._macs))
                self.result.outcome = ANSWERED

    def _answer(self, frame: bytes) -> str:
        address = pack_address(self._address)
        if len(address) == 4:
            if frame[12:14] == b"\x08\x06" and frame[28:32] == address:
                return unpack_mac(frame[22:28])
        elif (frame[12:14], frame[20:21], frame[54:55]) == (b"\x86\xdd", b"\x3a", b"\x88"):
            return unpack_mac(frame[6:12]) if frame[62:78] == address else ""
        return ""


class _Solicitation(_Probe):
    """A question for routers on the link (RFC 4861, 6.3.7). `reporter` is the first router that
    offers itself as a default one. All nodes of the link may receive the offer, as they do from
    time to time."""

    def __init__(self, device: int) -> None:
        super().__init__("router")
        self.opened = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        self._device = device

    def send(self) -> None:
        self.socket.sendto(struct.pack("!BBHI", 133, 0, 0, 0), ("ff02::2", 0, 0, self._device))

    def take(self) -> None:
        while True:
            data, place = self.socket.recvfrom(2048)
            lifetime = data[6:8] != b"\0\0"
            if data[:1] == b"\x86" and place[3] == self._device and lifetime:
                self.result.reporter = place[0].partition("%")[0]
                self.end(ANSWERED)
                return


def refuses_routers(link: dict[str, Any]) -> bool:
    """Whether an interface that is up ignores router advertisements
    (Documentation/networking/ip-sysctl.rst: accept_ra); `link` is as `agent.guest.probing` reports
    it."""
    settings = link["settings"]
    accepted, forwards = settings.get("accept_ra"), settings.get("forwarding") == "1"
    refuses = accepted == "0" or (accepted == "1" and forwards)
    return bool(link["up"] and not link["loopback"] and refuses)


def find_router(device: int) -> Result:
    """Ask for a router on the link of an interface, by its index."""
    try:
        probe: _Probe = _Solicitation(device)
    except OSError as error:
        probe = _Probe("router")
        probe.fail(error)
    _conduct([probe], _ROUTER_SECONDS)
    probe.close()
    return probe.result


def run(
    target: str,
    port: int = 0,
    udp: bool = False,
    token: bytes = b"tapwright",
    large: int = 0,
    own: tuple[str, str, list[str]] | None = None,
    seconds: float = 1.1,
    source: str = "",
) -> list[Result]:
    """Send the probes at the same time; a `large` echo has that size. `own` is (device, MAC,
    addresses): other holders of these addresses are looked for on the link."""
    makers: list[tuple[str, Any]] = []
    if target:
        makers.append(("echo", lambda: _Echo("echo", target, token, 84, source)))
        if large:
            makers.append(("large", lambda: _Echo("large", target, token, large, source)))
        if port and udp:
            makers.append(("udp", lambda: _Udp(target, port, token, source)))
        elif port:
            makers.append(("tcp", lambda: _Tcp(target, port, source)))
    if own:
        device, mac, addresses = own
        for address in addresses:
            makers.append((f"duplicate {address}", lambda a=address: _Question(device, mac, a)))
    probes: list[_Probe] = []
    for name, make in makers:
        try:
            probes.append(make())
        except OSError as error:
            failed = _Probe(name)
            failed.fail(error)
            probes.append(failed)
    _conduct(probes, seconds)
    for probe in probes:
        probe.close()
    return [probe.result for probe in probes]


def _conduct(probes: list[_Probe], seconds: float) -> None:
    begun = time.monotonic()
    sent = 0
    while True:
        passed = time.monotonic() - begun
        open_ones = [probe for probe in probes if not probe.is_over]
        waited_for = [probe for probe in open_ones if not isinstance(probe, _Question)]
        # Nodes on the link answer at once.
        if passed > seconds or (not waited_for and (not open_ones or passed > _AGAIN_SECONDS)):
            return
        if sent <= passed / _AGAIN_SECONDS and sent < 3:
            sent += 1
            for probe in open_ones:
                _attempt(probe, probe.send)
        poll = select.poll()
        by_fd = {}
        for probe in open_ones:
            if probe.opened and not probe.is_over:
                by_fd[probe.socket.fileno()] = probe
                poll.register(probe.socket.fileno(), probe.events)
        due = min(seconds, sent * _AGAIN_SECONDS if sent < 3 else seconds)
        for fd, _ in poll.poll(max(1, int((due - passed) * 1000) + 1)):
            _attempt(by_fd[fd], by_fd[fd].take)


def _attempt(probe: _Probe, step: Any) -> None:
    try:
        step()
    except BlockingIOError:
        pass
    except OSError as error:
        if not probe.take_error():
            probe.fail(error)


def _sum(data: bytes) -> int:
    """Return the checksum of RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Asked(NamedTuple):
    """A question to the name server `server`. `outcome` is as that of a probe; `code` is that of
    the answer (RFC 1035, 4.1.1: 0 none, 2 server failure, 3 no such name, 5 refused); `addresses`
    are those in the answer."""

    server: str
    name: str
    outcome: str = SILENT
    code: int = 0
    error: int = 0
    addresses: tuple[str, ...] = ()


def resolve(name: str, servers: list[str], search: list[str], ndots: int = 1) -> list[Asked]:
    """Ask each server for the addresses of a name, in the order of resolv.conf(5), and stop at the
    first that has some. Each question waits for 0.6 s."""
    full = name.rstrip(".")
    candidates = [f"{full}.{domain}" for domain in search]
    if name.endswith("."):
        candidates = [full]
    elif full.count(".") >= ndots:
        candidates.insert(0, full)
    else:
        candidates.append(full)
    found: list[Asked] = []
    for candidate in candidates:
        several: list[Any] = [
            _Ask(server, candidate, kind) for server in servers[:3] for kind in (1, 28)
        ]
        _conduct(several, 0.6)
        for probe in several:
            probe.close()
        answers = [probe.asked() for probe in several]
        found += answers
        if any(answer.addresses for answer in answers):
            break
        if all(answer.outcome != ANSWERED for answer in answers):
            break  # the next name would get no answer either
    return found


class _Ask(_Probe):
    def __init__(self, server: str, name: str, kind: int) -> None:
        super().__init__(name)
        self._server, self._name, self._kind = server, name, kind
        self._id = os.urandom(2)
        self._code = 0
        self._addresses: tuple[str, ...] = ()
        six = ":" in server
        self.opened = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        _attempt(self, lambda: self.socket.connect((server, 53)))

    def send(self) -> None:
        labels = b"".join(
            bytes([len(label)]) + label for label in self._name.encode("idna").split(b".") if label
        )
        head = self._id + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0)
        self.socket.send(head + labels + b"\0" + struct.pack("!HH", self._kind, 1))

    def take(self) -> None:
        data = self.socket.recv(4096)
        if data[:2] == self._id and len(data) >= 12:
            self._code = data[3] & 15
            if not self._code:  # an error code is no answer, whatever else the message has
                with suppress(struct.error, IndexError, ValueError):
                    self._addresses = tuple(_answers(data))
            self.end(ANSWERED)

    def asked(self) -> Asked:
        outcome, error = self.result.outcome, self.result.error
        return Asked(self._server, self._name, outcome, self._code, error, self._addresses)


def _answers(data: bytes) -> list[str]:
    questions, answers = struct.unpack_from("!HH", data, 4)
    offset = 12
    for _ in range(questions):
        offset = _after_name(data, offset) + 4
    found = []
    for _ in range(answers):
        offset = _after_name(data, offset)
        kind, _, _, length = struct.unpack_from("!HHIH", data, offset)
        offset += 10
        if (kind, length) in ((1, 4), (28, 16)):
            found.append(unpack_address(data[offset : offset + length]))
        offset += length
    return found


def _after_name(data: bytes, offset: int) -> int:
    while data[offset]:
        if data[offset] >= 0xC0:
            return offset + 2
        offset += data[offset] + 1
    return offset + 1


def written(results: list[Any]) -> list[dict[str, Any]]:
    """Return the results as values for JSON."""
    return [
        result._asdict() if isinstance(result, Asked) else vars(result).copy() for result in results
    ]
