"""The bridge on the way, of Linux or of Open vSwitch."""

from collections.abc import Iterator

from tapwright.diagnosis.case import BRIDGE, PEER, Case, Verdict
from tapwright.diagnosis.facts import Bridge, Port
from tapwright.diagnosis.verdicts.reading import bridges_of

_FORWARDING = 3
_PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")


def _port(case: Case) -> tuple[Bridge, Port] | None:
    """Return the guest's port, and its bridge on the host."""
    for bridge in bridges_of(case):
        for port in bridge.ports:
            if any(one.index == port.index and not one.place for one in case.stations):
                return bridge, port
    return None


def of_bridge(case: Case) -> Iterator[Verdict]:
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


def of_open_vswitch(case: Case) -> Iterator[Verdict]:
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
