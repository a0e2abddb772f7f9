"""`explain`: sends a packet, watches where it goes, and says where it ends and why.

The host is read first, while the guest's program starts. Then the probes are sent, with a watch at
each interface on the way and a trace of the host's rules. Then `judging` gives the verdict. Each
part has a time limit. This module changes nothing: the trace's table belongs to this process, and
the kernel removes the table when the process ends.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from tapwright.diagnosis import collecting, facts, judging, plugins, probes, rules, vetting
from tapwright.diagnosis import way as ways
from tapwright.diagnosis.case import (
    BRIDGE,
    GUEST,
    INTERFACE,
    OUT,
    PEER,
    TAP,
    Case,
    Explanation,
    Station,
    Wish,
)
from tapwright.diagnosis.verdicts import reading, routing
from tapwright.diagnosis.view import View, view
from tapwright.diagnosis.way import Way
from tapwright.errors import AgentError, TapwrightError, UsageError
from tapwright.linux import netns, nftrace, sightings
from tapwright.linux import probes as sending
from tapwright.linux.drop_reasons import DropReasons
from tapwright.state import supervisors
from tapwright.state.record import RUNNING
from tapwright.state.registry import Sandbox

_KEYS = {ways.TAP: TAP, ways.INTERFACE: INTERFACE, ways.PEER: PEER, ways.BRIDGE: BRIDGE}
_KEYS |= {ways.PARENT: PEER}
_MOST_PORTS, _MOST_DEVICES = 32, 64
_TOWARDS_SECONDS = 0.9
_SETTLE_SECONDS = 0.05
_GUEST_SECONDS = 2.0

Json = dict[str, Any]
_Watched = tuple[dict[str, list[sightings.Sighting]], str, sightings.Watch]


def explain(sandbox: Sandbox, wish: Wish) -> Explanation:
    """Raises UsageError for a question that makes no sense, OSError if the host can't be read."""
    begun = time.monotonic()
    _check(wish)
    case = Case(sandbox.id, wish, sandbox.status, sandbox.problem)
    supervisor = supervisors.pid_of(sandbox.directory) if sandbox.record else None
    case.processes = facts.processes(supervisor) if sandbox.status == RUNNING else []
    well = sandbox.status == RUNNING and all(p.state not in "TtZ" for p in case.processes)
    if well and sandbox.record:
        _look(sandbox, case)
    verdict = judging.judge(case)
    return Explanation(
        sandbox.id,
        _question(case),
        verdict is None,
        verdict,
        [station.name for station in case.stations],
        _notes(case) if verdict is None else [],
        round(time.monotonic() - begun, 3),
    )


def _check(wish: Wish) -> None:
    if wish.udp and not wish.port:
        raise UsageError("--udp needs a port: --to ADDRESS:PORT")
    if wish.source:
        _address(wish.source)
    if wish.towards and wish.target:
        _address(wish.target)


def _address(text: str) -> None:
    from tapwright.linux.netlink import pack_address

    try:
        pack_address(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _address_of(wish: Wish) -> str:
    """Return the target in the kernel's spelling, if it is an address; else an empty string."""
    try:
        return vetting.address(wish.target)
    except ValueError:
        return ""


def _question(case: Case) -> str:
    wish = case.wish
    port = f" port {wish.port}/{'udp' if wish.udp else 'tcp'}" if wish.port else ""
    target = case.target or wish.target or "its default gateway"
    if wish.target and case.target and wish.target != case.target:
        target = f"{wish.target} ({case.target})"
    if wish.towards:
        return f"from {wish.source or 'the host'} to {target}{port}"
    return f"from the guest to {target}{port}"


def _notes(case: Case) -> list[str]:
    large = case.probes.get("large")
    if large and large["mtu"]:
        return [
            f"the path takes packets of {large['mtu']} bytes, the guest's NIC {large['size']}; "
            "senders learn that by ICMP"
        ]
    return []


def _look(sandbox: Sandbox, case: Case) -> None:
    with view("") as host:
        token = os.urandom(8)
        if case.wish.towards:
            _towards(sandbox, case, host, token)
        else:
            _from_guest(sandbox, case, host, token)


def _request(case: Case, token: bytes) -> Json:
    wish = case.wish
    return {"target": wish.target, "port": wish.port, "udp": wish.udp, "token": token.hex()}


def _from_guest(sandbox: Sandbox, case: Case, host: View, token: bytes) -> None:
    with contextlib.ExitStack() as stack:
        try:
            guest = stack.enter_context(probes.Guest(sandbox, _request(case, token)))
            # While the guest's program starts.
            found = _read(sandbox, case, host)
            case.guest, prepared = guest.begin()
            case.asked = probes.asked_of(prepared)
            case.target = _address_of(case.wish) or probes.target_of(prepared)
            case.path = probes.path_of(prepared)
            _choose_way(case, found)
            _read_for_target(case, host)
            watches, trace = _watched(stack, case, host, token), _traced(stack, case)
            reasons = _reasons(stack, case)
            aside = _HostProbe(case)
            results = guest.end()
            case.probes = probes.probes_of(results)
            case.neighbours = probes.neighbours_of(results)
            case.guest_steps = probes.steps_of(results)
        except TapwrightError as error:
            case.guest_failure = str(error)
            return
        aside.wait()
        time.sleep(_SETTLE_SECONDS)
        _take(case, watches, trace, reasons)
    _read_after(sandbox, case)


def _towards(sandbox: Sandbox, case: Case, host: View, token: bytes) -> None:
    wish = case.wish
    try:
        _choose_way(case, _read(sandbox, case, host))
    except AgentError as error:
        case.guest_failure = str(error)
        return
    if not case.way.nic:
        return
    own = [a.partition("/")[0] for a in case.way.wanted if not a.startswith("fe80")]
    six = ":" in (wish.source or wish.target or next(iter(own), ""))
    case.own = next((one for one in own if (":" in one) == six), next(iter(own), ""))
    case.target = wish.target or case.own
    _read_for_target(case, host)
    request = {
        **_request(case, token),
        "target": case.own,
        "peer": wish.source or (case.back.source if case.back else ""),
        "towards": True,
        "nic": case.way.nic,
    }
    with contextlib.ExitStack() as stack:
        try:
            guest = stack.enter_context(probes.Guest(sandbox, request))
            case.guest, _ = guest.begin()
            watches, trace = _watched(stack, case, host, token), _traced(stack, case)
            reasons = _reasons(stack, case)
            case.probes = _sent(case, token)
            time.sleep(_SETTLE_SECONDS)
            results = guest.end()
            case.path = probes.path_of(results)
            case.neighbours = probes.neighbours_of(results)
            case.guest_steps = probes.steps_of(results)
            case.seen[GUEST] = probes.seen_of(results)
        except UsageError:
            raise
        except TapwrightError as error:
            case.guest_failure = str(error)
            return
        _take(case, watches, trace, reasons)
    _read_after(sandbox, case)


def _sent(case: Case, token: bytes) -> dict[str, Json]:
    """Send the host's probes, and return the results by name. Raises UsageError for an address that
    is not the host's."""
    wish = case.wish
    if wish.source and wish.source not in case.host.addresses:
        raise UsageError(
            f"nothing can be sent from {wish.source}, which is no address of this host; without "
            "--from, the host uses its own address on that network"
        )
    large = case.way.points[0].mtu if case.way.points else 0
    found = sending.run(
        case.target,
        wish.port,
        wish.udp,
        token,
        large,
        seconds=_TOWARDS_SECONDS,
        source=wish.source,
    )
    return {one["name"]: one for one in sending.written(found)}


def _read(sandbox: Sandbox, case: Case, host: View) -> list[Way]:
    """Raises AgentError where the agent does not answer."""
    record = sandbox.record
    if record is None:
        return []
    attachments, _ = plugins.attachments(record)
    case.promised = {
        key: [value for one in attachments for value in one.dns.get(key, [])]
        for key in ("nameservers", "search")
    }
    case.promised["published"] = [pair for one in attachments for pair in one.published]
    case.netns = record.netns
    picture = collecting.picture(sandbox, host, _GUEST_SECONDS)
    if picture.guest_failure:
        raise AgentError(picture.guest_failure)
    return picture.ways


def _choose_way(case: Case, found: list[Way]) -> None:
    """Choose the way of the NIC by which the guest sends the packet. Without a route, it is the way
    of the first NIC."""
    if not found:
        return
    case.way = found[0]
    links = {link["index"]: link for link in case.guest.get("links", [])}
    if case.path and case.path.device in links:
        name = links[case.path.device]["name"]
        case.way = next((way for way in found if way.nic == name), case.way)
    elif case.wish.towards and case.wish.target:
        for way in found:
            if any(a.partition("/")[0] == case.wish.target for a in way.wanted):
                case.way = way
    six = ":" in case.target
    own = [a.partition("/")[0] for a in case.way.wanted if (":" in a) == six]
    case.own = next(iter(own), "")
    if case.path and case.path.source in own:
        case.own = case.path.source


def _read_for_target(case: Case, host: View) -> None:
    for point in case.way.points:
        if key := _KEYS.get(point.kind):
            place = "" if point.place == ways.ON_HOST else point.place
            if point.index:
                case.stations.append(Station(key, point.name, point.index, place, point.mac))
    version = case.version
    inside = next(
        (s for key in (BRIDGE, PEER) for s in case.stations if s.key == key and not s.place), None
    )
    addresses = {one.address for index in host.interfaces for one in host.addresses(index)}
    case.is_local = case.target in addresses
    if inside and case.target and case.own:
        with contextlib.suppress(OSError):
            case.forward = facts.path(case.target, case.own, inside.index)
    out = case.forward.device if case.forward else 0
    if not out and case.target and not case.is_local:
        with contextlib.suppress(OSError):
            out = facts.path(case.target).device
    if out in host.interfaces and not case.is_local and (not inside or out != inside.index):
        seen = host.interfaces[out]
        if not seen.link.is_loopback:
            case.stations.append(Station(OUT, seen.link.name, out, "", seen.link.mac))
    if case.own and case.target:
        with contextlib.suppress(OSError):
            back_in = case.station(OUT)
            source = case.target if back_in else ""
            case.back = facts.path(case.own, source, back_in.index if back_in else 0)
    names = [seen.link.name for seen in host.interfaces.values()]
    devices = [s.name for s in case.stations if not s.place] + names[:_MOST_DEVICES]
    case.host = facts.of_host(host, version, devices)
    case.host.legacy_before = facts.legacy(version)
    at = case.station(BRIDGE)
    case.learned_before = [
        (mac, port)
        for bridge in case.host.bridges
        for mac, port, entered in bridge.learned
        if at and bridge.index == at.index and not entered
    ]
    if case.netns:
        case.inside_routes = facts.routes_at(case.netns, version)


def _watched(stack: contextlib.ExitStack, case: Case, host: View, token: bytes) -> list[_Watched]:
    """Start a watch at each interface. Each entry says which table of the case the sightings go to,
    and under which key."""
    found: list[_Watched] = []
    stack.callback(_close, found)
    watched = set()
    for station in case.stations:
        with contextlib.suppress(OSError), netns.entered(station.place or netns.OWN):
            found.append((case.seen, station.key, sightings.Watch(station.index, token)))
            watched.add((station.place, station.index))
    bridge = case.station(BRIDGE)
    ports = [i for i, s in host.interfaces.items() if bridge and s.link.master == bridge.index]
    others = [i for i in host.interfaces if i not in ports and _drops_what_strays(case, host, i)]
    for indexes, of in ((ports, case.of_ports), (others, case.astray)):
        for index in indexes[:_MOST_PORTS]:
            if ("", index) not in watched:
                with contextlib.suppress(OSError):
                    watch = sightings.Watch(index, token)
                    found.append((of, host.interfaces[index].link.name, watch))
    return found


def _close(watches: list[_Watched]) -> None:
    """Close all watches at the same time: the kernel lets each one wait for an RCU grace period."""
    threads = [threading.Thread(target=watch.close) for _, _, watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _drops_what_strays(case: Case, host: View, index: int) -> bool:
    """Whether an interface of the host drops packets from sources to which the host has another
    route (a strict rp_filter)."""
    link = host.interfaces[index].link
    return (
        not (case.is_local or case.wish.towards or link.is_loopback)
        and link.is_up
        and routing.is_strict(case.host.settings, link.name)
    )


def _traced(stack: contextlib.ExitStack, case: Case) -> nftrace.Trace | None:
    """Start the trace of the host's rules, for packets from and to the guest's address and from and
    to the target. Returns None if the kernel has no nf_tables."""
    if not case.target or not case.own or not os.path.exists("/proc/net/netfilter"):
        return None
    pairs = [(case.own, ""), ("", case.own)]
    if case.target != case.own:
        pairs += [(case.target, ""), ("", case.target)]
    try:
        return stack.enter_context(nftrace.Trace(case.version, pairs))
    except OSError:
        return None


def _reasons(stack: contextlib.ExitStack, case: Case) -> DropReasons | None:
    try:
        return stack.enter_context(DropReasons(case.version))
    except OSError:
        return None


def may_host_ask(case: Case) -> bool:
    """Whether the host itself may send to the target: the user named it, or the guest's namespace
    has it as a gateway."""
    if case.wish.target:
        return bool(_address_of(case.wish)) and case.target == _address_of(case.wish)
    gateways = {route.gateway for route in case.way.wanted_routes or []}
    gateways |= {route.gateway for route in case.inside_routes}
    return case.target != "" and case.target in gateways


class _HostProbe:
    """Finds out, in a thread beside the guest's probes, whether the host itself gets an answer.

    The host asks from its own address, and a firewall may let the host in where it keeps the guest
    out. So the host never asks a target that the guest alone has named."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._thread = threading.Thread(target=self._run)
        if may_host_ask(case) and not case.is_local:
            self._thread.start()

    def _run(self) -> None:
        wish = self._case.wish
        with contextlib.suppress(OSError, ValueError):
            found = sending.run(self._case.target, wish.port, wish.udp, b"tapwright-host")
            self._case.by_host = any(one.outcome == sending.ANSWERED for one in found)

    def wait(self) -> None:
        if self._thread.ident:
            self._thread.join()


def _take(
    case: Case,
    watches: list[_Watched],
    trace: nftrace.Trace | None,
    reasons: DropReasons | None,
) -> None:
    for of, name, watch in watches:
        of[name] = watch.sightings()
    if trace:
        case.steps = trace.steps()
    if reasons:
        case.reasons = reasons.counted()


def _read_after(sandbox: Sandbox, case: Case) -> None:
    if reading.arrives(case):
        _forwarding_tables(case)
        return
    case.host.nft = facts.rules()
    case.host.legacy_after = facts.legacy(case.version)
    case.drops = list(rules.dropped(case))
    _forwarding_tables(case)
    _queues(case)
    with view("") as host:
        case.host_neighbours = [
            (host.name_of(known.device), known.address, known.mac, known.state)
            for known in host.neighbours
        ]
    tap = case.station(TAP)
    if tap and not tap.place and not case.station(BRIDGE):
        macs = f"dl_src={case.way.mac},dl_dst=ff:ff:ff:ff:ff:ff"
        kind = "arp" if case.version == 4 else "icmp6"
        case.host.ovs = facts.open_vswitch(tap.name, f"{kind},{macs}")
        if case.host.ovs:
            case.host.ovs["port"] = tap.name
            if "Datapath actions: drop" not in case.host.ovs.get("trace", ""):
                flow = f"ip,nw_src={case.own},nw_dst={case.target},{macs}"
                more = facts.open_vswitch(tap.name, flow)
                case.host.ovs["trace"] = more.get("trace", "")


def _forwarding_tables(case: Case) -> None:
    """Read the forwarding tables of the bridges again: by now they have learned the target."""
    if case.station(BRIDGE):
        with contextlib.suppress(OSError), view("") as host:
            case.host.bridges = facts.of_host(host, case.version, []).bridges


def _queues(case: Case) -> None:
    for place, stations in _by_place(case):
        with contextlib.suppress(OSError), view(place) as there:
            for station in stations:
                for queue in there.queues(station.index):
                    if queue.backlog and not queue.is_ingress:
                        case.queues.append((place, station.name, queue.kind, queue.backlog))


def _by_place(case: Case) -> Iterator[tuple[str, list[Station]]]:
    for place in dict.fromkeys(station.place for station in case.stations):
        yield place, [station for station in case.stations if station.place == place]
