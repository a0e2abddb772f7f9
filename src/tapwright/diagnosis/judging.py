"""Says what is wrong, from the facts and sightings of a case. Pure.

The rules are tried in their order; the first one with a verdict wins. The order follows the packet
from the guest outwards: the host's rules do not matter for a packet that never left the guest.
Within a hop, a rule for what was seen to drop the packet comes before a rule for what may drop it.
"""

import contextlib
import errno
import ipaddress
import os
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from tapwright.diagnosis import vetting
from tapwright.diagnosis import way as ways
from tapwright.diagnosis.case import (
    BRIDGE,
    GUEST,
    INTERFACE,
    OUT,
    PEER,
    TAP,
    Case,
    Drop,
    Station,
    Verdict,
)
from tapwright.diagnosis.facts import Bridge, Port, readable
from tapwright.diagnosis.way import Point
from tapwright.linux import probes
from tapwright.linux.lookup import SPECIAL, Entry
from tapwright.linux.sightings import Sighting

_ANSWERED, _SILENT, _REFUSED = "answered", "silent", "refused"
_DEFAULTS = ("0.0.0.0/0", "::/0")
_FORWARDING = 3
_EVERYWHERE = str(ipaddress.IPv4Address(0)), str(ipaddress.IPv6Address(0))
_PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
_RCODES = {1: "a malformed question", 2: "a failure of its own", 4: "not implemented", 5: "refused"}

Json = dict[str, Any]
Rule = Callable[[Case], Iterator[Verdict]]


def judge(case: Case) -> Verdict | None:
    """Return what keeps the packet from arriving; None when the packet arrives."""
    for rule in _BEFORE:
        for verdict in rule(case):
            return verdict
    if arrives(case):
        return None
    found = next((verdict for rule in _RULES for verdict in rule(case)), None) or _unknown(case)
    if case.reasons:
        counts = ", ".join(f"{name} ({count})" for name, count in sorted(case.reasons.items()))
        found.evidence.append(
            f"the host's kernel dropped packets meanwhile, of any sender: {counts}"
        )
    return found


def arrives(case: Case) -> bool:
    """Whether the target answered: to a small packet, and to one of the guest's MTU."""
    if _outcome(case, "echo") == _ANSWERED and not _large_arrives(case):
        return False
    if not case.wish.port:
        return _outcome(case, "echo") == _ANSWERED
    if not case.wish.udp:
        return _outcome(case, "tcp") == _ANSWERED
    if _outcome(case, "udp") != _SILENT:
        return _outcome(case, "udp") == _ANSWERED
    # A datagram needs no answer; a target that refuses one does answer.
    return _outcome(case, "echo") == _ANSWERED and not case.drops


def _large_arrives(case: Case) -> bool:
    large = case.probes.get("large")
    if large is None or large["outcome"] == _ANSWERED:
        return True
    # A sender that learns the path's MTU by ICMP can send smaller packets.
    return bool(large["error"] == errno.EMSGSIZE and large["origin"] == "icmp")


def _outcome(case: Case, name: str) -> str:
    return str(case.probes.get(name, {}).get("outcome", ""))


def _error(case: Case) -> int:
    for name in ("tcp", "udp", "echo"):
        if error := case.probes.get(name, {}).get("error", 0):
            return int(error)
    return 0


# The commands of a remedy.


def _in_guest(case: Case, command: str) -> str:
    return f"tapwright sandbox exec {case.sandbox} -- {command}"


def _at(place: str, command: str) -> str:
    """Return a command that runs where an interface is: in the host's namespace, or in the one at
    a path."""
    if place in ("", ways.ON_HOST):
        return command
    return f"nsenter --net={shlex.quote(place)} {command}"


def _set_up(case: Case, point: Point) -> list[str]:
    if point.place == ways.IN_GUEST:
        # A link that goes down loses its IPv6 addresses and routes, so both versions are set.
        commands = [_in_guest(case, f"ip link set {point.name} up")]
        commands += _missing_addresses(case, _guest_link(case), (4, 6))
        return commands + _missing_routes(case, everything=True, versions=(4, 6))
    return [_at(point.place, f"ip link set {point.name} up")]


def _missing_routes(
    case: Case, everything: bool = False, versions: tuple[int, ...] = ()
) -> list[str]:
    """Return the commands that add the namespace's routes which the guest lacks. `versions` are
    4, 6 or both; empty means the target's version."""
    has = {(r["destination"], r["gateway"]) for r in _guest_routes(case)}
    commands = []
    for route in _wanted(case, versions):
        if route.destination.startswith("fe80") or (
            not everything and (route.destination, route.gateway) in has
        ):
            continue
        commands.append(_in_guest(case, _replaced(route, case.way.nic)))
    return commands


def _replaced(route: ways.Route, nic: str) -> str:
    via = f" via {route.gateway}" if route.gateway else ""
    family = "-6 " if ":" in route.destination else ""
    destination = "default" if route.destination in _DEFAULTS else route.destination
    return f"ip {family}route replace {destination}{via} dev {nic}"


def _wanted(case: Case, versions: tuple[int, ...] = ()) -> list[ways.Route]:
    """Return the routes of the namespace. Those without a gateway come first: routes with a
    gateway need them."""
    of = versions or (case.version,)
    found = [r for r in case.way.wanted_routes or [] if _version(r.destination) in of]
    return sorted(found, key=lambda route: bool(route.gateway))


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _guest_routes(case: Case) -> list[Json]:
    return list(case.guest.get("routes", []))


def _guest_link(case: Case) -> Json:
    """Return the guest's NIC on this way; empty if the guest has none."""
    for link in case.guest.get("links", []):
        if link["name"] == case.way.nic:
            return dict(link)
    return {}


# Before all other rules: do the processes run, and is there a NIC and a target?


def _of_processes(case: Case) -> Iterator[Verdict]:
    if case.status != "running":
        reason = f": {case.problem}" if case.problem else ""
        yield Verdict(
            "supervisor",
            f"the sandbox is {case.status}{reason}",
            [f"tapwright sandbox delete {case.sandbox}"],
            "then run it anew, as it was run before",
        )
    for process in case.processes:
        if process.state in ("T", "t"):
            yield Verdict(
                process.name.removeprefix("the "),
                f"{process.name} is stopped (process {process.pid}, state {process.state}): "
                "the guest stands still, or nothing can reach it",
                [f"kill -CONT {process.pid}"],
            )
        elif process.state in ("Z", ""):
            yield Verdict(
                process.name.removeprefix("the "),
                f"{process.name} has ended (process {process.pid})",
                [f"tapwright sandbox delete {case.sandbox}"],
                "then run it anew",
            )
    if case.guest_failure:
        yield Verdict(
            "agent",
            f"the agent in the guest does not answer: {case.guest_failure}",
            [f"tapwright sandbox delete {case.sandbox}"],
            "then run it anew; the sandbox's log may say what happened to the agent",
        )


def _of_record(case: Case) -> Iterator[Verdict]:
    if not case.way.nic:
        yield Verdict(
            "guest",
            "the guest has no NIC at all",
            advice="run the sandbox with --network, or give it a NIC by kata-network add-iface",
        )


def _of_names(case: Case) -> Iterator[Verdict]:
    """Judge DNS: whether a name server knows the target's name."""
    if case.target or not case.asked:
        if not case.target and _is_name(case.wish.target):
            yield from _no_server(case)
        return
    promised = case.promised
    servers = list(dict.fromkeys(one["server"] for one in case.asked))
    text = ", ".join(servers)
    mend = _resolv_conf(case)
    if all(one["outcome"] != _ANSWERED for one in case.asked):
        refused = any(one["outcome"] == _REFUSED for one in case.asked)
        if promised.get("nameservers") and not set(servers) & set(promised["nameservers"]):
            yield Verdict(
                "DNS",
                f"the guest asks the name server {text}, which does not answer; its network has "
                f"{', '.join(promised['nameservers'])}",
                mend,
            )
        yield Verdict(
            "DNS",
            f"the name server {text} "
            + (
                "refuses: nothing listens on its port 53"
                if refused
                else "does not answer: it can't be reached, or is not there"
            ),
            advice="start the name server, or see why it is not reached: tapwright sandbox "
            f"explain {case.sandbox} --to {_with_port(servers[0], 53)} --udp",
        )
    codes = {one["code"] for one in case.asked if one["outcome"] == _ANSWERED}
    for code in sorted(codes & set(_RCODES)):
        yield Verdict(
            "DNS",
            f"the name server {text} answers {_RCODES[code]} (code {code})",
            advice="configure the name server to answer questions from this network",
        )
    search = list(case.guest.get("resolv", {}).get("search", []))
    if promised.get("search") and search != promised["search"]:
        yield Verdict(
            "DNS",
            f"no server knows {case.wish.target} in the search domain "
            f"{' '.join(search) or '(none)'}; the network's search domain is "
            + " ".join(promised["search"]),
            mend,
        )
    yield Verdict(
        "DNS",
        f"the name server {text} knows no such name as {case.wish.target} (asked: "
        + ", ".join(dict.fromkeys(one["name"] for one in case.asked))
        + ")",
        advice="see whether the name is right, and the search domains of /etc/resolv.conf",
    )


def _with_port(address: str, port: int) -> str:
    """Return an address as `--to` takes it. Port 0 means no port."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _no_server(case: Case) -> Iterator[Verdict]:
    mend = _resolv_conf(case)
    yield Verdict(
        "DNS",
        "the guest's /etc/resolv.conf names no name server"
        + (", and its network has some" if mend else ""),
        mend,
        "" if mend else "give the network one (dns in its CNI configuration)",
    )


def _resolv_conf(case: Case) -> list[str]:
    """Return the command that writes the name servers and search domains of the networks."""
    promised = case.promised
    servers, search = promised.get("nameservers", []), promised.get("search", [])
    try:  # A plugin may take these values from the network's DHCP server, so they are checked.
        lines = [f"nameserver {vetting.address(server)}" for server in servers]
        if search:
            lines.append(f"search {' '.join(map(vetting.name, search))}")
    except ValueError:
        return []
    if not lines:
        return []
    text = "\\n".join(lines)
    return [_in_guest(case, f"sh -c \"printf '{text}\\n' > /etc/resolv.conf\"")]


def _is_name(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return bool(text)
    return False


def _of_duplicates(case: Case) -> Iterator[Verdict]:
    """Judge duplicate addresses, even where packets arrive: with a duplicate, packets arrive by
    chance."""
    own = {point.mac for point in case.way.points}
    for name, probe in case.probes.items():
        # Without its tc filters the TAP answers for the namespace; that is no duplicate.
        macs = [mac for mac in probe["macs"] if mac not in own]
        if name.startswith("duplicate ") and macs:
            address = name.removeprefix("duplicate ")
            where = _port_of(case, macs[0])
            yield Verdict(
                "bridge" if case.station(BRIDGE) else "interface",
                f"{address} is a duplicate address: {', '.join(macs)} answers for it, too"
                + (f", which is beyond the port {where}" if where else ""),
                advice="take the address from the other one, or give this sandbox another",
                evidence=[f"asked on the link who has {address}: {', '.join(macs)}"],
            )
    link = _guest_link(case)
    for bridge in _bridges(case):
        for mac, port, entered in bridge.learned:
            peer = case.station(PEER) or case.station(TAP)
            if not (link and peer and entered):
                continue
            if mac == link["mac"] and port not in (peer.name, bridge.name):
                yield Verdict(
                    "bridge",
                    f"the bridge {bridge.name} sends what is for {mac} to the port {port} by an "
                    f"entry that somebody made, and the guest is beyond {peer.name}",
                    [f"bridge fdb del {mac} dev {port} master"],
                )
        peer = case.station(PEER) or case.station(TAP)
        if not link or not peer:
            continue
        talkers = {
            name
            for name, seen in case.of_ports.items()
            if any(one.from_mac == link["mac"] and not one.outgoing for one in seen)
        }
        talkers |= {
            port
            for mac, port in case.learned_before
            if mac == link["mac"] and port not in (peer.name, bridge.name)
        }
        if talkers:
            yield Verdict(
                "bridge",
                f"{link['mac']} is a duplicate MAC address: frames from it come in at the port "
                f"{', '.join(sorted(talkers))}, too",
                advice="give one of the two another MAC address",
            )


def _port_of(case: Case, mac: str) -> str:
    for bridge in _bridges(case):
        for known, port, _ in bridge.learned:
            if known == mac:
                return port
    return next(
        (
            name
            for name, seen in case.of_ports.items()
            if any(one.from_mac == mac and not one.outgoing for one in seen)
        ),
        "",
    )


# The guest's own network.


def _of_guest_nic(case: Case) -> Iterator[Verdict]:
    point = case.way.points[0] if case.way.points else None
    link = _guest_link(case)
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
        yield Verdict(GUEST, f"the guest's NIC {link['name']} is down", _set_up(case, point))
    version = case.version
    if version == 6 and link["settings"].get("disable_ipv6") == "1":
        commands = [_in_guest(case, f"sysctl -w net.ipv6.conf.{link['name']}.disable_ipv6=0")]
        commands += _missing_addresses(case, link)
        yield Verdict(
            GUEST,
            f"IPv6 is off on the guest's NIC {link['name']} (disable_ipv6 = 1)",
            commands + _missing_routes(case, everything=True),
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
            [_in_guest(case, f"ip link set {link['name']} address {case.way.mac}")],
        )
    if commands := _missing_addresses(case, link):
        lacking = [command.split()[-3] for command in commands]
        yield Verdict(
            GUEST,
            f"the guest's NIC {link['name']} lacks its address {', '.join(lacking)}",
            commands + _missing_routes(case, everything=True),
        )


def _missing_addresses(case: Case, link: Json, versions: tuple[int, ...] = ()) -> list[str]:
    """Return the commands that add the addresses which the NIC lacks. Link-local addresses are
    left out, because the kernel makes them."""
    has = {a.partition("/")[0] for a in link["addresses"]}
    return [
        _in_guest(case, f"ip address add {address} dev {link['name']}")
        for address in case.way.wanted
        if _version(address) in (versions or (case.version,))
        and not address.startswith("fe80")
        and address.partition("/")[0] not in has
    ]


def _of_guest_route(case: Case) -> Iterator[Verdict]:
    """Judge the guest's route to the target."""
    if case.wish.towards and not case.path:
        return
    mark = ":" if case.version == 6 else "."
    routes = [r for r in _guest_routes(case) if mark in r["destination"]]
    special = _best(case.target, [Entry(**r) for r in routes]) if case.target else None
    if special and special.kind in SPECIAL:
        family = "-6 " if case.version == 6 else ""
        table = f" table {special.table}" if special.table != 254 else ""
        word = f"ip {family}route del {special.kind} {special.destination}{table}"
        commands = [_in_guest(case, word)]
        inside = [one for one in case.inside_routes if one[:2] == special[:2]]
        if inside and case.netns:
            commands.append(_at(case.netns, word))
        yield Verdict(
            GUEST,
            f"the guest has a route of the kind {special.kind} to {special.destination}: it drops "
            "what it sends there",
            commands,
        )
    default = [r for r in routes if r["destination"] in _DEFAULTS and r["kind"] == "unicast"]
    unreachable = case.path is not None and case.path.kind == ""
    if (unreachable or not case.target) and not default:
        commands = _missing_routes(case)
        if not any(route.destination in _DEFAULTS for route in _wanted(case)):
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
        yield Verdict(GUEST, f"the guest has no route to {case.target}", _missing_routes(case))
    wanted = {r.destination: r for r in _wanted(case)}
    for route in routes:
        right = wanted.get(route["destination"])
        if (
            right
            and route["table"] == 254
            and right.gateway != route["gateway"]
            and case.path
            and case.path.gateway == route["gateway"]
        ):
            commands = [_in_guest(case, _replaced(right, case.way.nic))]
            if case.version == 6:  # `ip -6 route replace` adds a second route beside the wrong one
                via = f" via {route['gateway']}" if route["gateway"] else ""
                delete = f"ip -6 route del {route['destination']}{via}"
                commands.insert(0, _in_guest(case, delete))
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
        commands = [_in_guest(case, f"sysctl -w {key}=2")]
        if case.netns:  # the guest follows the settings of its namespace
            commands.append(_at(case.netns, f"sysctl -w net.ipv6.conf.{name}.accept_ra=2"))
        yield Verdict(
            GUEST,
            f"the guest has no default route, and refuses the router advertisements of {router} "
            f"({key} = {value})",
            commands,
            "the route comes with the next advertisement. CNI plugins refuse them, for anybody on "
            "the link can send one: a route to ::/0 in the network's configuration is safer",
            evidence=[f"{router} answered a router solicitation"],
        )


def _best(target: str, routes: list[Entry]) -> Entry | None:
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


def _of_guest_neighbour(case: Case) -> Iterator[Verdict]:
    """Judge the guest's permanent neighbours: a person or program entered a wrong MAC address."""
    hop = _next_hop(case)
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
                [_in_guest(case, f"arp -i {name} -d {hop}")]
                if case.version == 4
                else [_in_guest(case, f"ip -6 neigh flush to {hop} dev {name} nud permanent")],
            )


def _mac_on_link(case: Case, address: str) -> str:
    """Return the MAC address of the host's interface that has this address; empty if none has."""
    name = case.host.addresses.get(address, "")
    station = next((one for one in case.stations if one.name == name and not one.place), None)
    return station.mac if station else ""


def _next_hop(case: Case) -> str:
    if case.wish.towards:
        return ""
    return (case.path.gateway or case.target) if case.path else case.target


# Interfaces on the way.


def _of_points(case: Case) -> Iterator[Verdict]:
    for point in case.way.points:
        if point.kind in (ways.GUEST_NIC, ways.GATEWAY, ways.HOST_NIC, ways.OVS):
            continue
        name = _called(point)
        if point.state == ways.DOWN and point.kind != ways.QEMU_NIC:
            yield Verdict(_hop(point), f"{name} is down", _set_up(case, point))
        elif point.state == ways.DOWN:
            yield Verdict("QEMU", "; ".join(point.facts) or "QEMU does not run")
        elif point.state == ways.MISSING and point.kind not in (ways.FILTERS, ways.SOCKET):
            yield Verdict(
                _hop(point),
                f"{name} is gone",
                [f"tapwright sandbox delete {case.sandbox}"],
                "then run it anew, for what CNI plugins made is not made again for a running one",
            )
        elif point.state == ways.MISSING:
            yield from _of_filters(case, point)


def _of_filters(case: Case, point: Point) -> Iterator[Verdict]:
    tap, interface = case.way.point(ways.TAP), case.way.point(ways.INTERFACE)
    if not tap or not interface or ways.MISSING in (tap.state, interface.state):
        return
    redirected = {(f.source, f.target) for f in point.filters if f.what == "redirect"}
    for source, target in ((tap, interface), (interface, tap)):
        if (source.name, target.name) in redirected:
            continue
        add = _at(source.place, f"tc qdisc add dev {source.name} ingress")
        yield Verdict(
            "tc filters",
            f"the tc filter is missing that sends what {source.name} receives to {target.name}",
            [
                f"{add} 2>/dev/null || true",
                _at(
                    source.place,
                    f"tc filter add dev {source.name} parent ffff: prio 2 protocol all u32 match "
                    f"u8 0 0 action mirred egress redirect dev {target.name}",
                ),
            ],
        )


def _of_queues(case: Case) -> Iterator[Verdict]:
    for place, name, kind, waiting in case.queues:
        yield Verdict(
            _hop_of_name(case, place, name),
            f"the queue of {name} is stopped: its qdisc {kind} holds {waiting} packets back",
            [_at(place, f"tc qdisc del dev {name} root")],
        )


def _called(point: Point) -> str:
    words = {
        ways.TAP: "the TAP",
        ways.INTERFACE: "the interface",
        ways.PEER: "the host's end",
        ways.BRIDGE: "the bridge",
        ways.PARENT: "the parent",
    }
    where = "" if point.place == ways.ON_HOST else " in the sandbox's namespace"
    return f"{words.get(point.kind, point.kind)} {point.name}{where}"


def _hop(point: Point) -> str:
    return {ways.TAP: TAP, ways.QEMU_NIC: "QEMU"}.get(point.kind, point.kind)


def _hop_of_name(case: Case, place: str, name: str) -> str:
    for station in case.stations:
        if (station.place, station.name) == (place, name):
            return station.key
    return name


# Bridges.


def _bridges(case: Case) -> list[Bridge]:
    station = case.station(BRIDGE)
    return [b for b in case.host.bridges if station and b.index == station.index]


def _port(case: Case) -> tuple[Bridge, Port] | None:
    """Return the guest's port, and its bridge on the host."""
    for bridge in _bridges(case):
        for port in bridge.ports:
            if any(one.index == port.index and not one.place for one in case.stations):
                return bridge, port
    return None


def _of_bridge(case: Case) -> Iterator[Verdict]:
    peer = case.station(PEER)
    if peer and not case.station(BRIDGE):
        for name, kind in case.way.promised.items():
            if kind == "bridge":
                yield Verdict(
                    PEER,
                    f"{peer.name} is no port of the bridge {name} any more",
                    [f"ip link set {peer.name} master {name}"],
                )
    found = _port(case)
    if not found:
        return
    bridge, port = found
    if port.state != _FORWARDING:
        yield _not_forwarding(bridge, port)
    other = _far_port(case, bridge, port)
    if port.isolated and other and other.isolated:
        yield Verdict(
            BRIDGE,
            f"the ports {port.name} and {other.name} of the bridge {bridge.name} are isolated: "
            "neither hears the other",
            [f"bridge link set dev {port.name} isolated off"],
        )
    if bridge.filters_vlans:
        far = other.pvid if other else bridge.own_pvid
        theirs = other.vlans if other else bridge.own_vlans
        if port.pvid != far and port.pvid not in theirs and far:
            whose = f"the port {other.name}" if other else f"{bridge.name} itself"
            commands = [f"bridge vlan add dev {port.name} vid {far} pvid untagged"]
            if port.pvid:
                commands.insert(0, f"bridge vlan del dev {port.name} vid {port.pvid}")
            yield Verdict(
                BRIDGE,
                f"the port {port.name} is in VLAN {port.pvid or '(none)'}, and {whose} in VLAN "
                f"{far}: the bridge {bridge.name} keeps them apart",
                commands,
            )
    if not port.flood and not port.learning:
        yield Verdict(
            BRIDGE,
            f"the port {port.name} of {bridge.name} neither learns nor gets what is for unknown "
            "addresses (flood off, learning off)",
            [f"bridge link set dev {port.name} flood on learning on"],
        )


def _not_forwarding(bridge: Bridge, port: Port) -> Verdict:
    state = _PORT_STATES[port.state] if port.state < len(_PORT_STATES) else str(port.state)
    why = f"the port {port.name} of the bridge {bridge.name} is {state}, not forwarding"
    commands = [f"bridge link set dev {port.name} state {_FORWARDING}"]
    if not bridge.has_stp or state == "disabled":
        return Verdict(BRIDGE, why, commands)
    if state == "blocking":
        advice = f"see which other way there is: {bridge.name} has a loop, or two ways to one place"
        return Verdict(BRIDGE, f"{why}: STP keeps it out of a loop", advice=advice)
    # The kernel refuses to set a port's state while STP is on (net/bridge/br_stp_if.c).
    commands.insert(0, f"ip link set {bridge.name} type bridge stp_state 0")
    return Verdict(
        BRIDGE,
        f"{why}: STP holds a new port back for {2 * bridge.forward_delay:g} s",
        commands,
        "or wait for that; STP is of use where the bridge may be part of a loop",
    )


def _far_port(case: Case, bridge: Bridge, own: Port) -> Port | None:
    """Return the port that leads to the target, if the target is in the same bridge."""
    if case.is_local or (case.path and case.path.gateway):
        return None
    mac = next((k["mac"] for k in case.neighbours if k["address"] == case.target), "")
    place = next((port for known, port, _ in bridge.learned if mac and known == mac), "")
    others = [p for p in bridge.ports if p.index != own.index]
    for port in others:
        if port.name == place:
            return port
    # The port of a target that never answered is unknown. If all other ports are alike, any of them
    # has the settings of the target's port.
    isolated = [p for p in others if p.isolated]
    if isolated:
        return isolated[0]
    return others[0] if len({(p.pvid, p.isolated) for p in others}) == 1 else None


def _of_open_vswitch(case: Case) -> Iterator[Verdict]:
    ovs = case.host.ovs
    if not ovs:
        return
    trace, bridge = str(ovs.get("trace", "")), str(ovs.get("bridge", ""))
    port = str(ovs.get("port", ""))
    tags = dict(ovs.get("tags", {}))
    own = tags.get(port, 0)
    others = {tag for name, tag in tags.items() if name != port}
    if own and own not in others:
        wanted = tags.get(bridge, 0)
        remedy = f"ovs-vsctl set port {port} tag={wanted}" if wanted else ""
        yield Verdict(
            "ovs",
            f"the port {port} of Open vSwitch's {bridge} has the VLAN tag {own}, which nobody else "
            "there has",
            [remedy or f"ovs-vsctl clear port {port} tag"],
        )
    if "Datapath actions: drop" in trace:
        lines = [line.strip() for line in trace.splitlines()]
        rule = next(
            (
                lines[n - 1]
                for n, line in enumerate(lines)
                if line == "drop" and n and "priority" in lines[n - 1]
            ),
            "",
        )
        match = rule.partition(". ")[2] or rule
        flow, _, priority = match.partition(", priority ")
        number = priority.split(",")[0].strip()
        flow = flow.split(" ")[-1]
        command = f"ovs-ofctl --strict del-flows {bridge} 'priority={number},{flow}'"
        yield Verdict(
            "ovs",
            f"a flow of Open vSwitch's {bridge} drops it: {match or 'no flow fits'}",
            [command] if rule else [f"ovs-ofctl add-flow {bridge} priority=0,actions=normal"],
        )


# Packet rules that dropped the packet.


def _of_drops(case: Case) -> Iterator[Verdict]:
    for drop in case.drops:
        what = f"the rule «{drop.text}»" if drop.text else f"rule {drop.handle}"
        if not drop.handle:
            what = "its policy"
        where = f"chain {drop.chain} of table {drop.family} {drop.table}".replace("  ", " ")
        hook = f" ({drop.where})" if drop.where else ""
        place = "in the guest" if drop.guest else "on the host"
        yield Verdict(
            "guest firewall" if drop.guest else "host firewall",
            f"{what} in the {where}{hook} {place} drops it",
            [] if drop.guest else [_undo(drop)],
            f"remove it in the guest by what made it: {_undo(drop)}" if drop.guest else "",
            evidence=["a packet was followed through the rules (nftrace)"]
            if not drop.is_legacy
            else ["its counter grew with the probes"],
        )


def _undo(drop: Drop) -> str:
    table, chain = shlex.quote(drop.table), shlex.quote(drop.chain)
    if drop.is_legacy:
        tool = "iptables-legacy" if drop.family == "ip" else "ip6tables-legacy"
        if not drop.handle:
            return f"{tool} -t {table} -P {chain} ACCEPT"
        return f"{tool} -t {table} -D {chain} {drop.handle}"
    place = f"{drop.family} {table} {chain}"
    if drop.handle:
        return f"nft delete rule {place} handle {drop.handle}"
    return f"nft chain {place} '{{ policy accept; }}'"


# The host as a router.


def _of_host_route(case: Case) -> Iterator[Verdict]:
    if case.is_local or case.wish.towards or not _crosses_host(case):
        return
    host, version = case.host, case.version
    inside = _ingress(case)
    best = _best(case.target, host.routes)
    family = "-6 " if version == 6 else ""
    if best and best.kind in SPECIAL:
        yield Verdict(
            "host route",
            f"the host has a route of the kind {best.kind} to {best.destination}",
            [f"ip {family}route del {best.kind} {best.destination}"],
        )
    if best is None or best.destination in _DEFAULTS:
        for name, address in host.down:
            network = ipaddress.ip_interface(address).network
            if ipaddress.ip_address(case.target) in network:
                yield Verdict(
                    OUT,
                    f"the host's {name}, which is in the target's network {network}, is down",
                    [f"ip link set {name} up"],
                )
    if best is None:
        yield Verdict(
            "host route",
            f"the host has no route to {case.target}",
            advice=f"give the host a route: ip {family}route add default via GATEWAY",
        )
    yield from _of_forwarding(case, inside)
    if case.forward and case.forward.kind == "" and case.forward.error == errno.EXDEV:
        yield from _of_reverse_path(case, inside, case.own)
    if case.back and case.back.kind == "" and case.back.error == errno.EXDEV:
        out = case.station(OUT)
        yield from _of_reverse_path(case, out.name if out else "", case.target)
    yield from _of_other_way(case)
    yield from _of_lost_in_routing(case)


def _of_lost_in_routing(case: Case) -> Iterator[Verdict]:
    """Judge packets that passed the prerouting chains and reached no other hook (nftrace)."""
    hooks: dict[int, set[str]] = {}
    came: dict[int, tuple[str, int]] = {}
    for step in case.steps:
        if step.ours:
            hooks.setdefault(step.packet, set()).add(step.chain.partition("-")[0])
            if step.chain == "prerouting-last" and step.source:
                came[step.packet] = step.source, step.inside
    for packet, (source, index) in came.items():
        name = case.host.names.get(index, "")
        if hooks[packet] == {"prerouting"} and is_strict(case.host.settings, name):
            yield from _of_reverse_path(case, name, source)
    # With a strict rp_filter the kernel does not answer ARP requests either (net/ipv4/arp.c:
    # arp_process), so the packet itself may never come.
    for name, seen in case.astray.items():
        if any(one.source == case.target and not one.outgoing for one in seen):
            yield from _of_reverse_path(case, name, case.target)


def is_strict(settings: dict[str, str], name: str) -> bool:
    """Whether rp_filter of an interface is strict. The larger of the values of `all` and of the
    interface applies (Documentation/networking/ip-sysctl.rst)."""
    several = (settings.get(f"ipv4/conf/{one}/rp_filter", "0") for one in ("all", name))
    return max(several) == "1"


def _of_forwarding(case: Case, inside: str) -> Iterator[Verdict]:
    host = case.host
    if case.version == 4:
        if host.settings.get("ipv4/ip_forward") == "0":
            yield Verdict(
                "host",
                "the host forwards nothing: net.ipv4.ip_forward is 0",
                ["sysctl -w net.ipv4.ip_forward=1"],
            )
        for name in (inside, _out(case)):
            if name and host.settings.get(f"ipv4/conf/{name}/forwarding") == "0":
                yield Verdict(
                    "host",
                    f"the host does not forward what comes in at {name}: "
                    f"net.ipv4.conf.{name}.forwarding is 0",
                    [f"sysctl -w net.ipv4.conf.{name}.forwarding=1"],
                )
    elif host.settings.get("ipv6/conf/all/forwarding") == "0":
        yield Verdict(
            "host",
            "the host forwards no IPv6: net.ipv6.conf.all.forwarding is 0",
            ["sysctl -w net.ipv6.conf.all.forwarding=1"],
        )


def _of_ipv6_off(case: Case) -> Iterator[Verdict]:
    """Judge disable_ipv6 of the host's interfaces. It also removes their IPv6 addresses, so the
    remedy adds the gateway's address again."""
    hop = _next_hop(case)
    for name in (_ingress(case), _out(case)) if case.version == 6 else ():
        if name and case.host.settings.get(f"ipv6/conf/{name}/disable_ipv6") == "1":
            commands = [f"sysctl -w net.ipv6.conf.{name}.disable_ipv6=0"]
            gateways = [r.gateway for r in _wanted(case) if r.gateway]
            if name == _ingress(case) and hop in gateways and hop not in case.host.addresses:
                commands.append(f"ip -6 address add {hop}/{_prefix_length(case)} dev {name} nodad")
            yield Verdict("host", f"IPv6 is off on the host's {name} (disable_ipv6 = 1)", commands)


def _of_reverse_path(case: Case, name: str, source: str) -> Iterator[Verdict]:
    settings = case.host.settings
    strict = [
        one for one in ("all", name) if settings.get(f"ipv4/conf/{one}/rp_filter") == "1" and one
    ]
    yield Verdict(
        "host",
        f"the host drops what {source} sends in at {name}, for its own route there leads "
        f"elsewhere: rp_filter is strict ({', '.join(strict) or name})",
        [f"sysctl -w net.ipv4.conf.{one}.rp_filter=2" for one in strict or [name]],
    )


def _of_other_way(case: Case) -> Iterator[Verdict]:
    """Judge the host's route to the guest: it leads to another interface."""
    inside = _ingress(case)
    if not inside or not case.own or not case.back or not case.back.device:
        return
    name = case.host.names.get(case.back.device, "")
    best = _best(case.own, case.host.routes)
    if name and name != inside and best and case.back.kind == "unicast":
        family = "-6 " if case.version == 6 else ""
        yield Verdict(
            "host route",
            f"the host's route to the guest ({best.destination}) leads to {name}, and the guest is "
            f"beyond {inside}",
            [f"ip {family}route del {best.destination} dev {name}"],
        )
    if best and best.kind in SPECIAL:
        yield Verdict(
            "host route",
            f"the host has a route of the kind {best.kind} to the guest ({best.destination})",
            [f"ip route del {best.kind} {best.destination}"],
        )


def _of_back_route(case: Case) -> Iterator[Verdict]:
    """Judge the host's route to the guest where the target is the host itself."""
    if _crosses_host(case) and (case.is_local or case.wish.towards):
        yield from _of_other_way(case)


def _crosses_host(case: Case) -> bool:
    """Whether the host's IP stack is on the way: the next hop or the target is its address."""
    return bool(_ingress(case)) and (
        case.wish.towards or case.is_local or _next_hop(case) in case.host.addresses
    )


def _ingress(case: Case) -> str:
    """Return the interface at which the host's IP stack receives the guest's packets."""
    for key in (BRIDGE, PEER):
        if station := case.station(key):
            return station.name
    return ""


def _out(case: Case) -> str:
    station = case.station(OUT)
    return station.name if station else ""


def _of_connections(case: Case) -> Iterator[Verdict]:
    host = case.host
    if host.most_connections and host.connections >= host.most_connections:
        yield Verdict(
            "host",
            f"the host's table of connections is full ({host.connections} of "
            f"{host.most_connections}): it drops what begins another",
            [f"sysctl -w net.netfilter.nf_conntrack_max={2 * host.most_connections}"],
        )


# MTUs: small packets arrive, and large packets do not.


def _of_sizes(case: Case) -> Iterator[Verdict]:
    if _outcome(case, "echo") != _ANSWERED or _large_arrives(case):
        return
    size = int(case.probes["large"]["size"])
    points = [
        p
        for p in case.way.points
        if p.mtu and p.kind in (ways.TAP, ways.INTERFACE, ways.PEER, ways.BRIDGE, ways.PARENT)
    ]
    wanted = _usual_mtu(points, size)
    for point in points:
        if point.mtu < size and point.mtu < wanted:
            yield Verdict(
                _hop(point),
                f"the MTU of {_called(point)} is {point.mtu}, and the guest sends packets of "
                f"{size}: the large ones are dropped there without a word",
                [_at(point.place, f"ip link set {point.name} mtu {wanted}")],
            )
    link = _guest_link(case)
    if link and link["mtu"] > wanted:
        yield Verdict(
            GUEST,
            f"the MTU of the guest's NIC {link['name']} is {link['mtu']}, and that of what follows "
            f"{wanted}: large packets are dropped",
            [_in_guest(case, f"ip link set {link['name']} mtu {wanted}")],
        )
    yield Verdict(
        OUT if case.station(OUT) else "beyond",
        f"packets of {size} bytes do not arrive, and small ones do: the MTU is smaller somewhere "
        "beyond, and nobody says so (ICMP is filtered)",
        advice="lower the network's MTU (mtu in its CNI configuration)",
    )


def _usual_mtu(points: list[Point], size: int) -> int:
    """Return the MTU that most points have."""
    sizes = [point.mtu for point in points]
    return max(set(sizes), key=lambda mtu: (sizes.count(mtu), mtu)) if sizes else size


# The target's own port.


def _of_service(case: Case) -> Iterator[Verdict]:
    wish = case.wish
    if not wish.port:
        return
    name = "udp" if wish.udp else "tcp"
    outcome = _outcome(case, name)
    if wish.towards:
        yield from _of_guest_service(case, name, outcome)
        return
    if outcome != _REFUSED:
        return
    if case.is_local:
        yield Verdict(
            "target",
            f"nothing listens on port {wish.port} ({name}) of the host: it refuses",
            advice=f"start what is to listen on {case.target}:{wish.port}"
            + _only_elsewhere(case.host.listening, name, wish.port),
        )
    yield Verdict(
        "target",
        f"{case.target} refuses port {wish.port} ({name}): nothing listens there, or its firewall "
        "says so",
        advice="start what is to listen there",
    )


def _only_elsewhere(listening: list[tuple[str, str, int]], name: str, port: int) -> str:
    where = [a for protocol, a, number in listening if number == port and name in protocol]
    return f"; it listens on {', '.join(where)} alone" if where else ""


def _of_guest_service(case: Case, name: str, outcome: str) -> Iterator[Verdict]:
    wish = case.wish
    port = _guest_port(case)
    if case.target in case.host.addresses and port is None:
        published = [p for p in _published(case) if p[0] == wish.port]
        if published:
            number, inside = published[0]
            yield Verdict(
                "host",
                f"port {number} of the host is published for the guest's port {inside}, but the "
                "rules that say so are gone",
                [_dnat(case, number, inside)],
                "the plugin portmap makes its own anew when the sandbox is run again",
            )
        yield Verdict(
            "host",
            f"port {wish.port} of the host is not published to the guest: no rule leads there"
            if outcome == _REFUSED
            else f"port {wish.port} of the host leads nowhere",
            [_dnat(case, wish.port, wish.port)],
            f"or run the sandbox with --publish {wish.port}:PORT",
        )
    port = port or wish.port
    waiting = [
        (protocol, address)
        for protocol, address, number in _guest_listening(case)
        if number == port and protocol.startswith(name)
    ]
    if not waiting:
        yield Verdict(
            GUEST,
            f"nothing listens on port {port} ({name}) in the guest",
            advice=f"start what is to listen there on 0.0.0.0:{port}",
        )
        return
    usable = [
        address
        for protocol, address in waiting
        if address in (*_EVERYWHERE, case.own) or address.endswith(case.own)
    ]
    if not usable:
        yield Verdict(
            GUEST,
            f"what listens on port {port} in the guest does so on "
            f"{', '.join(dict.fromkeys(a for _, a in waiting))} only, and not on {case.own}",
            advice=f"configure it to listen on 0.0.0.0:{port}, or on {case.own}",
        )


def _guest_listening(case: Case) -> list[tuple[str, str, int]]:
    """Return (protocol, address, port) of each socket that listens in the guest. Addresses that
    are not valid are left out, because the guest may report anything."""
    found = []
    for protocol, address, number in case.guest.get("listening", []):
        with contextlib.suppress(ValueError):
            found.append((str(protocol), readable(str(address)), int(number)))
    return found


def _guest_port(case: Case) -> int | None:
    """Return the guest's port to which the packet went; None when it is not known."""
    for key in (TAP, INTERFACE, PEER):
        for one in case.seen.get(key, []):
            if one.what in ("syn", "udp") and one.destination == case.own:
                return one.destination_port
    return case.wish.port if case.target == case.own else None


def _published(case: Case) -> list[tuple[int, int]]:
    """Return (port of the host, port of the guest) of each port that CNI networks publish."""
    return [(int(one), int(other)) for one, other in case.promised.get("published", [])]


def _dnat(case: Case, port: int, inside: int) -> str:
    tool = "ip6tables" if case.version == 6 else "iptables"
    protocol = "udp" if case.wish.udp else "tcp"
    own = f"[{case.own}]" if case.version == 6 else case.own
    rule = f"-p {protocol} -d {case.target} --dport {port} -j DNAT --to-destination {own}:{inside}"
    return f"{tool} -t nat -A OUTPUT {rule} && {tool} -t nat -A PREROUTING {rule}"


# Where the packet was last seen.


def _request(case: Case) -> Callable[[Sighting], bool]:
    """Return a test for frames: is this frame the probe? An echo request is recognised by its
    token. TCP and UDP are recognised by the source port, which a masquerade keeps if it can."""
    if _outcome(case, "echo") != _ANSWERED:
        return lambda s: s.what == "echo-request" and s.marked
    kind, number = ("udp", "udp") if case.wish.udp else ("syn", "tcp")
    ours = case.probes.get(number, {}).get("port", 0)
    return lambda s: s.what == kind and s.source_port == ours


def _reply(case: Case) -> Callable[[Sighting], bool]:
    if _outcome(case, "echo") != _ANSWERED:
        return lambda s: s.what == "echo-reply" and s.marked
    ours = case.probes.get("udp" if case.wish.udp else "tcp", {}).get("port", 0)
    return lambda s: s.what in ("syn-ack", "rst", "udp") and s.destination_port == ours


def _path_of(case: Case) -> list[Station]:
    """Return the stations in the order in which the probe passes them."""
    order = [GUEST, TAP, INTERFACE, PEER, BRIDGE]
    if _is_switched(case):
        order.remove(BRIDGE)
    if case.wish.towards:
        return [s for key in reversed(order) for s in case.stations if s.key == key]
    if not case.is_local and _crosses_host(case):
        order.append(OUT)
    return [s for key in order for s in case.stations if s.key == key]


def _is_switched(case: Case) -> bool:
    """Whether the bridge forwards the packet to another port, past the host's IP stack."""
    return bool(case.station(BRIDGE)) and not case.wish.towards and not _crosses_host(case)


def _last(case: Case, is_it: Callable[[Sighting], bool], path: list[Station]) -> int:
    """Return how many stations of a path the packet passed."""
    passed = 0
    for number, station in enumerate(path, 1):
        if any(map(is_it, case.seen.get(station.key, []))):
            passed = number
    return passed


def _of_link(case: Case) -> Iterator[Verdict]:
    """Judge the next hop: no answer came to the guest's question for its MAC address."""
    hop = _next_hop(case)
    if case.wish.towards or not hop:
        return
    known = next((k for k in case.neighbours if k["address"] == hop), None)
    if known is None or known["state"] not in ("incomplete", "failed"):
        return
    path = [s for s in _path_of(case) if s.key != OUT]
    asked = _last(case, lambda s: s.what == "arp-request" and s.destination == hop, path)
    answered = any(
        s.what == "arp-reply" and s.source == hop for seen in case.seen.values() for s in seen
    )
    evidence = [f"the guest asks who has {hop}; that was seen at {_listed(path[:asked])}"]
    if answered:
        evidence.append(f"{hop} answered, and the answer did not come to the guest")
    if 0 < asked < len(path):
        yield Verdict(
            path[asked].key,
            f"what the guest sends is last seen at {path[asked - 1].name}, and does not come to "
            f"{path[asked].name}",
            evidence=evidence,
        )
    if asked and not answered:
        is_gateway = bool(case.path and case.path.gateway)
        word = "the gateway" if is_gateway else "the target"
        here = [a for a, n in case.host.addresses.items() if n == _ingress(case)]
        commands: list[str] = []
        if is_gateway and hop not in case.host.addresses and _ingress(case):
            wanted = [r.gateway for r in _wanted(case) if r.destination in _DEFAULTS]
            if hop in wanted:
                length = _prefix_length(case)
                commands = [f"ip address add {hop}/{length} dev {_ingress(case)}"]
        yield Verdict(
            "gateway" if is_gateway else "target",
            f"{word} {hop} has failed to answer when the guest asked for its MAC address: nobody "
            "on the link has that address"
            + (f" (the host has {', '.join(here)} there)" if here and is_gateway else ""),
            commands,
            "" if commands else f"see whether {hop} is right, and that machine up",
            evidence,
        )


def _prefix_length(case: Case) -> str:
    for address in case.way.wanted:
        if address.partition("/")[0] == case.own:
            return address.partition("/")[2]
    return "24" if case.version == 4 else "64"


def _of_host_neighbour(case: Case) -> Iterator[Verdict]:
    """Judge the host's neighbours: it does not know the MAC address of the guest, or that of the
    next router."""
    for name, address, mac, state in case.host_neighbours:
        if address == case.own and state == "permanent" and mac != case.way.mac:
            yield Verdict(
                "host",
                f"the host has {mac} entered as the guest's MAC address, which is {case.way.mac}",
                [f"ip neighbour del {address} dev {name}"],
            )
        if address == case.own and state in ("failed", "incomplete") and name == _ingress(case):
            yield Verdict(
                "neighbour",
                f"the guest ({address}) has not answered when the host asked for its MAC address "
                f"at {name}",
                [f"ip neighbour flush dev {name}"],
                evidence=[f"the host's neighbour {address} on {name} is {state}"],
            )
    via = (case.forward.gateway or case.target) if case.forward else ""
    for name, address, _, state in case.host_neighbours:
        if address == via and state in ("failed", "incomplete") and name == _out(case):
            yield Verdict(
                OUT,
                f"{address} has failed to answer when the host asked for its MAC address at "
                f"{name}: the next machine on the way is not there",
                advice=f"see whether {address} is right and up",
            )


def _of_nat(case: Case) -> Iterator[Verdict]:
    """Judge NAT: packets leave the host with an address that no machine outside can answer to."""
    out = case.station(OUT)
    if case.wish.towards or case.is_local or not out:
        return
    seen = case.seen.get(OUT, [])
    sent = any(s.outgoing and s.source == case.own and _request(case)(s) for s in seen)
    replied = any(not s.outgoing and _reply(case)(s) for s in seen)
    if sent and not replied and case.by_host:
        tool = "ip6tables" if case.version == 6 else "iptables"
        yield Verdict(
            "NAT",
            f"packets leave the host at {out.name} with the guest's own address {case.own}, and "
            "nobody out there knows the way back; there is no masquerade for them",
            [f"{tool} -t nat -A POSTROUTING -s {case.own} -o {out.name} -j MASQUERADE"],
            "or set ipMasq in the network's CNI configuration",
            [f"the host itself gets an answer from {case.target}, the guest none"],
        )


def _of_target(case: Case) -> Iterator[Verdict]:
    out = case.station(OUT)
    if case.wish.towards or not out or case.is_local:
        return
    seen = case.seen.get(OUT, [])
    sent = any(s.outgoing and _request(case)(s) for s in seen)
    replied = any(not s.outgoing and _reply(case)(s) for s in seen)
    errors = [s for s in seen if s.what == "icmp-error" and not s.outgoing]
    if errors:
        yield Verdict(
            "beyond",
            f"{errors[0].source} says that {case.target} can't be reached (ICMP "
            f"{errors[0].detail})",
            advice="see that machine's routes and firewall",
        )
    if sent and not replied:
        yield Verdict(
            "beyond",
            f"it leaves the host at {out.name}, and nothing comes back: {case.target} is down, or "
            "drops it, or has no way back",
            advice="ask there: capture on the target's own interface"
            if case.by_host is not None
            else "ask there, or whether the host gets an answer: tapwright sandbox explain "
            f"{case.sandbox} --to {_with_port(case.target, case.wish.port)}",
            evidence=["the host itself gets no answer from there either"]
            if case.by_host is False
            else [],
        )


def _of_switched(case: Case) -> Iterator[Verdict]:
    """Judge a packet that the bridge forwards to another port: no answer comes from there."""
    bridge, is_it = case.station(BRIDGE), _request(case)
    path = _path_of(case)
    if not bridge or not _is_switched(case) or not path or _last(case, is_it, path) < len(path):
        return
    if any(not s.outgoing and _reply(case)(s) for seen in case.of_ports.values() for s in seen):
        return
    ports = sorted(
        name
        for name, seen in case.of_ports.items()
        if any(one.outgoing and is_it(one) for one in seen)
    )
    hop = _next_hop(case)
    yield Verdict(
        "gateway" if case.path and case.path.gateway else "target",
        f"{hop} has failed to answer: what the guest sends there comes into the bridge "
        f"{bridge.name} and "
        + (
            f"leaves it at {', '.join(ports)}, and nothing comes back"
            if ports
            else "leaves it at no port, for none that is up leads there"
        ),
        advice=f"see whether {hop} is up, and takes what comes",
        evidence=[f"seen at: {_listed(path)}"],
    )


def _of_echo_settings(case: Case) -> Iterator[Verdict]:
    key = "ipv4/icmp_echo_ignore_all" if case.version == 4 else "ipv6/icmp/echo_ignore_all"
    if case.wish.towards and case.guest.get("settings", {}).get(key) == "1":
        name = key.replace("/", ".")
        yield Verdict(
            GUEST,
            f"the guest does not answer echo requests (net.{name} = 1)",
            [_in_guest(case, f"sysctl -w net.{name}=0")],
        )


def _of_gaps(case: Case) -> Iterator[Verdict]:
    """Say between which two stations the packet was lost, if no other rule knows the cause."""
    path = _path_of(case)
    passed = _last(case, _request(case), path)
    if passed < len(path):
        before = path[passed - 1].name if passed else ("the host" if case.wish.towards else "guest")
        yield Verdict(
            path[passed].key,
            f"it is last seen at {before}, and does not come to {path[passed].name}",
            evidence=[f"seen at: {_listed(path[:passed]) or 'no station'}"],
        )
    back = list(reversed(path))
    returned = _last(case, _reply(case), back)
    if 0 < returned < len(back):
        yield Verdict(
            back[returned].key,
            f"the answer is last seen at {back[returned - 1].name}, and does not come to "
            f"{back[returned].name}",
            evidence=[f"the answer was seen at: {_listed(back[:returned])}"],
        )
    if returned == len(back) and back:
        yield Verdict(
            GUEST,
            f"the answer comes to {back[-1].name}, and the guest does not take it",
            advice="see the guest's firewall and rp_filter",
        )


def _unknown(case: Case) -> Verdict:
    number = _error(case)
    reason = f": {os.strerror(number)}" if number else ""
    path = _path_of(case)
    passed = _last(case, _request(case), path)
    hop = path[passed - 1].key if passed else GUEST
    return Verdict(
        hop,
        f"no answer from {case.target or case.wish.target}{reason}; nothing on the way explains it",
        advice="capture where it is lost: tapwright sandbox capture",
        evidence=[f"seen at: {_listed(path[:passed]) or 'no station'}"],
    )


def _listed(stations: list[Station]) -> str:
    return ", ".join(station.name for station in stations)


_BEFORE: tuple[Rule, ...] = (_of_processes, _of_record, _of_names, _of_duplicates)
_RULES: tuple[Rule, ...] = (
    _of_guest_nic,
    _of_guest_route,
    _of_guest_neighbour,
    _of_points,
    _of_bridge,
    _of_queues,
    _of_open_vswitch,
    _of_drops,
    _of_sizes,
    _of_ipv6_off,
    _of_host_route,
    _of_back_route,
    _of_connections,
    _of_echo_settings,
    _of_service,
    _of_link,
    _of_host_neighbour,
    _of_nat,
    _of_target,
    _of_switched,
    _of_gaps,
)
