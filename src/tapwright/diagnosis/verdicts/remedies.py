"""The commands of a remedy, as a person types them."""

import shlex

from tapwright.diagnosis import way as ways
from tapwright.diagnosis.case import Case
from tapwright.diagnosis.verdicts.reading import (
    DEFAULTS,
    Json,
    guest_link,
    guest_routes,
    version_of,
    wanted_routes,
)
from tapwright.diagnosis.way import Point


def in_guest(case: Case, command: str) -> str:
    return f"tapwright sandbox exec {case.sandbox} -- {command}"


def at_place(place: str, command: str) -> str:
    """Return a command that runs where an interface is: in the host's namespace, or in the one at
    a path."""
    if place in ("", ways.ON_HOST):
        return command
    return f"nsenter --net={shlex.quote(place)} {command}"


def set_up(case: Case, point: Point) -> list[str]:
    if point.place == ways.IN_GUEST:
        # A link that goes down loses its IPv6 addresses and routes, so both versions are set.
        commands = [in_guest(case, f"ip link set {point.name} up")]
        commands += missing_addresses(case, guest_link(case), (4, 6))
        return commands + missing_routes(case, everything=True, versions=(4, 6))
    return [at_place(point.place, f"ip link set {point.name} up")]


def missing_routes(
    case: Case, everything: bool = False, versions: tuple[int, ...] = ()
) -> list[str]:
    """Return the commands that add the namespace's routes which the guest lacks. `versions` are
    4, 6 or both; empty means the target's version."""
    has = {(r["destination"], r["gateway"]) for r in guest_routes(case)}
    commands = []
    for route in wanted_routes(case, versions):
        if route.destination.startswith("fe80") or (
            not everything and (route.destination, route.gateway) in has
        ):
            continue
        commands.append(in_guest(case, replaced(route, case.way.nic)))
    return commands


def replaced(route: ways.Route, nic: str) -> str:
    via = f" via {route.gateway}" if route.gateway else ""
    family = "-6 " if ":" in route.destination else ""
    destination = "default" if route.destination in DEFAULTS else route.destination
    return f"ip {family}route replace {destination}{via} dev {nic}"


def missing_addresses(case: Case, link: Json, versions: tuple[int, ...] = ()) -> list[str]:
    """Return the commands that add the addresses which the NIC lacks. Link-local addresses are
    left out, because the kernel makes them."""
    has = {a.partition("/")[0] for a in link["addresses"]}
    return [
        in_guest(case, f"ip address add {address} dev {link['name']}")
        for address in case.way.wanted
        if version_of(address) in (versions or (case.version,))
        and not address.startswith("fe80")
        and address.partition("/")[0] not in has
    ]
