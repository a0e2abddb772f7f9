"""The interfaces on the way: down, with filters, queues, packet rules, or an MTU that is too
small."""

import shlex
from collections.abc import Iterator

from tapwright.diagnosis import way as ways
from tapwright.diagnosis.case import GUEST, OUT, Case, Drop, Verdict
from tapwright.diagnosis.verdicts.reading import (
    called,
    guest_link,
    hop_of,
    hop_of_name,
    large_arrives,
    outcome_of,
)
from tapwright.diagnosis.verdicts.remedies import at_place, in_guest, set_up
from tapwright.diagnosis.way import Point
from tapwright.linux.probes import ANSWERED


def of_points(case: Case) -> Iterator[Verdict]:
    for point in case.way.points:
        if point.kind in (ways.GUEST_NIC, ways.GATEWAY, ways.HOST_NIC, ways.OVS):
            continue
        name = called(point)
        if point.state == ways.DOWN and point.kind != ways.QEMU_NIC:
            yield Verdict(hop_of(point), f"{name} is down", set_up(case, point))
        elif point.state == ways.DOWN:
            yield Verdict("QEMU", "; ".join(point.facts) or "QEMU does not run")
        elif point.state == ways.MISSING and point.kind not in (ways.FILTERS, ways.SOCKET):
            yield Verdict(
                hop_of(point),
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
        add = at_place(source.place, f"tc qdisc add dev {source.name} ingress")
        yield Verdict(
            "tc filters",
            f"the tc filter is missing that sends what {source.name} receives to {target.name}",
            [
                f"{add} 2>/dev/null || true",
                at_place(
                    source.place,
                    f"tc filter add dev {source.name} parent ffff: prio 2 protocol all u32 match "
                    f"u8 0 0 action mirred egress redirect dev {target.name}",
                ),
            ],
        )


def of_queues(case: Case) -> Iterator[Verdict]:
    for place, name, kind, waiting in case.queues:
        yield Verdict(
            hop_of_name(case, place, name),
            f"the queue of {name} is stopped: its qdisc {kind} holds {waiting} packets back",
            [at_place(place, f"tc qdisc del dev {name} root")],
        )


def of_drops(case: Case) -> Iterator[Verdict]:
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


def of_sizes(case: Case) -> Iterator[Verdict]:
    if outcome_of(case, "echo") != ANSWERED or large_arrives(case):
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
                hop_of(point),
                f"the MTU of {called(point)} is {point.mtu}, and the guest sends packets of "
                f"{size}: the large ones are dropped there without a word",
                [at_place(point.place, f"ip link set {point.name} mtu {wanted}")],
            )
    link = guest_link(case)
    if link and link["mtu"] > wanted:
        yield Verdict(
            GUEST,
            f"the MTU of the guest's NIC {link['name']} is {link['mtu']}, and that of what follows "
            f"{wanted}: large packets are dropped",
            [in_guest(case, f"ip link set {link['name']} mtu {wanted}")],
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
