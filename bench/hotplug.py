#!/usr/bin/env python3
"""How long a TAP takes from being asked for to the first ping, and how long to be gone again.

    .venv/bin/python bench/hotplug.py [ROUNDS]

In one run and taking turns: (a) bare QMP and agent, driven by hand in one process; (b) the library,
over the control socket of a sandbox; (c) the command. Medians of ROUNDS rounds each, in
milliseconds, with their ratio to (a). As root, in a network namespace of its own.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tapwright import config
from tapwright.agent.client import AgentClient
from tapwright.hypervisor import accelerator
from tapwright.hypervisor.qemu import Machine, Qemu
from tapwright.image import store
from tapwright.linux import libc, tuntap
from tapwright.sandbox import client, lifecycle, registry
from tapwright.sandbox.planning import Wish, plan

BRIDGE, TAP, NAME = "br-bench", "tap-bench", "eth-bench"
MAC = "02:42:20:6f:a3:69"
COMMAND = str(Path(sys.executable).with_name("tapwright"))

Milliseconds = float


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    image = store.ensure(store.DIRECTORY, print)
    libc.unshare(libc.CLONE_NEWNET)
    for words in (
        "link set lo up",
        f"link add {BRIDGE} type bridge",
        f"address add 172.16.0.1/16 dev {BRIDGE}",
        f"link set {BRIDGE} up",
        f"tuntap add dev {TAP} mode tap",
        f"link set {TAP} master {BRIDGE} up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    with tempfile.TemporaryDirectory() as root:
        spec = plan(config.Config(), Wish(), print)
        lifecycle.run(root, "bench", spec)
        try:
            asyncio.run(compare(Machine(image.kernel, image.initrd, "auto"), root, rounds))
        finally:
            lifecycle.delete(root, "bench")


async def compare(machine: Machine, root: str, rounds: int) -> None:
    chosen, _ = await accelerator.choose(machine, print)
    qemu = await Qemu.start(replace(machine, accelerator=chosen))
    agent = AgentClient(qemu.agent)
    await agent.connect(60)
    print(f"accelerator {chosen}, {rounds} rounds")
    kinds = {
        "(a) bare QMP and agent": lambda address: bare(qemu, agent, address),
        "(b) library": lambda address: in_thread(library, root, address),
        "(c) command": lambda address: in_thread(command, root, address),
    }
    took: dict[str, list[tuple[Milliseconds, Milliseconds]]] = {kind: [] for kind in kinds}
    for number in range(rounds + 2):
        for which, (kind, measure) in enumerate(kinds.items()):
            # An address of its own each time, so that no neighbour entry is a stale one.
            times = await measure(f"172.16.{which + 1}.{number + 1}")
            if number >= 2:
                took[kind].append(times)
    await agent.close()
    await qemu.stop()
    report(took)


def report(took: dict[str, list[tuple[Milliseconds, Milliseconds]]]) -> None:
    base = [statistics.median(column) for column in zip(*next(iter(took.values())), strict=True)]
    print(f"{'':24}{'add to first ping':>22}{'remove':>18}")
    for kind, times in took.items():
        cells = [statistics.median(column) for column in zip(*times, strict=True)]
        plug, unplug = (f"{c:7.1f} ms {c / b:5.2f}" for c, b in zip(cells, base, strict=True))
        print(f"{kind:24}{plug:>22}{unplug:>18}")


async def bare(qemu: Qemu, agent: AgentClient, address: str) -> tuple[Milliseconds, Milliseconds]:
    """Only what must be done, and nothing else."""
    execute = qemu.qmp.execute
    start = time.monotonic()
    settings = tuntap.Tap(packet_info=False, vnet_hdr=False, persistent=True, multi_queue=False)
    (fd,) = tuntap.attach(TAP, settings, 1)
    await qemu.qmp.execute_with_fd(fd, "getfd", fdname="tap")
    await execute("netdev_add", type="tap", id="net", fd="tap")
    await execute(
        "device_add", driver="virtio-net-pci", id="nic", netdev="net", mac=MAC, bus="slot0"
    )
    os.close(fd)
    await agent.call(
        "set_interface",
        mac=MAC,
        name=NAME,
        addresses=[{"address": address, "prefix_length": 16}],
    )
    await asyncio.to_thread(ping, address)
    pinged = time.monotonic()
    gone = asyncio.Event()
    # There is one for the device's virtio part too, which has no id and comes 50 ms earlier.
    qemu.qmp.on_event("DEVICE_DELETED", lambda data: gone.set() if "device" in data else None)
    await execute("device_del", id="nic")
    await gone.wait()
    await execute("netdev_del", id="net")
    return (pinged - start) * 1e3, (time.monotonic() - pinged) * 1e3


async def in_thread(
    measure: Callable[[str, str], tuple[Milliseconds, Milliseconds]], root: str, address: str
) -> tuple[Milliseconds, Milliseconds]:
    return await asyncio.to_thread(measure, root, address)


def interface(address: str) -> client.Json:
    return {
        "device": TAP,
        "name": NAME,
        "hwAddr": MAC,
        "IPAddresses": [{"address": address, "mask": "16"}],
    }


def library(root: str, address: str) -> tuple[Milliseconds, Milliseconds]:
    sandbox = registry.find(root, "bench")
    start = time.monotonic()
    client.add_interface(sandbox, interface(address))
    ping(address)
    pinged = time.monotonic()
    client.remove_interface(sandbox, {"name": NAME})
    return (pinged - start) * 1e3, (time.monotonic() - pinged) * 1e3


def command(root: str, address: str) -> tuple[Milliseconds, Milliseconds]:
    def run(verb: str, content: client.Json) -> None:
        words = [COMMAND, "--root", root, "kata-network", verb, "bench", "-"]
        subprocess.run(words, input=json.dumps(content), text=True, check=True, capture_output=True)

    start = time.monotonic()
    run("add-iface", interface(address))
    ping(address)
    pinged = time.monotonic()
    run("del-iface", {"name": NAME})
    return (pinged - start) * 1e3, (time.monotonic() - pinged) * 1e3


def ping(address: str) -> None:
    subprocess.run(["ping", "-c", "1", "-W", "5", address], check=True, capture_output=True)


if __name__ == "__main__":
    main()
