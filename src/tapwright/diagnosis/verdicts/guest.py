"""The guest's own network: its NIC, routes and neighbours."""

from collections.abc import Iterator

from tapwright.diagnosis.case import GUEST, Case, Verdict
from tapwright.diagnosis.verdicts.reading import (
    DEFAULTS,
    best_route,
    guest_link,
    guest_routes,
    next_hop,
    wanted_routes,
)
from tapwright.diagnosis.verdicts.remedies import (
    at_place,
    in_guest,
    missing_addresses,
    missing_routes,
    replaced,
    set_up,
)
from tapwright.linux import probes
from tapwright.linux.lookup import SPECIAL, Entry


def of_nic(case: Case) -> Iterator[Verdict]:
    point = case.way.points[0] if case.way.points else None
    link = guest_link(case)
    if point is None or not case.guest:
        return
    if not link:
        yield Verdict(
            GUEST,
            f"the guest has no NIC {case.way.nic} any more ({case.way.mac})",
            advice="take the NIC out and in again: bring its interface down and up",
        )
        return
    if not link["up"]:
        yield Verdict(GUEST, f"the guest's NIC {link['name']} is down", set_up(case, point))
    version = case.version
    if version == 6 and link["settings"].get("disable_ipv6") == "1":
        commands = [in_guest(case, f"sysctl -w net.ipv6.conf.{link['name']}.disable_ipv6=0")]
        commands += missing_addresses(case, link)
        yield Verdict(
            GUEST,
            f"IPv6 is off on the guest's NIC {link['name']} (disable_ipv6 = 1)",
            commands + missing_routes(case, everything=True),
        )
    if not link["running"]:
        yield Verdict(
            "QEMU",
            f"the guest's NIC {link['name']} has no carrier: QEMU has taken its link down",
            advice="take the NIC out and in again",
        )
    if link["mac"] != case.way.mac:
        yield Verdict(
            GUEST,
            f"the MAC address of the guest's NIC {link['name']} is {link['mac']}, and answers are "
            f"sent to {case.way.mac}",
            [in_guest(case, f"ip link set {link['name']} address {case.way.mac}")],
        )
    if commands := missing_addresses(case, link):
        lacking = [command.split()[-3] for command in commands]
        yield Verdict(
            GUEST,
            f"the guest's NIC {link['name']} lacks its address {', '.join(lacking)}",
            commands + missing_routes(case, everything=True),
        )


def of_route(case: Case) -> Iterator[Verdict]:
    """Judge the guest's route to the target."""
    if case.wish.towards and not case.path:
        return
    mark = ":" if case.version == 6 else "."
    routes = [r for r in guest_routes(case) if mark in r["destination"]]
    special = best_route(case.target, [Entry(**r) for r in routes]) if case.target else None
    if special and special.kind in SPECIAL:
        family = "-6 " if case.version == 6 else ""
        table = f" table {special.table}" if special.table != 254 else ""
        word = f"ip {family}route del {special.kind} {special.destination}{table}"
        commands = [in_guest(case, word)]
        inside = [one for one in case.inside_routes if one[:2] == special[:2]]
        if inside and case.netns:
            commands.append(at_place(case.netns, word))
        yield Verdict(
            GUEST,
            f"the guest has a route of the kind {special.kind} to {special.destination}: it drops "
            "what it sends there",
            commands,
        )
    default = [r for r in routes if r["destination"] in DEFAULTS and r["kind"] == "unicast"]
    unreachable = case.path is not None and case.path.kind == ""
    if (unreachable or not case.target) and not default:
        commands = missing_routes(case)
        if not any(route.destination in DEFAULTS for route in wanted_routes(case)):
            yield from _of_advertisements(case)
        named = case.target or "anywhere beyond its own network"
        yield Verdict(
            GUEST,
            f"the guest has no default route, and no other to {named}",
            commands,
            ""
            if commands
            else "the namespace has none either: give the network one "
            '(routes in the configuration of its IPAM plugin, as {"dst": "0.0.0.0/0"})',
        )
    if unreachable:
        yield Verdict(GUEST, f"the guest has no route to {case.target}", missing_routes(case))
    wanted = {r.destination: r for r in wanted_routes(case)}
    for route in routes:
        right = wanted.get(route["destination"])
        if (
            right
            and route["table"] == 254
            and right.gateway != route["gateway"]
            and case.path
            and case.path.gateway == route["gateway"]
        ):
            commands = [in_guest(case, replaced(right, case.way.nic))]
            if case.version == 6:  # `ip -6 route replace` adds a second route beside the wrong one
                via = f" via {route['gateway']}" if route["gateway"] else ""
                delete = f"ip -6 route del {route['destination']}{via}"
                commands.insert(0, in_guest(case, delete))
            yield Verdict(
                GUEST,
                f"the guest's route to {route['destination']} has the wrong gateway "
                f"{route['gateway'] or '(none)'}; its network's is {right.gateway or '(none)'}",
                commands,
            )


def _of_advertisements(case: Case) -> Iterator[Verdict]:
    """Judge router advertisements: a router offers a default route, and the guest refuses it."""
    router = case.probes.get("router", {}).get("reporter")
    link = next(filter(probes.refuses_routers, case.guest.get("links", [])), None)
    if router and link:
        name, value = link["name"], link["settings"].get("accept_ra", "")
        key = f"net.ipv6.conf.{name}.accept_ra"
        commands = [in_guest(case, f"sysctl -w {key}=2")]
        if case.netns:  # the guest follows the settings of its namespace
            commands.append(at_place(case.netns, f"sysctl -w net.ipv6.conf.{name}.accept_ra=2"))
        yield Verdict(
            GUEST,
            f"the guest has no default route, and refuses the router advertisements of {router} "
            f"({key} = {value})",
            commands,
            "the route comes with the next advertisement. CNI plugins refuse them, for anybody on "
            "the link can send one: a route to ::/0 in the network's configuration is safer",
            evidence=[f"{router} answered a router solicitation"],
        )


def of_neighbour(case: Case) -> Iterator[Verdict]:
    """Judge the guest's permanent neighbours: a person or program entered a wrong MAC address."""
    hop = next_hop(case)
    for known in case.neighbours:
        if known["address"] != hop or known["state"] != "permanent":
            continue
        right = _mac_on_link(case, hop)
        if right and right != known["mac"]:
            name = case.way.nic
            yield Verdict(
                GUEST,
                f"the guest has {known['mac']} entered as the MAC address of {hop}, which has "
                f"{right}",
                [in_guest(case, f"arp -i {name} -d {hop}")]
                if case.version == 4
                else [in_guest(case, f"ip -6 neigh flush to {hop} dev {name} nud permanent")],
            )


def _mac_on_link(case: Case, address: str) -> str:
    """Return the MAC address of the host's interface that has this address; empty if none has."""
    name = case.host.addresses.get(address, "")
    station = next((one for one in case.stations if one.name == name and not one.place), None)
    return station.mac if station else ""
