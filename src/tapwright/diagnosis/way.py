"""The way of a packet, as plain data: from a NIC of the guest out to the wire, point by point.

`dataclasses.asdict` makes JSON of all of it. Fields are added only.
"""

from dataclasses import dataclass, field
from typing import Any

GUEST_NIC, QEMU_NIC = "guest-nic", "qemu-nic"
TAP, FILTERS, SOCKET = "tap", "filters", "socket"
INTERFACE, PEER, PARENT = "interface", "peer", "parent"
BRIDGE, OVS = "bridge", "ovs"
GATEWAY, HOST_NIC = "gateway", "host-nic"

IN_GUEST, IN_QEMU, ON_HOST = "guest", "qemu", "host"
"""Places of points that are no path of a network namespace."""

UP, NO_CARRIER, DOWN, MISSING, UNKNOWN = "up", "no carrier", "down", "missing", ""
"""States of points."""

ERROR, WARNING = "error", "warning"
"""Severities of complaints: packets do not arrive; or some may not."""


@dataclass
class Count:
    """What went one way: bytes, packets, and those of them that had errors or were dropped."""

    bytes: int = 0
    packets: int = 0
    errors: int = 0
    dropped: int = 0


@dataclass
class Edge:
    """From a point to the next one: `how` they are joined, in words, and what went away from the
    guest (`outward`) and towards it (`inward`), None where nobody counts it."""

    how: str
    outward: Count | None = None
    inward: Count | None = None


@dataclass
class Filter:
    """A tc filter between two devices: `redirect` or `mirror`, from what arrives at one device to
    the other, by name, and what went through it."""

    what: str
    source: str
    target: str
    count: Count


@dataclass
class Point:
    """A place that a packet passes. `place` is where it is: IN_GUEST, IN_QEMU, ON_HOST, or the path
    of a network namespace. Addresses as ADDRESS/PREFIX; an MTU of 0 is not known. `made_by` is the
    CNI plugin that made it, or `tapwright`. `driver` is the kernel's name of its kind, `index` that
    of the interface, 0 for none; `filters` those of a point of FILTERS, `queue_dropped` packets
    that its qdiscs dropped. `facts` are more, in words."""

    kind: str
    name: str
    place: str
    state: str = UNKNOWN
    mac: str = ""
    mtu: int = 0
    addresses: list[str] = field(default_factory=list)
    made_by: str = ""
    driver: str = ""
    index: int = 0
    filters: list[Filter] = field(default_factory=list)
    queue_dropped: int = 0
    facts: list[str] = field(default_factory=list)


@dataclass
class Route:
    """`destination` as ADDRESS/PREFIX, `gateway` empty for a neighbour's network."""

    destination: str
    gateway: str = ""
    metric: int = 0
    table: int = 254


@dataclass
class Way:
    """The way of a NIC, from the guest outwards: `edges[n]` is between `points[n]` and the next.

    `network` is its CNI network, `plugins` that network's chain; `joined_by` the kind of its
    endpoint (`endpoint.kinds`). `wanted` are the addresses that the guest is to have, and
    `wanted_routes` its routes, None where it follows no interface; `routes` those that the guest
    has. `promised` are the interfaces of the host that the CNI result names, with their kinds.
    """

    nic: str
    mac: str
    network: str = ""
    plugins: list[str] = field(default_factory=list)
    joined_by: str = ""
    points: list[Point] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    wanted_routes: list[Route] | None = None
    routes: list[Route] | None = None
    promised: dict[str, str] = field(default_factory=dict)

    def point(self, *kinds: str) -> Point | None:
        """The first point of one of these kinds."""
        return next((point for point in self.points if point.kind in kinds), None)


@dataclass
class Complaint:
    """What is wrong: `nic` and `at`, the number of the point on its way (-1 for the sandbox as a
    whole); `remedy` is what to do, where that is known."""

    what: str
    severity: str = ERROR
    nic: str = ""
    at: int = -1
    remedy: str = ""


@dataclass
class Picture:
    """A sandbox's network at one moment, in seconds since the epoch. `guest` is what the agent said
    (`agent.guest.looking`), `qemu` what QEMU did (`control.looking`), empty where `guest_failure`
    or `qemu_failure` says why they did not; `failures` say what else could not be looked at."""

    id: str
    status: str
    when: float
    netns: str = ""
    problem: str = ""
    accelerator: str = ""
    networks: list[str] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)
    guest: dict[str, Any] = field(default_factory=dict)
    guest_failure: str = ""
    qemu: dict[str, Any] = field(default_factory=dict)
    qemu_failure: str = ""
    failures: list[str] = field(default_factory=list)
    complaints: list[Complaint] = field(default_factory=list)
