"""Says what is wrong with a picture, from the picture alone. Pure.

A complaint names something that keeps packets from arriving, or that may do so. What a healthy
sandbox may have too (a few dropped packets, an extra address in the guest) is no complaint.
"""

import ipaddress
import itertools
from collections import Counter
from collections.abc import Iterator

from tapwright.diagnosis import way
from tapwright.diagnosis.way import ERROR, WARNING, Complaint, Edge, Picture, Point, Way
from tapwright.state.record import RUNNING

LEAST_DROPS, LEAST_SHARE = 20, 0.01
"""Fewer dropped packets than this, or a smaller share of all packets, are no complaint."""

_LAYERS = (way.GUEST_NIC, way.TAP, way.INTERFACE, way.PEER, way.BRIDGE, way.OVS, way.PARENT)
_SAME_MAC = ("tcfilter", "tap", "existing_macvtap")


def check(picture: Picture) -> Picture:
    """Add the complaints to a picture, and return it."""
    picture.complaints = [*_of_sandbox(picture)]
    for each in picture.ways:
        for severity, at, what, remedy in _of_way(each):
            picture.complaints.append(Complaint(what, severity, each.nic, at, remedy))
    return picture


def check_all(pictures: list[Picture]) -> None:
    """Add a complaint where several sandboxes of a host have the same MAC address or IP address in
    one bridge. Each of these sandboxes gets the complaint."""
    seen: dict[tuple[str, str], list[tuple[Picture, Way]]] = {}
    for picture in pictures:
        for each in picture.ways:
            bridge = each.point(way.BRIDGE, way.OVS, way.PARENT)
            if bridge is None:
                continue
            segment = f"{bridge.place} {bridge.name}"
            for what in dict.fromkeys([each.mac, *(a.partition("/")[0] for a in each.wanted)]):
                seen.setdefault((segment, what), []).append((picture, each))
    for (segment, what), holders in seen.items():
        if len({picture.id for picture, _ in holders}) < 2:
            continue
        for picture, each in holders:
            others = sorted({one.id for one, _ in holders} - {picture.id})
            name = segment.rpartition(" ")[2]
            picture.complaints.append(
                Complaint(
                    f"{what} is also that of {', '.join(others)}, in the same bridge {name}",
                    ERROR,
                    each.nic,
                    0,
                    "delete one of them, or give it another",
                )
            )


_Found = tuple[str, int, str, str]  # severity, number of the point, what, remedy


def _of_sandbox(picture: Picture) -> Iterator[Complaint]:
    if picture.status != RUNNING:
        reason = f": {picture.problem}" if picture.problem else ""
        yield Complaint(f"the sandbox is {picture.status}{reason}")
        return
    if picture.guest_failure and picture.guest_failure == picture.qemu_failure:
        # A supervisor of another version may not know the request; packets still arrive.
        yield Complaint(f"guest and QEMU can't be asked: {picture.guest_failure}", WARNING)
    elif picture.guest_failure:
        yield Complaint(
            f"the guest does not say how its network is: {picture.guest_failure}", WARNING
        )
    if picture.qemu_failure and picture.qemu_failure != picture.guest_failure:
        yield Complaint(f"QEMU does not answer: {picture.qemu_failure}")
    for failure in picture.failures:
        yield Complaint(failure, WARNING)


def _of_way(each: Way) -> Iterator[_Found]:
    yield from _states(each)
    for number, point in enumerate(each.points):
        yield from _drops(number, point, each)
    yield from _mtus(each)
    yield from _macs(each)
    yield from _addresses(each)
    yield from _routes(each)
    yield from _filters(each)
    yield from _bridge(each)
    yield from _neighbours(each)


def _states(each: Way) -> Iterator[_Found]:
    """Complain of points that are down or missing. A missing carrier that follows from one of
    these gets no complaint of its own."""
    is_cut = any(point.state in (way.DOWN, way.MISSING) for point in each.points)
    for number, point in enumerate(each.points):
        name = _called(point)
        if point.kind == way.QEMU_NIC and point.state == way.DOWN:
            yield ERROR, number, f"{name}: {'; '.join(point.facts)}", ""
        elif point.state == way.DOWN:
            yield ERROR, number, f"{name} is down", f"{_ip(point)} link set {point.name} up"
        elif point.state == way.MISSING and point.kind != way.FILTERS:
            yield ERROR, number, f"{name} is missing", ""
        elif point.state == way.NO_CARRIER and not is_cut:
            yield ERROR, number, f"{name} has no carrier", ""
            is_cut = True
        for fact in point.facts:
            if fact.startswith("port is ") and not is_cut:
                yield ERROR, number, f"{name}: its {fact}, and not forwarding", ""


def _called(point: Point) -> str:
    words = {
        way.GUEST_NIC: "the guest's NIC",
        way.QEMU_NIC: "QEMU's NIC",
        way.TAP: "the TAP",
        way.INTERFACE: "the interface",
        way.PEER: "its peer",
        way.BRIDGE: "the bridge",
        way.OVS: "the bridge of Open vSwitch",
        way.PARENT: "the parent",
        way.HOST_NIC: "the host's NIC",
    }
    return f"{words.get(point.kind, point.kind)} {point.name}"


def _ip(point: Point) -> str:
    """Return the `ip` command that works in the place of the point."""
    if point.place == way.ON_HOST:
        return "ip"
    if point.place == way.IN_GUEST:
        return "in the guest: ip"
    return f"nsenter --net={point.place} ip"


def _drops(number: int, point: Point, each: Way) -> Iterator[_Found]:
    if point.kind in (way.BRIDGE, way.OVS, way.GATEWAY, way.FILTERS):
        return  # a bridge drops what is sent while it has no port
    edges: list[Edge] = each.edges[number - 1 : number] if number else each.edges[:1]
    for edge in edges:
        for one, direction in ((edge.outward, "from the guest"), (edge.inward, "to the guest")):
            if one and matters(one.dropped, one.packets):
                text = f"{_called(point)} dropped {one.dropped} packets {direction}"
                if point.kind != way.QEMU_NIC:
                    yield WARNING, number, text, ""
            if one and matters(one.errors, one.packets) and point.kind != way.QEMU_NIC:
                yield WARNING, number, f"{_called(point)} had {one.errors} errors {direction}", ""
    if point.queue_dropped >= LEAST_DROPS:
        yield (
            *(WARNING, number),
            f"the queue of {_called(point)} dropped {point.queue_dropped} packets",
            f"a limit of its rate does that (tc -s qdisc show dev {point.name})",
        )


def matters(dropped: int, packets: int) -> bool:
    """Whether the number of dropped packets is worth a complaint, beside `packets` that arrived."""
    return dropped >= LEAST_DROPS and dropped >= LEAST_SHARE * (packets + dropped)


def _mtus(each: Way) -> Iterator[_Found]:
    """Complain of MTUs that differ: a device silently drops a frame that is larger than its MTU."""
    chain = [
        (number, point)
        for number, point in enumerate(each.points)
        if point.kind in _LAYERS and point.mtu and point.state != way.MISSING
    ]
    for (_, one), (number, other) in itertools.pairwise(chain):
        if one.mtu == other.mtu or _is_allowed(one, other):
            continue
        usual = Counter(point.mtu for _, point in chain).most_common(1)[0][0]
        odd = one if one.mtu != usual else other
        yield (
            *(WARNING if other.kind in (way.BRIDGE, way.OVS) else ERROR, number),
            f"the MTU of {_called(one)} is {one.mtu}, that of {_called(other)} {other.mtu}: larger "
            f"frames than {min(one.mtu, other.mtu)} are lost on the way",
            f"{_ip(odd)} link set {odd.name} mtu {usual}",
        )


def _is_allowed(one: Point, other: Point) -> bool:
    """Whether two neighbouring MTUs may differ. An interface on a parent may have a smaller one. A
    TAP's largest MTU is 65521, so its neighbour may have a larger one."""
    if other.kind == way.PARENT:
        return one.mtu <= other.mtu
    if way.TAP in (one.kind, other.kind):
        return max(one.mtu, other.mtu) > 65521 and min(one.mtu, other.mtu) == 65521
    # A bridge forwards frames of its ports' sizes; its own MTU limits what the host sends.
    return other.kind in (way.BRIDGE, way.OVS) and one.mtu < other.mtu


def _macs(each: Way) -> Iterator[_Found]:
    for number, point in enumerate(each.points):
        if not point.mac or point.mac == each.mac:
            continue
        is_its = point.kind in (way.GUEST_NIC, way.QEMU_NIC) or (
            each.joined_by in _SAME_MAC
            and point.kind == (way.INTERFACE if each.joined_by == "tcfilter" else "")
        )
        if is_its:
            yield (
                *(ERROR, number),
                f"the MAC address of {_called(point)} is {point.mac}, that of the sandbox's "
                f"{each.nic} {each.mac}: what is sent to one is not for the other",
                f"{_ip(point)} link set {point.name} address {each.mac}",
            )


def _addresses(each: Way) -> Iterator[_Found]:
    guest, interface = each.points[0], each.point(way.INTERFACE)
    if guest.kind != way.GUEST_NIC or guest.state in (way.UNKNOWN, way.MISSING):
        return
    has = set(map(_normal, guest.addresses))
    wanted = dict.fromkeys(each.wanted, "")
    if interface and each.wanted_routes is not None:
        wanted = {
            address: f", which the interface {interface.name} has"
            for address in interface.addresses
            if not _is_link_local(address)
        }
    for address, why in wanted.items():
        if _normal(address) not in has:
            yield (
                *(ERROR, 0),
                f"the guest's {guest.name} lacks the address {address}{why}",
                f"{_ip(guest)} address add {address} dev {guest.name}",
            )
    more = [a for a in guest.addresses if _normal(a) not in set(map(_normal, wanted))]
    for address in more:
        if not _is_link_local(address) and interface and each.wanted_routes is not None:
            yield (
                *(WARNING, 0),
                f"the guest's {guest.name} has the address {address}, and the interface "
                f"{interface.name} has not: nobody gave it out",
                "",
            )


def _normal(address: str) -> str:
    try:
        return str(ipaddress.ip_interface(address))
    except ValueError:
        return address


def _is_link_local(address: str) -> bool:
    try:
        found = ipaddress.ip_interface(address)
    except ValueError:
        return False
    return found.version == 6 and found.is_link_local


def _routes(each: Way) -> Iterator[_Found]:
    guest = each.points[0]
    if each.routes is None or each.wanted_routes is None or guest.state != way.UP:
        return
    has = {(route.destination, route.gateway) for route in each.routes}
    for route in each.wanted_routes:
        if (route.destination, route.gateway) in has or route.destination.startswith("fe80:"):
            continue
        via = f" via {route.gateway}" if route.gateway else ""
        yield (
            *(ERROR, 0),
            f"the guest lacks the route to {route.destination}{via}, which the namespace has",
            f"{_ip(guest)} route add {route.destination}{via} dev {guest.name}",
        )


def _filters(each: Way) -> Iterator[_Found]:
    tap, interface = each.point(way.TAP), each.point(way.INTERFACE)
    for number, point in enumerate(each.points):
        if point.kind != way.FILTERS or not tap or not interface:
            continue
        redirected = {(one.source, one.target) for one in point.filters if one.what == "redirect"}
        for source, target in ((tap, interface), (interface, tap)):
            if (source.name, target.name) not in redirected and way.MISSING not in (
                *(source.state, target.state),
            ):
                yield (
                    *(ERROR, number),
                    f"the filter is missing that sends what {source.name} receives to "
                    f"{target.name}",
                    "take the NIC out and in again: bring the interface down and up",
                )


def _bridge(each: Way) -> Iterator[_Found]:
    """Complain of interfaces that the CNI result names and that are not on the way."""
    on_the_way = {point.name for point in each.points}
    for name, kind in each.promised.items():
        number = next((n for n, p in enumerate(each.points) if p.kind == way.PEER), -1)
        if name in on_the_way:
            continue
        peer = each.points[number] if number >= 0 else None
        if kind == "bridge" and peer:
            yield (
                *(ERROR, number),
                f"its peer {peer.name} is no port of the bridge {name} any more",
                f"ip link set {peer.name} master {name}",
            )
        elif not kind:
            last = len(each.points) - 1
            yield ERROR, last, f"{name}, which the CNI plugin made on the host, is gone", ""


def _neighbours(each: Way) -> Iterator[_Found]:
    for fact in each.points[0].facts if each.points else ():
        if fact.startswith("neighbour ") and ("(failed)" in fact or "(incomplete)" in fact):
            address = fact.split()[1]
            yield (
                *(WARNING, 0),
                f"the gateway {address} has not answered when the guest asked for its MAC address",
                "",
            )
