#!/usr/bin/env python3
"""How quickly the guest follows its namespace, and what that costs when nothing happens.

    .venv/bin/python bench/netmon.py [ROUNDS]

In one run and taking turns, medians of ROUNDS rounds: from an interface with its address coming up
in the namespace to the first ping that the guest answers, (a) with `add-iface` called by hand on
the control socket at that moment, (b) with the network monitor. The namespace's own stack is kept
from answering. Then: how long after the last of 1,000 changes, spread over one second, the guest is
what the namespace is; processor time of supervisor and monitor while nothing happens; their memory
(proportional share). As root, in a network namespace of its own.
"""

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tapwright import config
from tapwright.linux import addresses, libc, links, netns, routes
from tapwright.linux.addresses import Address
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.linux.routes import Route
from tapwright.sandbox import client, lifecycle, registry
from tapwright.sandbox.planning import Wish, our_monitor, plan
from tapwright.sandbox.registry import Sandbox

BRIDGE = "br-bench"
CHANGES, IDLE_SECONDS = 1000, 10.0

Milliseconds = float


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    spec = plan(config.Config(), Wish(), print)
    libc.unshare(libc.CLONE_NEWNET)
    for words in (
        "link set lo up",
        f"link add {BRIDGE} address 02:00:00:00:00:fe type bridge",
        f"address add 10.77.0.1/16 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ):
        ip(words)
    with tempfile.TemporaryDirectory() as root:
        by_hand = lifecycle.run(root, "bench-hand", spec)
        watched = lifecycle.run(root, "bench-mon", dataclasses.replace(spec, netmon=our_monitor()))
        try:
            for record in (by_hand, watched):
                keep_quiet(record.netns)
            hand, monitor = (registry.find(root, record.id) for record in (by_hand, watched))
            first_pings(hand, monitor, rounds)
            burst(monitor)
            idle(monitor)
        finally:
            for name in ("bench-hand", "bench-mon"):
                lifecycle.delete(root, name)


def keep_quiet(path: str) -> None:
    """The interface answers for itself until it is joined, which would be taken for the guest."""
    with netns.entered(path):
        Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text("8")
        Path("/proc/sys/net/ipv4/icmp_echo_ignore_all").write_text("1")


def first_pings(hand: Sandbox, monitor: Sandbox, rounds: int) -> None:
    took: dict[str, list[Milliseconds]] = {"(a) add-iface by hand": [], "(b) monitor": []}
    for number in range(rounds + 2):
        for times, sandbox in zip(took.values(), (hand, monitor), strict=True):
            address = f"10.77.{1 + (sandbox is monitor)}.{number + 1}"
            elapsed = first_ping(sandbox, address, by_hand=sandbox is hand)
            if number >= 2:
                times.append(elapsed)
    base, *_ = (statistics.median(times) for times in took.values())
    print(f"from up to first ping, {rounds} rounds")
    for kind, times in took.items():
        median = statistics.median(times)
        print(f"  {kind:24}{median:7.1f} ms {median / base:5.2f} (+{median - base:.1f} ms)")


def first_ping(sandbox: Sandbox, address: str, by_hand: bool) -> Milliseconds:
    inside, link = add_interface(sandbox, address)
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
        client.add_interface(sandbox, request)
    ping(address)
    elapsed = (time.monotonic() - start) * 1e3
    if by_hand:
        client.remove_interface(sandbox, {"name": "eth1"})
    remove_interface(sandbox)
    return elapsed


def add_interface(sandbox: Sandbox, address: str) -> tuple[Netlink, Link]:
    """An interface of the namespace that leads to the bridge, and is down."""
    path = sandbox.record.netns if sandbox.record else ""
    ip(f"link add h1 type veth peer name eth1 netns {Path(path).name}")
    ip(f"link set h1 master {BRIDGE} up")
    with netns.entered(path):
        inside = Netlink()
    (link,) = (link for link in links.listing(inside) if link.name == "eth1")
    addresses.add(inside, link.index, Address(address, 16))
    return inside, link


def remove_interface(sandbox: Sandbox) -> None:
    ip("link delete h1")
    while client.list_interfaces(sandbox):
        time.sleep(0.02)


def ping(address: str) -> None:
    """Ask every 2 ms until there is an answer."""
    command = ["ping", "-q", "-n", "-i", "0.002", "-w", "10", "-c", "1", address]
    subprocess.run(command, check=True, capture_output=True)


def burst(sandbox: Sandbox) -> None:
    inside, link = add_interface(sandbox, "10.77.0.9")
    links.set_up(inside, link.index)
    while not client.list_interfaces(sandbox):
        time.sleep(0.02)
    start = time.monotonic()
    for number in range(CHANGES):
        if number % 10 == 0:
            addresses.add(inside, link.index, Address(f"10.77.3.{number // 10 + 1}", 16))
        else:
            destination = f"10.{100 + number // 200}.{number % 200}.0/24"
            routes.add(inside, Route(destination, link.index, "10.77.0.2"))
        time.sleep(max(start + (number + 1) / CHANGES - time.monotonic(), 0))
    end = time.monotonic()
    while not has_all(sandbox):
        time.sleep(0.01)
    print(
        f"{CHANGES} changes in {end - start:.2f} s: the guest has all of them "
        f"{(time.monotonic() - end) * 1e3:.0f} ms after the last one"
    )
    inside.close()
    remove_interface(sandbox)


def has_all(sandbox: Sandbox) -> bool:
    found = [route for route in client.list_routes(sandbox) if route.get("gateway") == "10.77.0.2"]
    (nic,) = client.list_interfaces(sandbox)
    return len(found) == CHANGES * 9 // 10 and len(nic["ip"]) == 1 + CHANGES // 10


def idle(sandbox: Sandbox) -> None:
    supervisor = int((sandbox.directory / "alive").read_text())
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    (monitor,) = (
        int(pid) for pid in children if b"netmon" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    pids = {"supervisor": supervisor, "monitor": monitor}
    before = {pid: ticks(pid) for pid in pids.values()}
    time.sleep(IDLE_SECONDS)
    total = 0.0
    for name, pid in pids.items():
        memory = share(pid)
        total += memory
        print(
            f"{name}: {ticks(pid) - before[pid]} ticks of the processor in {IDLE_SECONDS:g} s, "
            f"{memory:.1f} MiB"
        )
    print(f"both: {total:.1f} MiB")


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def share(pid: int) -> float:
    """Proportional share of memory, in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of {pid}")


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


if __name__ == "__main__":
    main()
