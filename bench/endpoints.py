#!/usr/bin/env python3
"""Throughput and latency of each internetworking model on each kind of interface, relative to a TAP
plugged straight into a bridge.

    scripts/bench --only endpoints

In one run, a sandbox for each row, taking turns ROUNDS times: TCP to and from the guest for a
while each (its own end is busybox's nc), and the round trip of many pings, one after another. The
last row is a pair of veths between two namespaces, without a virtual machine.
"""

import dataclasses
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TypedDict

from bench.place import COMMAND, Place, make_bridge, new_host, run
from bench.samples import Samples, rounded
from tapwright.linux import netns
from tapwright.sandbox import lifecycle
from tapwright.sandbox.taps import TapWish, requested
from tapwright.state.record import Record, Spec

BRIDGE, HOST = "br-models", "10.78.0.1"
STRAIGHT = "TAP in the bridge"
NO_VM = "veth between namespaces, no VM"
_CHUNK = bytes(1 << 16)
_PORT = 5001

Shell = Sequence[str]
"""The words before a script that make it run at the other end."""


class Row(NamedTuple):
    """`prepare` makes the interface eth0 in a namespace of that name."""

    name: str
    model: str
    prepare: Callable[[str], None]


class Model(TypedDict):
    """Mbit/s, and microseconds; a sample for each round."""

    name: str
    to_guest: Samples
    from_guest: Samples
    round_trip: Samples


@dataclasses.dataclass(frozen=True)
class Traffic:
    """How it is measured: each direction for so many seconds, and so many pings."""

    seconds: float = 1.0
    pings: int = 200


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


def measure(place: Place, rounds: int, traffic: Traffic, rows: Sequence[Row] = ROWS) -> list[Model]:
    new_host()
    make_bridge(BRIDGE, f"{HOST}/16")
    root, spec = place.root("models"), place.spec()
    with ExitStack() as undo:
        ends: dict[str, tuple[str, Shell]] = {}
        wish = TapWish("tap-models", bridge=BRIDGE, addresses=["10.78.1.1/16"])
        straight = dataclasses.replace(spec, taps=[requested(wish, "eth0")])
        undo.enter_context(sandbox(root, "bench-m1", straight))
        ends[STRAIGHT] = "10.78.1.1", in_guest(root, "bench-m1")
        for number, row in enumerate(rows, 2):
            name, address = f"bench-m{number}", f"10.78.{number}.1"
            undo.enter_context(prepared(root, name, address, spec, row))
            ends[row.name] = address, in_guest(root, name)
        space = undo.enter_context(namespace("bench-veth"))
        veth(space)
        configure(space, "10.78.99.1")
        ends[NO_VM] = "10.78.99.1", in_namespace(space)
        took: dict[str, Model] = {
            name: {"name": name, "to_guest": [], "from_guest": [], "round_trip": []}
            for name in ends
        }
        for _ in range(rounds):
            for name, (address, shell) in ends.items():
                enter(took[name], shell, address, traffic)
    return list(took.values())


def enter(model: Model, shell: Shell, address: str, traffic: Traffic) -> None:
    """One round."""
    model["to_guest"] += rounded([to_guest(shell, address, traffic.seconds)])
    model["from_guest"] += rounded([from_guest(shell, traffic.seconds)])
    model["round_trip"] += rounded([round_trip(address, traffic.pings)])


def to_guest(shell: Shell, address: str, seconds: float) -> float:
    serving = subprocess.Popen([*shell, f"nc -l -p {_PORT} >/dev/null"])
    connection = connected(address)
    with connection:
        start, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < seconds:
            sent += connection.send(_CHUNK)
    serving.wait()
    return sent * 8 / elapsed / 1e6


def connected(address: str) -> socket.socket:
    """Once the other end listens, of which nobody tells."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection((address, _PORT), timeout=20)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def from_guest(shell: Shell, seconds: float) -> float:
    with socket.create_server((HOST, _PORT)) as listener:
        listener.settimeout(20)
        sending = subprocess.Popen([*shell, f"nc {HOST} {_PORT} </dev/zero 2>/dev/null"])
        connection, _ = listener.accept()
        connection.settimeout(20)
        with connection:
            start, received = time.monotonic(), 0
            while (elapsed := time.monotonic() - start) < seconds:
                received += len(connection.recv(len(_CHUNK)))
    sending.wait()
    return received * 8 / elapsed / 1e6


def round_trip(address: str, pings: int) -> float:
    command = ["ping", "-n", "-i", "0.002", "-c", str(pings), address]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return statistics.median(float(ms) for ms in re.findall(r"time=([\d.]+)", done.stdout)) * 1e3


@contextmanager
def prepared(root: str, name: str, address: str, spec: Spec, row: Row) -> Iterator[None]:
    with namespace(name) as space:
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
