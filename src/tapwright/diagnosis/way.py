"""The way of a packet, as plain data: from a NIC of the guest out to the wire, point by point.

`dataclasses.asdict` makes JSON of all of it. Fields are added only.
"""

from collections.abc import Iterable
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
"""The states of a point. UNKNOWN is for a point that could not be read."""

ERROR, WARNING = "error", "warning"
"""Severities of complaints. ERROR: packets do not arrive. WARNING: some may not arrive."""


@dataclass
class Count:
    """The traffic of one direction: bytes, packets, and how many packets had errors or were
    dropped."""

    bytes: int = 0
    packets: int = 0
    errors: int = 0
    dropped: int = 0


@dataclass
class Edge:
    """The join of a point with the next one. `how` says in words how they are joined. `outward`
    counts the traffic away from the guest, `inward` the traffic towards it; None if nothing counts
    that direction."""

    how: str
    outward: Count | None = None
    inward: Count | None = None


@dataclass
class Filter:
    """A tc filter from one device to another, both by name. `what` is `redirect` or `mirror`;
    `count` is the traffic through the filter."""

    what: str
    source: str
    target: str
    count: Count


@dataclass
class Point:
    """A point that a packet passes. `place` is IN_GUEST, IN_QEMU, ON_HOST, or the path of a network
    namespace. `addresses` are ADDRESS/PREFIX; an `mtu` of 0 means unknown. `made_by` is the CNI
    plugin that made the point, or `tapwright`. `driver` is the kernel's name of the interface's
    kind, `index` the interface's index (0 if it is no interface). `filters` are those of a point
    of kind FILTERS. `queue_dropped` counts packets that the qdiscs dropped. `facts` has further
    facts, in words."""

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
    """`destination` is ADDRESS/PREFIX; `gateway` is empty for a network on the link."""

    destination: str
    gateway: str = ""
    metric: int = 0
    table: int = 254


@dataclass
class Way:
    """The way of a NIC, from the guest outwards. `edges[n]` joins `points[n]` and the next point.

    `network` is the NIC's CNI network, `plugins` that network's chain, `joined_by` the kind of the
    endpoint (`endpoint.kinds`). `wanted` are the addresses that the guest should have.
    `wanted_routes` are the routes that it should have, None if it follows no interface; `routes`
    are the routes that it has. `promised` maps the host's interfaces in the CNI result to their
    kinds.
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
        """Return the first point of one of these kinds."""
        return next((point for point in self.points if point.kind in kinds), None)


@dataclass
class Complaint:
    """Something wrong with the NIC `nic`. `at` is the number of the point on its way, -1 for the
    sandbox as a whole. `remedy` says what to do, if that is known."""

    what: str
    severity: str = ERROR
    nic: str = ""
    at: int = -1
    remedy: str = ""


def worst(complaints: Iterable[Complaint]) -> str:
    """ERROR, WARNING or empty."""
    found = {complaint.severity for complaint in complaints}
    return ERROR if ERROR in found else WARNING if found else ""


@dataclass
class Picture:
    """A sandbox's network at one moment, `when`, in seconds since the epoch. `guest` is the agent's
    answer (`agent.guest.looking`), `qemu` that of QEMU (`control.looking`). Where one is empty,
    `guest_failure` or `qemu_failure` says why. `failures` says what else could not be read."""

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
