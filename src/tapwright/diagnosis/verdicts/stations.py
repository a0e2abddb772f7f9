"""Where a packet and its answer were seen, station by station."""

from collections.abc import Callable

from tapwright.diagnosis.case import BRIDGE, GUEST, INTERFACE, OUT, PEER, TAP, Case, Station
from tapwright.diagnosis.verdicts.reading import crosses_host, outcome_of
from tapwright.linux.probes import ANSWERED
from tapwright.linux.sightings import Sighting


def is_request(case: Case) -> Callable[[Sighting], bool]:
    """Return a test for frames: is this frame the probe? An echo request is recognised by its
    token. TCP and UDP are recognised by the source port, which a masquerade keeps if it can."""
    if outcome_of(case, "echo") != ANSWERED:
        return lambda s: s.what == "echo-request" and s.marked
    kind, number = ("udp", "udp") if case.wish.udp else ("syn", "tcp")
    ours = case.probes.get(number, {}).get("port", 0)
    return lambda s: s.what == kind and s.source_port == ours


def is_reply(case: Case) -> Callable[[Sighting], bool]:
    if outcome_of(case, "echo") != ANSWERED:
        return lambda s: s.what == "echo-reply" and s.marked
    ours = case.probes.get("udp" if case.wish.udp else "tcp", {}).get("port", 0)
    return lambda s: s.what in ("syn-ack", "rst", "udp") and s.destination_port == ours


def path_of(case: Case) -> list[Station]:
    """Return the stations in the order in which the probe passes them."""
    order = [GUEST, TAP, INTERFACE, PEER, BRIDGE]
    if is_switched(case):
        order.remove(BRIDGE)
    if case.wish.towards:
        return [s for key in reversed(order) for s in case.stations if s.key == key]
    if not case.is_local and crosses_host(case):
        order.append(OUT)
    return [s for key in order for s in case.stations if s.key == key]


def is_switched(case: Case) -> bool:
    """Whether the bridge forwards the packet to another port, past the host's IP stack."""
    return bool(case.station(BRIDGE)) and not case.wish.towards and not crosses_host(case)


def last_seen(case: Case, is_it: Callable[[Sighting], bool], path: list[Station]) -> int:
    """Return how many stations of a path the packet passed."""
    passed = 0
    for number, station in enumerate(path, 1):
        if any(map(is_it, case.seen.get(station.key, []))):
            passed = number
    return passed


def names_of(stations: list[Station]) -> str:
    return ", ".join(station.name for station in stations)
