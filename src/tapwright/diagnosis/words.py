"""The words of the drawings, the same on a terminal and in a browser."""

import os
from collections.abc import Sequence

from tapwright.diagnosis import checking, way
from tapwright.diagnosis.way import Complaint, Count, Edge, Picture, Point, Way
from tapwright.errors import shown

MOST_LINES = 6
"""The most addresses, routes and filters that are shown of one point, of each kind."""

_KINDS = {
    way.GUEST_NIC: "NIC",
    way.QEMU_NIC: "virtio NIC",
    way.TAP: "TAP",
    way.FILTERS: "",
    way.SOCKET: "vhost-user",
    way.INTERFACE: "interface",
    way.PEER: "veth peer",
    way.PARENT: "parent",
    way.BRIDGE: "bridge",
    way.OVS: "Open vSwitch",
    way.GATEWAY: "gateway",
    way.HOST_NIC: "host NIC",
}


def place(name: str) -> str:
    """Return the title of the box around the points of one place."""
    if name in (way.IN_GUEST, way.ON_HOST):
        return name
    if name == way.IN_QEMU:
        return "QEMU"
    if name.startswith("/"):
        return f"namespace {os.path.basename(name)}"
    return name


def name(point: Point) -> str:
    kind = _KINDS.get(point.kind, point.kind)
    if point.kind == way.TAP and point.driver == "macvtap":
        kind = "macvtap"
    state = f"  {point.state}" if point.state not in (way.UP, way.UNKNOWN) else ""
    return shown(f"{kind} {point.name}".strip() + state)


def about(point: Point) -> str:
    """Return MTU, MAC address and maker of a point, as far as these are known."""
    parts = [f"mtu {point.mtu}"] if point.mtu else []
    parts += [point.mac] if point.mac else []
    parts += [f"by {point.made_by}"] if point.made_by else []
    return shown("  ".join(parts))


def head(point: Point) -> str:
    """Return a point in one line."""
    return "  ".join(filter(None, (name(point), about(point))))


def lines(point: Point, of: Way) -> list[str]:
    """Return the further lines of a point: addresses, routes, filters, drops and facts."""
    found = []
    if point.addresses:
        found.append(_some(point.addresses, "  "))
    if point.kind == way.GUEST_NIC and of.routes is not None:
        routes = [
            _route(one.destination, one.gateway)
            for one in of.routes
            if one.gateway or one.destination in ("0.0.0.0/0", "::/0")
        ]
        found += _each(routes)
    found += _each(
        [
            f"{one.what} {one.source} → {one.target}: {count(one.count)}"
            for one in point.filters
            if one.count.packets or one.what != "mirror"
        ]
    )
    if point.queue_dropped:
        found.append(f"its queues dropped {point.queue_dropped}")
    found += _each(point.facts)
    return [shown(line) for line in found]


def _route(destination: str, gateway: str) -> str:
    target = "default" if destination in ("0.0.0.0/0", "::/0") else destination
    return f"{target} via {gateway}" if gateway else f"{target} direct"


def _some(found: Sequence[str], between: str) -> str:
    more = len(found) - MOST_LINES
    return between.join(found[:MOST_LINES]) + (f"{between}and {more} more" if more > 0 else "")


def _each(found: Sequence[str]) -> list[str]:
    more = len(found) - MOST_LINES
    return [*found[:MOST_LINES], *([f"and {more} more"] if more > 0 else [])]


def edge(one: Edge) -> list[str]:
    """Return how two points are joined, and what went each way: ↓ is away from the guest."""
    parts = [shown(one.how)] if one.how else []
    if one.outward:
        parts.append(f"↓ {count(one.outward)}")
    if one.inward:
        parts.append(f"↑ {count(one.inward)}")
    return parts


def is_lossy(one: Edge) -> bool:
    """Whether an edge lost enough packets for a complaint (`checking.matters`)."""
    return any(
        count and checking.matters(max(count.dropped, count.errors), count.packets)
        for count in (one.outward, one.inward)
    )


def count(one: Count) -> str:
    """Return packets and bytes, with drops and errors if there are any."""
    text = f"{_packets(one.packets)}, {size(one.bytes)}"
    if one.dropped:
        text += f", {one.dropped} dropped"
    if one.errors:
        text += f", {one.errors} errors"
    return text


def _packets(number: int) -> str:
    return "1 packet" if number == 1 else f"{number} packets"


def size(number: int) -> str:
    """Return a number of bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000  # type: ignore[assignment]  # from here on it is shown with a fraction
    raise AssertionError


def title(picture: Picture) -> str:
    """Return a picture in one line, without its complaints."""
    how = f"{picture.status} ({picture.accelerator})" if picture.accelerator else picture.status
    nics = "1 NIC" if len(picture.ways) == 1 else f"{len(picture.ways)} NICs"
    return shown(f"{picture.id}  {how}  {nics}")


def verdict(complaints: Sequence[Complaint]) -> str:
    """Return the number of complaints, in words."""
    if not complaints:
        return "no complaint"
    return "1 complaint" if len(complaints) == 1 else f"{len(complaints)} complaints"


def of_way(one: Way) -> str:
    """Return the heading of a NIC's way."""
    parts = [one.nic]
    if one.network:
        parts.append(f"network {one.network}")
    if one.plugins:
        parts.append(f"plugins {', '.join(one.plugins)}")
    if one.joined_by:
        parts.append(f"model {one.joined_by}")
    return shown("  ".join(parts))


def complaint(one: Complaint) -> str:
    """Return a complaint with its remedy."""
    remedy = f" ({one.remedy})" if one.remedy else ""
    return shown(f"{one.what}{remedy}")
