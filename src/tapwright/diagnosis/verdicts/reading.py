"""What rules read in a case: outcomes of probes, tables of the guest and of the host."""

import errno
import ipaddress
from typing import Any

from tapwright.diagnosis import way as ways
from tapwright.diagnosis.case import BRIDGE, OUT, PEER, TAP, Case
from tapwright.diagnosis.facts import Bridge
from tapwright.diagnosis.way import Point
from tapwright.linux.lookup import Entry
from tapwright.linux.probes import ANSWERED, SILENT

DEFAULTS = ("0.0.0.0/0", "::/0")
Json = dict[str, Any]


def arrives(case: Case) -> bool:
    """Whether the target answered: to a small packet, and to one of the guest's MTU."""
    if outcome_of(case, "echo") == ANSWERED and not large_arrives(case):
        return False
    if not case.wish.port:
        return outcome_of(case, "echo") == ANSWERED
    if not case.wish.udp:
        return outcome_of(case, "tcp") == ANSWERED
    if outcome_of(case, "udp") != SILENT:
        return outcome_of(case, "udp") == ANSWERED
    # A datagram needs no answer; a target that refuses one does answer.
    return outcome_of(case, "echo") == ANSWERED and not case.drops


def large_arrives(case: Case) -> bool:
    large = case.probes.get("large")
    if large is None or large["outcome"] == ANSWERED:
        return True
    # A sender that learns the path's MTU by ICMP can send smaller packets.
    return bool(large["error"] == errno.EMSGSIZE and large["origin"] == "icmp")


def outcome_of(case: Case, name: str) -> str:
    return str(case.probes.get(name, {}).get("outcome", ""))


def error_of(case: Case) -> int:
    for name in ("tcp", "udp", "echo"):
        if error := case.probes.get(name, {}).get("error", 0):
            return int(error)
    return 0


def wanted_routes(case: Case, versions: tuple[int, ...] = ()) -> list[ways.Route]:
    """Return the routes of the namespace. Those without a gateway come first: routes with a
    gateway need them."""
    of = versions or (case.version,)
    found = [r for r in case.way.wanted_routes or [] if version_of(r.destination) in of]
    return sorted(found, key=lambda route: bool(route.gateway))


def version_of(address: str) -> int:
    return 6 if ":" in address else 4


def guest_routes(case: Case) -> list[Json]:
    return list(case.guest.get("routes", []))


def guest_link(case: Case) -> Json:
    """Return the guest's NIC on this way; empty if the guest has none."""
    for link in case.guest.get("links", []):
        if link["name"] == case.way.nic:
            return dict(link)
    return {}


def with_port(address: str, port: int) -> str:
    """Return an address as `--to` takes it. Port 0 means no port."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def best_route(target: str, routes: list[Entry]) -> Entry | None:
    """Return the most specific route to the target. All routes are of one version of IP."""
    address = ipaddress.ip_address(target)
    found = [
        route
        for route in routes
        if address in ipaddress.ip_network(route.destination, strict=False)
    ]
    return max(
        found,
        key=lambda r: (int(r.destination.rpartition("/")[2]), -r.metric),
        default=None,
    )


def next_hop(case: Case) -> str:
    if case.wish.towards:
        return ""
    return (case.path.gateway or case.target) if case.path else case.target


def called(point: Point) -> str:
    words = {
        ways.TAP: "the TAP",
        ways.INTERFACE: "the interface",
        ways.PEER: "the host's end",
        ways.BRIDGE: "the bridge",
        ways.PARENT: "the parent",
    }
    where = "" if point.place == ways.ON_HOST else " in the sandbox's namespace"
    return f"{words.get(point.kind, point.kind)} {point.name}{where}"


def hop_of(point: Point) -> str:
    return {ways.TAP: TAP, ways.QEMU_NIC: "QEMU"}.get(point.kind, point.kind)


def hop_of_name(case: Case, place: str, name: str) -> str:
    for station in case.stations:
        if (station.place, station.name) == (place, name):
            return station.key
    return name


def bridges_of(case: Case) -> list[Bridge]:
    station = case.station(BRIDGE)
    return [b for b in case.host.bridges if station and b.index == station.index]


def crosses_host(case: Case) -> bool:
    """Whether the host's IP stack is on the way: the next hop or the target is its address."""
    return bool(ingress(case)) and (
        case.wish.towards or case.is_local or next_hop(case) in case.host.addresses
    )


def ingress(case: Case) -> str:
    """Return the interface at which the host's IP stack receives the guest's packets."""
    for key in (BRIDGE, PEER):
        if station := case.station(key):
            return station.name
    return ""


def egress(case: Case) -> str:
    station = case.station(OUT)
    return station.name if station else ""


def prefix_length(case: Case) -> str:
    for address in case.way.wanted:
        if address.partition("/")[0] == case.own:
            return address.partition("/")[2]
    return "24" if case.version == 4 else "64"
