"""IPVS, the kernel's load balancer: virtual services and their real servers, over generic netlink.

The message layouts are those of include/uapi/linux/ip_vs.h and genetlink.h.
"""

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tapwright.linux.netlink import (
    Attributes,
    Netlink,
    NetlinkError,
    NetlinkRequest,
    attribute,
    attributes,
    family_of,
    nested,
    pack_address,
    text,
    u32,
    unpack_address,
)

NETLINK_GENERIC = 16
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
MASQUERADING, LOCAL, TUNNEL, ROUTE = range(4)
"""How packets reach a real server (IP_VS_CONN_F_*)."""
PERSISTENT, ONE_PACKET = 0x1, 0x4
_OF_SCHEDULERS = 0x38  # IP_VS_SVC_F_SCHED1 to 3

_NAME = "IPVS"
_ID_CTRL, _CTRL_GETFAMILY, _CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = 16, 3, 1, 2
_NEW_SERVICE, _SET_SERVICE, _DEL_SERVICE, _GET_SERVICE = range(1, 5)
_NEW_SERVER, _SET_SERVER, _DEL_SERVER, _GET_SERVER = range(5, 9)
_SET_CONFIG, _GET_CONFIG, _GET_INFO, _FLUSH = 12, 13, 15, 17
_SERVICE, _SERVER = 1, 2
_TIMEOUTS = (4, 5, 6)  # TCP, TCP after a FIN, UDP
_S_FAMILY, _S_PROTOCOL, _S_ADDRESS, _S_PORT, _S_MARK, _S_SCHEDULER, _S_FLAGS = range(1, 8)
_S_TIMEOUT, _S_NETMASK, _S_ENGINE, _S_STATS64 = 8, 9, 11, 12
_D_ADDRESS, _D_PORT, _D_FORWARD, _D_WEIGHT, _D_MOST, _D_LEAST = range(1, 7)
_D_ACTIVE, _D_INACTIVE, _D_PERSISTENT, _D_FAMILY, _D_STATS64 = 7, 8, 9, 11, 12
_COUNTERS = range(1, 11)
_FORWARD_MASK, _ADDRESS_BYTES = 0x7, 16
_GENERIC_HEADER = struct.Struct("=BBH")
_U16, _FLAGS = struct.Struct("=H"), struct.Struct("=II")
_PORT, _U64 = struct.Struct("!H"), struct.Struct("=Q")

Counters = tuple[int, ...]
"""Connections, packets in and out, bytes in and out; then the same five per second."""


class Service(NamedTuple):
    """A virtual service. `persistence` is in seconds, 0 for none. A service with a firewall `mark`
    has no protocol, address and port. Clients with the same prefix of the length `netmask` count as
    one client."""

    protocol: int
    address: str
    port: int
    scheduler: str = ""
    persistence: int = 0
    flags: int = 0
    netmask: int = -1
    mark: int = 0
    engine: str = ""
    counters: Counters = ()


class Server(NamedTuple):
    """A real server. The last fields come from the kernel: connections, and counters."""

    address: str
    port: int
    weight: int = 1
    forward: int = MASQUERADING
    active: int = 0
    inactive: int = 0
    persistent: int = 0
    most: int = 0
    least: int = 0
    counters: Counters = ()


class Change(NamedTuple):
    """One change of the table. `verb` is add, edit or delete. It applies to the service, or to the
    `server` if there is one."""

    verb: str
    service: Service
    server: Server | None = None


def changes(decoded: Iterable[Sequence[Any]]) -> list[Change]:
    """Read changes from decoded JSON: [verb, service, server or null] each."""
    return [
        Change(verb, Service(*service), Server(*server) if server else None)
        for verb, service, server in decoded
    ]


_COMMANDS = {
    ("add", False): _NEW_SERVICE,
    ("edit", False): _SET_SERVICE,
    ("delete", False): _DEL_SERVICE,
    ("add", True): _NEW_SERVER,
    ("edit", True): _SET_SERVER,
    ("delete", True): _DEL_SERVER,
}
# The errors in ipvsadm's words (libipvs/libipvs.c), by number, and by whether the change has a
# server.
_REFUSALS = {
    ("add", False, errno.EEXIST): "Service already exists",
    ("add", False, errno.ENOENT): "Scheduler or persistence engine not found",
    ("edit", False, errno.ESRCH): "No such service",
    ("edit", False, errno.ENOENT): "Scheduler or persistence engine not found",
    ("delete", False, errno.ESRCH): "No such service",
    ("add", True, errno.ESRCH): "Service not defined",
    ("add", True, errno.EEXIST): "Destination already exists",
    ("edit", True, errno.ESRCH): "Service not defined",
    ("edit", True, errno.ENOENT): "No such destination",
    ("delete", True, errno.ESRCH): "Service not defined",
    ("delete", True, errno.ENOENT): "No such destination",
}


class Ipvs:
    """The load balancer of the network namespace of the thread that opens it.

    Raises OSError(ENOENT) if the kernel has none.
    """

    def __init__(self) -> None:
        self._netlink = Netlink(protocol=NETLINK_GENERIC)
        try:
            self._family = self._found()
        except BaseException:
            self._netlink.close()
            raise
        self._services: dict[Service, bytes] = {}

    def __enter__(self) -> "Ipvs":
        return self

    def __exit__(self, *exc: object) -> None:
        self._netlink.close()

    def version(self) -> tuple[int, int]:
        """Return (version in the kernel's encoding, size of the connection table)."""
        found = attributes(self._get("look at IPVS", _GET_INFO, b""), _GENERIC_HEADER.size)
        return u32(found, 1), u32(found, 2)

    def timeouts(self) -> list[int]:
        """Return the timeouts in seconds: for TCP, for TCP after a FIN, for UDP."""
        found = attributes(self._get("look at the timeouts", _GET_CONFIG, b""), 4)
        return [u32(found, kind) for kind in _TIMEOUTS]

    def set_timeouts(self, seconds: Sequence[int]) -> None:
        """Set these three timeouts; 0 leaves one as it is."""
        payload = (attribute(kind, value) for kind, value in zip(_TIMEOUTS, seconds, strict=True))
        self._request("set the timeouts", _SET_CONFIG, b"".join(payload))

    def clear(self) -> None:
        """Remove all services with their servers."""
        self._request("clear the table", _FLUSH, b"")

    def change(self, changes: Iterable[Change]) -> list[NetlinkError | None]:
        """Make the changes in their order; a failure does not stop the later ones. Return for each
        None, or the reason of its refusal."""
        return self._netlink.request_many([self._encoded(change) for change in changes])

    def services(self, counted: bool = True) -> list[Service]:
        """Return all services; without their counters it takes half the time."""
        payload = self._payload(_GET_SERVICE)
        return [
            _service(body, counted)
            for body in self._netlink.dump("list services", self._family, payload)
        ]

    def service(self, wanted: Service, counted: bool = True) -> Service:
        """Return one service as it is now. Raises NetlinkError(ESRCH) if it does not exist."""
        return _service(self._get("find the service", _GET_SERVICE, self._key(wanted)), counted)

    def servers(self, service: Service, counted: bool = True) -> list[Server]:
        payload = self._payload(_GET_SERVER, self._key(service))
        family = socket.AF_INET6 if ":" in service.address else socket.AF_INET
        return [
            _server(body, family, counted)
            for body in self._netlink.dump("list servers", self._family, payload)
        ]

    def _found(self) -> int:
        """Return the number of the netlink family in this kernel."""
        name = attribute(_CTRL_FAMILY_NAME, _NAME)
        payload = _GENERIC_HEADER.pack(_CTRL_GETFAMILY, 1, 0) + name
        body = self._netlink.get("find IPVS in the kernel", _ID_CTRL, payload)
        (number,) = _U16.unpack(attributes(body, _GENERIC_HEADER.size)[_CTRL_FAMILY_ID])
        return int(number)

    def _request(self, operation: str, command: int, content: bytes) -> None:
        self._netlink.request(operation, self._family, self._payload(command, content))

    def _get(self, operation: str, command: int, content: bytes) -> bytes:
        return self._netlink.get(operation, self._family, self._payload(command, content))

    def _payload(self, command: int, content: bytes = b"") -> bytes:
        return _GENERIC_HEADER.pack(command, 1, 0) + content

    def _encoded(self, change: Change) -> NetlinkRequest:
        of_server = change.server is not None
        command = _COMMANDS[change.verb, of_server]
        if change.server is not None:
            content = self._key(change.service) + _encoded_server(change.server)
        elif change.verb == "delete":
            content = self._key(change.service)
        else:
            content = _encoded_service(change.service)
        what = "server" if of_server else "service"
        return NetlinkRequest(
            f"{change.verb} a {what}", self._family, self._payload(command, content)
        )

    def _key(self, service: Service) -> bytes:
        """Return the attribute that names a service in requests. Each service's attribute is
        encoded once."""
        key = Service(service.protocol, service.address, service.port, mark=service.mark)
        if (found := self._services.get(key)) is None:
            found = self._services[key] = nested(_SERVICE, _place(service))
        return found


def reason(change: Change, refusal: NetlinkError) -> str:
    key = change.verb, change.server is not None, refusal.errno or 0
    return _REFUSALS.get(key) or str(refusal.args[-1])


def _place(service: Service) -> list[bytes]:
    if service.mark:
        family = socket.AF_INET6 if ":" in service.address else socket.AF_INET
        return [attribute(_S_FAMILY, _U16.pack(family)), attribute(_S_MARK, service.mark)]
    return [
        attribute(_S_FAMILY, _U16.pack(family_of(service.address))),
        attribute(_S_PROTOCOL, _U16.pack(service.protocol)),
        attribute(_S_ADDRESS, pack_address(service.address).ljust(_ADDRESS_BYTES, b"\0")),
        attribute(_S_PORT, _PORT.pack(service.port)),
    ]


def _encoded_service(service: Service) -> bytes:
    flags = service.flags | (PERSISTENT if service.persistence else 0)
    # The kernel's own flags stay as they are.
    mask = PERSISTENT | ONE_PACKET | service.flags & _OF_SCHEDULERS
    return nested(
        _SERVICE,
        [
            *_place(service),
            attribute(_S_SCHEDULER, service.scheduler),
            attribute(_S_FLAGS, _FLAGS.pack(flags, mask)),
            attribute(_S_TIMEOUT, service.persistence),
            attribute(_S_NETMASK, _netmask(service)),
            *([attribute(_S_ENGINE, service.engine)] if service.engine else []),
        ],
    )


def _netmask(service: Service) -> int:
    """Return the length of a prefix, or an IPv4 mask in network byte order. Without a netmask,
    every client counts by itself."""
    if ":" in service.address:
        return service.netmask if service.netmask >= 0 else 128
    length = service.netmask if 0 <= service.netmask <= 32 else 32
    mask = (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF
    return int.from_bytes(mask.to_bytes(4, "big"), sys.byteorder)


def _encoded_server(server: Server) -> bytes:
    return nested(
        _SERVER,
        [
            attribute(_D_ADDRESS, pack_address(server.address).ljust(_ADDRESS_BYTES, b"\0")),
            attribute(_D_PORT, _PORT.pack(server.port)),
            attribute(_D_FORWARD, server.forward),
            attribute(_D_WEIGHT, server.weight),
            attribute(_D_MOST, server.most),
            attribute(_D_LEAST, server.least),
            attribute(_D_FAMILY, _U16.pack(family_of(server.address))),
        ],
    )


def _service(body: bytes, counted: bool) -> Service:
    found = attributes(attributes(body, _GENERIC_HEADER.size)[_SERVICE])
    family = _u16(found, _S_FAMILY)
    flags = _FLAGS.unpack(found[_S_FLAGS])[0]
    mask = u32(found, _S_NETMASK)
    return Service(
        protocol=_u16(found, _S_PROTOCOL),
        address=_address(found, _S_ADDRESS, family),
        port=_port(found, _S_PORT),
        scheduler=text(found, _S_SCHEDULER),
        persistence=u32(found, _S_TIMEOUT) if flags & PERSISTENT else 0,
        flags=flags,
        netmask=mask if family == socket.AF_INET6 else mask.bit_count(),
        mark=u32(found, _S_MARK),
        engine=text(found, _S_ENGINE),
        counters=_counters(found, _S_STATS64) if counted else (),
    )


def _server(body: bytes, family: int, counted: bool) -> Server:
    found = attributes(attributes(body, _GENERIC_HEADER.size)[_SERVER])
    return Server(
        address=_address(found, _D_ADDRESS, _u16(found, _D_FAMILY) or family),
        port=_port(found, _D_PORT),
        weight=u32(found, _D_WEIGHT),
        forward=u32(found, _D_FORWARD) & _FORWARD_MASK,
        active=u32(found, _D_ACTIVE),
        inactive=u32(found, _D_INACTIVE),
        persistent=u32(found, _D_PERSISTENT),
        most=u32(found, _D_MOST),
        least=u32(found, _D_LEAST),
        counters=_counters(found, _D_STATS64) if counted else (),
    )


def _address(found: Attributes, kind: int, family: int) -> str:
    packed = found.get(kind, bytes(_ADDRESS_BYTES))
    return unpack_address(packed if family == socket.AF_INET6 else packed[:4])


def _port(found: Attributes, kind: int) -> int:
    return int(_PORT.unpack(found[kind])[0]) if kind in found else 0


def _u16(found: Attributes, kind: int) -> int:
    return int(_U16.unpack(found[kind])[0]) if kind in found else 0


def _counters(found: Attributes, kind: int) -> Counters:
    numbers = attributes(found.get(kind, b""))
    return tuple(
        _U64.unpack(numbers[counter])[0] if counter in numbers else 0 for counter in _COUNTERS
    )
