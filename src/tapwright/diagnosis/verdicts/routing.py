"""The host as a router."""

import errno
import ipaddress
from collections.abc import Iterator

from tapwright.diagnosis.case import OUT, Case, Verdict
from tapwright.diagnosis.verdicts.reading import (
    DEFAULTS,
    best_route,
    crosses_host,
    egress,
    ingress,
    next_hop,
    prefix_length,
    wanted_routes,
)
from tapwright.linux.lookup import SPECIAL


def of_host_route(case: Case) -> Iterator[Verdict]:
    if case.is_local or case.wish.towards or not crosses_host(case):
        return
    host, version = case.host, case.version
    inside = ingress(case)
    best = best_route(case.target, host.routes)
    family = "-6 " if version == 6 else ""
    if best and best.kind in SPECIAL:
        yield Verdict(
            "host route",
            f"the host has a route of the kind {best.kind} to {best.destination}",
            [f"ip {family}route del {best.kind} {best.destination}"],
        )
    if best is None or best.destination in DEFAULTS:
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
        for name in (inside, egress(case)):
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


def of_ipv6_off(case: Case) -> Iterator[Verdict]:
    """Judge disable_ipv6 of the host's interfaces. It also removes their IPv6 addresses, so the
    remedy adds the gateway's address again."""
    hop = next_hop(case)
    for name in (ingress(case), egress(case)) if case.version == 6 else ():
        if name and case.host.settings.get(f"ipv6/conf/{name}/disable_ipv6") == "1":
            commands = [f"sysctl -w net.ipv6.conf.{name}.disable_ipv6=0"]
            gateways = [r.gateway for r in wanted_routes(case) if r.gateway]
            if name == ingress(case) and hop in gateways and hop not in case.host.addresses:
                commands.append(f"ip -6 address add {hop}/{prefix_length(case)} dev {name} nodad")
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
    inside = ingress(case)
    if not inside or not case.own or not case.back or not case.back.device:
        return
    name = case.host.names.get(case.back.device, "")
    best = best_route(case.own, case.host.routes)
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


def of_back_route(case: Case) -> Iterator[Verdict]:
    """Judge the host's route to the guest where the target is the host itself."""
    if crosses_host(case) and (case.is_local or case.wish.towards):
        yield from _of_other_way(case)


def of_connections(case: Case) -> Iterator[Verdict]:
    host = case.host
    if host.most_connections and host.connections >= host.most_connections:
        yield Verdict(
            "host",
            f"the host's table of connections is full ({host.connections} of "
            f"{host.most_connections}): it drops what begins another",
            [f"sysctl -w net.netfilter.nf_conntrack_max={2 * host.most_connections}"],
        )
