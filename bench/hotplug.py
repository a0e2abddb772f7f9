#!/usr/bin/env python3
"""How long a TAP takes from being asked for to the first ping, and how long to be gone again.

    scripts/bench --only hotplug

In one run and taking turns: bare QMP and agent, driven by hand in one process; the library, over
the control socket of a sandbox; the command. All guests are started from the same template.
"""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypedDict

from bench.ping import first_ping
from bench.place import COMMAND, Place, make_bridge, new_host, run
from bench.samples import Milliseconds, Samples, rounded
from bench.starts import Bare, bare_template
from tapwright.agent.client import AgentClient
from tapwright.agent.requests import of
from tapwright.hypervisor import restoring, template
from tapwright.hypervisor.qemu import Qemu
from tapwright.linux import tuntap
from tapwright.sandbox import client, lifecycle
from tapwright.state import registry

BRIDGE, TAP, NAME = "br-hotplug", "tap-hotplug", "eth-bench"
MAC = "02:42:20:6f:a3:69"
_SANDBOX = "bench-hotplug"


class Variant(TypedDict):
    """Milliseconds, from asking for the NIC to the first ping, and from asking to its end."""

    plug: Samples
    unplug: Samples


Hotplug = dict[str, Variant]


class Times(NamedTuple):
    plug: Milliseconds
    unplug: Milliseconds


def measure(place: Place, rounds: int) -> Hotplug:
    new_host()
    make_bridge(BRIDGE, "172.16.0.1/16")
    run(f"ip tuntap add dev {TAP} mode tap")
    run(f"ip link set {TAP} master {BRIDGE} up")
    root = place.root("hotplug")
    lifecycle.run(root, _SANDBOX, place.spec())
    try:
        with bare_template(place) as bare:
            return asyncio.run(_compare(bare, root, rounds))
    finally:
        lifecycle.delete(root, _SANDBOX)


async def _compare(bare: Bare, root: str, rounds: int) -> Hotplug:
    begun = restoring.begin(bare.machine, bare.template, bare)
    qemu = await template.restored(bare.machine, begun)
    agent = AgentClient(qemu.agent, session=begun.session)
    await agent.connect(60)
    kinds: dict[str, Callable[[str], Awaitable[Times]]] = {
        "bare": lambda address: _by_hand(qemu, agent, address),
        "library": lambda address: _in_thread(_by_library, root, address),
        "command": lambda address: _in_thread(_by_command, root, address),
    }
    took: dict[str, list[Times]] = {kind: [] for kind in kinds}
    for number in range(rounds + 2):
        for which, (kind, measured) in enumerate(kinds.items()):
            # An address of its own each time, so that no neighbour entry is a stale one.
            times = await measured(f"172.16.{which + 1}.{number + 1}")
            if number >= 2:
                took[kind].append(times)
    await agent.close()
    await qemu.kill()
    return {
        kind: {
            "plug": rounded(one.plug for one in times),
            "unplug": rounded(one.unplug for one in times),
        }
        for kind, times in took.items()
    }


async def _by_hand(qemu: Qemu, agent: AgentClient, address: str) -> Times:
    """Only what must be done, and nothing else."""
    execute = qemu.qmp.execute
    start = time.monotonic()
    settings = tuntap.Tap(packet_info=False, vnet_hdr=False, persistent=True, multi_queue=False)
    (fd,) = tuntap.attach(TAP, settings, 1)
    await qemu.qmp.execute_with_fd(fd, "getfd", fdname="tap")
    await execute("netdev_add", type="tap", id="net", fd="tap")
    nic = {"driver": "virtio-net-pci", "id": "nic", "netdev": "net", "mac": MAC, "bus": "slot0"}
    await execute("device_add", **nic, romfile="")  # QEMU's files are gone from its jail
    os.close(fd)
    await agent.call(
        of(
            "set_interface",
            mac=MAC,
            name=NAME,
            addresses=[{"address": address, "prefix_length": 16}],
        )
    )
    pinged = await asyncio.to_thread(first_ping, address)
    gone = asyncio.Event()
    # There is one for the device's virtio part too, which has no id and comes 50 ms earlier.
    qemu.qmp.on_event("DEVICE_DELETED", lambda data: gone.set() if "device" in data else None)
    asked = time.monotonic()
    await execute("device_del", id="nic")
    await gone.wait()
    await execute("netdev_del", id="net")
    return _times(start, pinged, asked)


async def _in_thread(measured: Callable[[str, str], Times], root: str, address: str) -> Times:
    return await asyncio.to_thread(measured, root, address)


def _by_library(root: str, address: str) -> Times:
    sandbox = registry.find(root, _SANDBOX)
    start = time.monotonic()
    client.of(sandbox).add_interface(_interface(address))
    pinged = first_ping(address)
    asked = time.monotonic()
    client.of(sandbox).remove_interface({"name": NAME})
    return _times(start, pinged, asked)


def _by_command(root: str, address: str) -> Times:
    def tell(verb: str, content: dict[str, Any]) -> None:
        words = [COMMAND, "--root", root, "kata-network", verb, _SANDBOX, "-"]
        subprocess.run(words, input=json.dumps(content), text=True, check=True, capture_output=True)

    start = time.monotonic()
    tell("add-iface", _interface(address))
    pinged = first_ping(address)
    asked = time.monotonic()
    tell("del-iface", {"name": NAME})
    return _times(start, pinged, asked)


def _interface(address: str) -> dict[str, Any]:
    return {
        "device": TAP,
        "name": NAME,
        "hwAddr": MAC,
        "IPAddresses": [{"address": address, "mask": "16"}],
    }


def _times(start: float, pinged: float, asked: float) -> Times:
    return Times((pinged - start) * 1e3, (time.monotonic() - asked) * 1e3)
