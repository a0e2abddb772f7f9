#!/usr/bin/env python3
"""Throughput and latency of each internetworking model on each kind of interface, relative to a TAP
plugged straight into a bridge.

    .venv/bin/python bench/endpoints.py [ROUNDS]

In one run, a sandbox for each row, taking turns ROUNDS times: TCP to and from the guest for a
second each (its own end is busybox's nc), and the round trip of 200 pings, one after another.
Medians, and their ratio to the first row. The last row is a pair of veths between two namespaces,
without a virtual machine. As root, in a network namespace of its own.
"""

import dataclasses
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tapwright import config
from tapwright.linux import libc, netns
from tapwright.sandbox import lifecycle
from tapwright.sandbox.planning import Wish, plan
from tapwright.sandbox.record import Record, Spec
from tapwright.sandbox.taps import TapWish, requested

COMMAND = str(Path(sys.executable).with_name("tapwright"))
BRIDGE, HOST = "br-bench", "10.78.0.1"
SECONDS, PINGS, CHUNK = 1.0, 200, bytes(1 << 16)
PORT = 5001

Shell = Sequence[str]
"""The words before a script that make it run at the other end."""


class Row(NamedTuple):
    """`prepare` makes the interface eth0 in a namespace of that name."""

    name: str
    model: str
    prepare: Callable[[str], None]


class Figures(NamedTuple):
    """Mbit/s, and microseconds."""

    to_guest: float
    from_guest: float
    round_trip: float


def veth(space: str) -> None:
    run(f"ip link add h-{space} type veth peer name eth0 netns {space}")
    run(f"ip link set h-{space} master {BRIDGE} up")


def macvlan(space: str) -> None:
    on_veth(space, "macvlan")


def macvtap(space: str) -> None:
    on_veth(space, "macvtap")


def on_veth(space: str, kind: str) -> None:
    run(f"ip link add h-{space} type veth peer name p-{space}")
    run(f"ip link set h-{space} master {BRIDGE} up")
    run(f"ip link set p-{space} up")
    run(f"ip link add link p-{space} name m-{space} type {kind} mode bridge")
    run(f"ip link set m-{space} netns {space} name eth0")


def tap(space: str) -> None:
    """A TAP and a veth; the alias has the veth passed over."""
    run(f"ip link add h-{space} type veth peer name out netns {space}")
    run(f"ip link set h-{space} master {BRIDGE} up")
    run(f"ip -n {space} tuntap add dev eth0 mode tap")
    run(f"ip -n {space} link set out alias tapwright up")
    join(space, "eth0", "out")


def join(space: str, one: str, other: str) -> None:
    for source, target in ((one, other), (other, one)):
        run(f"tc -n {space} qdisc add dev {source} ingress")
        run(
            f"tc -n {space} filter add dev {source} parent ffff: protocol all u32 match u8 0 0 "
            f"action mirred egress redirect dev {target}"
        )


ROWS = (
    Row("`tcfilter`, veth", "tcfilter", veth),
    Row("`tcfilter`, macvlan", "tcfilter", macvlan),
    Row("`macvtap`, veth", "macvtap", veth),
    Row("`macvtap`, macvlan", "macvtap", macvlan),
    Row("`none`, veth, joined by hand as `tcfilter` does", "none", veth),
    Row("existing TAP, joined with a veth by tc", "tcfilter", tap),
    Row("existing macvtap on a veth", "tcfilter", macvtap),
)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    spec = plan(config.Config(), Wish(), print)
    libc.unshare(libc.CLONE_NEWNET)
    run("ip link set lo up")
    run(f"ip link add {BRIDGE} address 02:00:00:00:00:fe type bridge")
    run(f"ip address add {HOST}/16 dev {BRIDGE}")
    run(f"ip link set {BRIDGE} up")
    with tempfile.TemporaryDirectory() as root, ExitStack() as undo:
        shells: dict[str, tuple[str, Shell]] = {}
        tap = TapWish("tap-bench", bridge=BRIDGE, addresses=["10.78.1.1/16"])
        straight = dataclasses.replace(spec, taps=[requested(tap, "eth0")])
        undo.enter_context(sandbox(root, "b1", straight))
        shells["TAP in the bridge"] = "10.78.1.1", in_guest(root, "b1")
        for number, row in enumerate(ROWS, 2):
            name, address = f"b{number}", f"10.78.{number}.1"
            undo.enter_context(prepared(root, name, address, spec, row))
            shells[row.name] = address, in_guest(root, name)
        space = undo.enter_context(namespace("b-veth"))
        veth(space)
        configure(space, "10.78.99.1")
        shells["veth between namespaces, no VM"] = "10.78.99.1", in_namespace(space)
        took: dict[str, list[Figures]] = {name: [] for name in shells}
        for _ in range(rounds):
            for name, (address, shell) in shells.items():
                took[name].append(measure(shell, address))
    report(took, rounds)


def measure(shell: Shell, address: str) -> Figures:
    return Figures(to_guest(shell, address), from_guest(shell), round_trip(address))


def to_guest(shell: Shell, address: str) -> float:
    serving = subprocess.Popen([*shell, f"nc -l -p {PORT} >/dev/null"])
    connection = connected(address)
    with connection:
        start, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < SECONDS:
            sent += connection.send(CHUNK)
    serving.wait()
    return sent * 8 / elapsed / 1e6


def connected(address: str) -> socket.socket:
    """Once the other end listens, of which nobody tells."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection((address, PORT), timeout=20)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def from_guest(shell: Shell) -> float:
    with socket.create_server((HOST, PORT)) as listener:
        listener.settimeout(20)
        sending = subprocess.Popen([*shell, f"nc {HOST} {PORT} </dev/zero 2>/dev/null"])
        connection, _ = listener.accept()
        with connection:
            start, received = time.monotonic(), 0
            while (elapsed := time.monotonic() - start) < SECONDS:
                received += len(connection.recv(len(CHUNK)))
    sending.wait()
    return received * 8 / elapsed / 1e6


def round_trip(address: str) -> float:
    command = ["ping", "-n", "-i", "0.002", "-c", str(PINGS), address]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return statistics.median(float(ms) for ms in re.findall(r"time=([\d.]+)", done.stdout)) * 1e3


def report(took: dict[str, list[Figures]], rounds: int) -> None:
    medians = {
        name: Figures(*(statistics.median(column) for column in zip(*figures, strict=True)))
        for name, figures in took.items()
    }
    base = next(iter(medians.values()))
    print(f"\n{rounds} rounds\n")
    print("| | to the guest Mbit/s | | from it Mbit/s | | round trip µs | |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, figures in medians.items():
        cells = (
            f"{value:.0f} | {value / other:.2f}" for value, other in zip(figures, base, strict=True)
        )
        print(f"| {name} | {' | '.join(cells)} |")


@contextmanager
def prepared(root: str, name: str, address: str, spec: Spec, row: Row) -> Iterator[None]:
    with namespace(f"n-{name}") as space:
        row.prepare(space)
        configure(space, address)
        wanted = dataclasses.replace(spec, netns=netns.path_of(space), model=row.model)
        with sandbox(root, name, wanted) as record:
            if row.model == "none":
                (nic,) = record.interfaces
                join(space, "eth0", f"tap{nic.index}_kata")
            yield


def configure(space: str, address: str) -> None:
    run(f"ip -n {space} address add {address}/16 dev eth0")
    run(f"ip -n {space} link set eth0 up")


@contextmanager
def namespace(name: str) -> Iterator[str]:
    netns.create(netns.path_of(name))
    try:
        yield name
    finally:
        netns.remove(netns.path_of(name))


@contextmanager
def sandbox(root: str, name: str, spec: Spec) -> Iterator[Record]:
    record = lifecycle.run(root, name, spec)
    try:
        yield record
    finally:
        lifecycle.delete(root, name)


def in_guest(root: str, name: str) -> Shell:
    return COMMAND, "--root", root, "sandbox", "exec", name, "--", "sh", "-c"


def in_namespace(space: str) -> Shell:
    return "ip", "netns", "exec", space, "busybox", "sh", "-c"


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


if __name__ == "__main__":
    main()
