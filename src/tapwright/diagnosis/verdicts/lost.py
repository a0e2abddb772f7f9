"""Where the packet was last seen, when no rule has found what dropped it."""

import os
from collections.abc import Iterator

from tapwright.diagnosis.case import BRIDGE, GUEST, OUT, Case, Verdict
from tapwright.diagnosis.verdicts.reading import (
    DEFAULTS,
    egress,
    error_of,
    ingress,
    next_hop,
    prefix_length,
    wanted_routes,
    with_port,
)
from tapwright.diagnosis.verdicts.remedies import in_guest
from tapwright.diagnosis.verdicts.stations import (
    is_reply,
    is_request,
    is_switched,
    last_seen,
    names_of,
    path_of,
)


def of_link(case: Case) -> Iterator[Verdict]:
    """Judge the next hop: no answer came to the guest's question for its MAC address."""
    hop = next_hop(case)
    if case.wish.towards or not hop:
        return
    known = next((k for k in case.neighbours if k["address"] == hop), None)
    if known is None or known["state"] not in ("incomplete", "failed"):
        return
    path = [s for s in path_of(case) if s.key != OUT]
    asked = last_seen(case, lambda s: s.what == "arp-request" and s.destination == hop, path)
    answered = any(
        s.what == "arp-reply" and s.source == hop for seen in case.seen.values() for s in seen
    )
    evidence = [f"the guest asks who has {hop}; that was seen at {names_of(path[:asked])}"]
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
        here = [a for a, n in case.host.addresses.items() if n == ingress(case)]
        commands: list[str] = []
        if is_gateway and hop not in case.host.addresses and ingress(case):
            wanted = [r.gateway for r in wanted_routes(case) if r.destination in DEFAULTS]
            if hop in wanted:
                length = prefix_length(case)
                commands = [f"ip address add {hop}/{length} dev {ingress(case)}"]
        yield Verdict(
            "gateway" if is_gateway else "target",
            f"{word} {hop} has failed to answer when the guest asked for its MAC address: nobody "
            "on the link has that address"
            + (f" (the host has {', '.join(here)} there)" if here and is_gateway else ""),
            commands,
            "" if commands else f"see whether {hop} is right, and that machine up",
            evidence,
        )


def of_host_neighbour(case: Case) -> Iterator[Verdict]:
    """Judge the host's neighbours: it does not know the MAC address of the guest, or that of the
    next router."""
    for name, address, mac, state in case.host_neighbours:
        if address == case.own and state == "permanent" and mac != case.way.mac:
            yield Verdict(
                "host",
                f"the host has {mac} entered as the guest's MAC address, which is {case.way.mac}",
                [f"ip neighbour del {address} dev {name}"],
            )
        if address == case.own and state in ("failed", "incomplete") and name == ingress(case):
            yield Verdict(
                "neighbour",
                f"the guest ({address}) has not answered when the host asked for its MAC address "
                f"at {name}",
                [f"ip neighbour flush dev {name}"],
                evidence=[f"the host's neighbour {address} on {name} is {state}"],
            )
    via = (case.forward.gateway or case.target) if case.forward else ""
    for name, address, _, state in case.host_neighbours:
        if address == via and state in ("failed", "incomplete") and name == egress(case):
            yield Verdict(
                OUT,
                f"{address} has failed to answer when the host asked for its MAC address at "
                f"{name}: the next machine on the way is not there",
                advice=f"see whether {address} is right and up",
            )


def of_nat(case: Case) -> Iterator[Verdict]:
    """Judge NAT: packets leave the host with an address that no machine outside can answer to."""
    out = case.station(OUT)
    if case.wish.towards or case.is_local or not out:
        return
    seen = case.seen.get(OUT, [])
    sent = any(s.outgoing and s.source == case.own and is_request(case)(s) for s in seen)
    replied = any(not s.outgoing and is_reply(case)(s) for s in seen)
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


def of_target(case: Case) -> Iterator[Verdict]:
    out = case.station(OUT)
    if case.wish.towards or not out or case.is_local:
        return
    seen = case.seen.get(OUT, [])
    sent = any(s.outgoing and is_request(case)(s) for s in seen)
    replied = any(not s.outgoing and is_reply(case)(s) for s in seen)
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
            f"{case.sandbox} --to {with_port(case.target, case.wish.port)}",
            evidence=["the host itself gets no answer from there either"]
            if case.by_host is False
            else [],
        )


def of_switched(case: Case) -> Iterator[Verdict]:
    """Judge a packet that the bridge forwards to another port: no answer comes from there."""
    bridge, is_it = case.station(BRIDGE), is_request(case)
    path = path_of(case)
    if not bridge or not is_switched(case) or not path or last_seen(case, is_it, path) < len(path):
        return
    if any(not s.outgoing and is_reply(case)(s) for seen in case.of_ports.values() for s in seen):
        return
    ports = sorted(
        name
        for name, seen in case.of_ports.items()
        if any(one.outgoing and is_it(one) for one in seen)
    )
    hop = next_hop(case)
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
        evidence=[f"seen at: {names_of(path)}"],
    )


def of_echo_settings(case: Case) -> Iterator[Verdict]:
    key = "ipv4/icmp_echo_ignore_all" if case.version == 4 else "ipv6/icmp/echo_ignore_all"
    if case.wish.towards and case.guest.get("settings", {}).get(key) == "1":
        name = key.replace("/", ".")
        yield Verdict(
            GUEST,
            f"the guest does not answer echo requests (net.{name} = 1)",
            [in_guest(case, f"sysctl -w net.{name}=0")],
        )


def of_gaps(case: Case) -> Iterator[Verdict]:
    """Say between which two stations the packet was lost, if no other rule knows the cause."""
    path = path_of(case)
    passed = last_seen(case, is_request(case), path)
    if passed < len(path):
        before = path[passed - 1].name if passed else ("the host" if case.wish.towards else "guest")
        yield Verdict(
            path[passed].key,
            f"it is last seen at {before}, and does not come to {path[passed].name}",
            evidence=[f"seen at: {names_of(path[:passed]) or 'no station'}"],
        )
    back = list(reversed(path))
    returned = last_seen(case, is_reply(case), back)
    if 0 < returned < len(back):
        yield Verdict(
            back[returned].key,
            f"the answer is last seen at {back[returned - 1].name}, and does not come to "
            f"{back[returned].name}",
            evidence=[f"the answer was seen at: {names_of(back[:returned])}"],
        )
    if returned == len(back) and back:
        yield Verdict(
            GUEST,
            f"the answer comes to {back[-1].name}, and the guest does not take it",
            advice="see the guest's firewall and rp_filter",
        )


def unknown(case: Case) -> Verdict:
    number = error_of(case)
    reason = f": {os.strerror(number)}" if number else ""
    path = path_of(case)
    passed = last_seen(case, is_request(case), path)
    hop = path[passed - 1].key if passed else GUEST
    return Verdict(
        hop,
        f"no answer from {case.target or case.wish.target}{reason}; nothing on the way explains it",
        advice="capture where it is lost: tapwright sandbox capture",
        evidence=[f"seen at: {names_of(path[:passed]) or 'no station'}"],
    )
