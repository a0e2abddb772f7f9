#!/usr/bin/env python3
"""How quickly the guest follows its namespace, and what that costs when nothing happens.

    scripts/bench --only netmon

In one run and taking turns: from an interface with its address coming up in the namespace to the
first ping that the guest answers, with `add-iface` called by hand on the control socket at that
moment, and with the network monitor. The namespace's own stack is kept from answering. Then: how
long after the last of many changes, spread over one second, the guest is what the namespace is;
processor time of supervisor and monitor while nothing happens; their memory (proportional share).
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from bench.memory import kinds, smaps
from bench.ping import ping_after
from bench.place import Place, make_bridge, new_host, run
from bench.samples import Milliseconds, Samples, rounded
from tapwright.linux import addresses, links, netns, routes
from tapwright.linux.addresses import Address
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.linux.routes import Route
from tapwright.sandbox import client, lifecycle
from tapwright.sandbox.planning import our_monitor
from tapwright.state import registry
from tapwright.state.registry import Sandbox

BRIDGE = "br-netmon"
_HAND, _MONITORED = "bench-hand", "bench-mon"


class Netmon(TypedDict):
    """Milliseconds to the first ping, `by_hand` and by the `monitor`; how long after the last of
    `changes` the guest has them all (`burst`); of each process `ticks` of the processor in
    `idle_seconds`, and `memory` in MiB."""

    by_hand: Samples
    monitor: Samples
    changes: int
    burst: Milliseconds
    idle_seconds: float
    ticks: dict[str, int]
    memory: dict[str, float]


def measure(place: Place, rounds: int, changes: int, idle_seconds: float) -> Netmon:
    """`changes` must be a multiple of 10."""
    new_host()
    make_bridge(BRIDGE, "10.77.0.1/16")
    with _sandboxes(place) as (hand, monitored):
        took: tuple[Samples, Samples] = [], []
        for number in range(rounds + 2):
            for times, sandbox in zip(took, (hand, monitored), strict=True):
                address = f"10.77.{1 + (sandbox is monitored)}.{number + 1}"
                elapsed = _first_ping(sandbox, address, by_hand=sandbox is hand)
                if number >= 2:
                    times.append(elapsed)
        burst = _burst(monitored, changes)
        pids = {kind: pid for pid, kind in kinds(monitored).items() if kind != "QEMU"}
        ticks = _idle(pids, idle_seconds)
        memory = {kind: round(smaps(pid)["Pss"], 1) for kind, pid in pids.items()}
    return {
        "by_hand": rounded(took[0]),
        "monitor": rounded(took[1]),
        "changes": changes,
        "burst": round(burst, 1),
        "idle_seconds": idle_seconds,
        "ticks": ticks,
        "memory": memory,
    }


@contextmanager
def _sandboxes(place: Place) -> Iterator[tuple[Sandbox, Sandbox]]:
    """One without a monitor and one with it."""
    root, spec = place.root("netmon"), dataclasses.replace(place.spec(), rulesets="none")
    try:
        by_hand = lifecycle.run(root, _HAND, spec)
        watched = lifecycle.run(root, _MONITORED, dataclasses.replace(spec, netmon=our_monitor()))
        for record in (by_hand, watched):
            _keep_quiet(record.netns)
        yield registry.find(root, _HAND), registry.find(root, _MONITORED)
    finally:
        for name in (_HAND, _MONITORED):
            lifecycle.delete(root, name)


def _keep_quiet(path: str) -> None:
    """The interface answers for itself until it is joined, which would be taken for the guest. By a
    packet rule, for a guest can do without these, and has all else that keeps a namespace quiet."""
    run(f"ip netns exec {Path(path).name} iptables -A INPUT -p icmp -j DROP")


def _first_ping(sandbox: Sandbox, address: str, by_hand: bool) -> Milliseconds:
    inside, link = _add_interface(sandbox, address)
    with inside:
        start = time.monotonic()
        links.set_up(inside, link.index)
    if by_hand:
        request = {
            "device": "eth1",
            "name": "eth1",
            "hwAddr": link.mac,
            "IPAddresses": [{"address": address, "mask": "16"}],
        }
        client.of(sandbox).add_interface(request)
    elapsed = ping_after(start, address)
    if by_hand:
        client.of(sandbox).remove_interface({"name": "eth1"})
    _remove_interface(sandbox)
    return elapsed


def _add_interface(sandbox: Sandbox, address: str) -> tuple[Netlink, Link]:
    """An interface of the namespace that leads to the bridge, and is down."""
    path = sandbox.record.netns if sandbox.record else ""
    run(f"ip link add h1 type veth peer name eth1 netns {Path(path).name}")
    run(f"ip link set h1 master {BRIDGE} up")
    with netns.entered(path):
        inside = Netlink()
    link = links.named(inside, "eth1")
    addresses.add(inside, link.index, Address(address, 16))
    return inside, link


def _remove_interface(sandbox: Sandbox) -> None:
    run("ip link delete h1")
    while client.of(sandbox).list_interfaces():
        time.sleep(0.02)


def _burst(sandbox: Sandbox, changes: int) -> Milliseconds:
    inside, link = _add_interface(sandbox, "10.77.0.9")
    links.set_up(inside, link.index)
    while not client.of(sandbox).list_interfaces():
        time.sleep(0.02)
    start = time.monotonic()
    for number in range(changes):
        if number % 10 == 0:
            addresses.add(inside, link.index, Address(f"10.77.3.{number // 10 + 1}", 16))
        else:
            destination = f"10.{100 + number // 200}.{number % 200}.0/24"
            routes.add_many(inside, [Route(destination, link.index, "10.77.0.2")])
        time.sleep(max(start + (number + 1) / changes - time.monotonic(), 0))
    end = time.monotonic()
    while not _has_all(sandbox, changes):
        time.sleep(0.01)
    elapsed = (time.monotonic() - end) * 1e3
    inside.close()
    _remove_interface(sandbox)
    return elapsed


def _has_all(sandbox: Sandbox, changes: int) -> bool:
    found = [
        route for route in client.of(sandbox).list_routes() if route.get("gateway") == "10.77.0.2"
    ]
    (nic,) = client.of(sandbox).list_interfaces()
    return len(found) == changes * 9 // 10 and len(nic["ip"]) == 1 + changes // 10


def _idle(pids: dict[str, int], seconds: float) -> dict[str, int]:
    before = {kind: _ticks(pid) for kind, pid in pids.items()}
    time.sleep(seconds)
    return {kind: _ticks(pid) - before[kind] for kind, pid in pids.items()}


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
