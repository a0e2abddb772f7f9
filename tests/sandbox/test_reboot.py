"""Sandboxes of an earlier run of the host: nothing of the kernel's is theirs any more."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.hypervisor.machine import Machine
from tapwright.linux import boot, links, netns
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.sandbox import lifecycle
from tapwright.state import ownership, registry
from tapwright.state.record import Journal, Record, Spec

BRIDGE, TAP = "twboot-br", "twboot-tap"


@pytest.fixture
def port() -> Iterator[Link]:
    """A TAP in a bridge, as the host's own configuration makes both at each boot."""
    for command in (
        f"link add {BRIDGE} type bridge",
        f"tuntap add dev {TAP} mode tap",
        f"link set {TAP} master {BRIDGE}",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    yield found()
    for name in (TAP, BRIDGE):
        subprocess.run(["ip", "link", "delete", name], check=True)


def found() -> Link:
    with Netlink() as nl:
        link = links.find(nl, TAP)
    assert link
    return link


@pytest.mark.parametrize("is_same_boot", [True, False])
def test_its_devices_are_others_by_now(tmp_path: Path, port: Link, is_same_boot: bool) -> None:
    """Of the same names, and the same numbers."""
    run = boot.current() if is_same_boot else "an earlier one"
    spec = Spec(Machine(Path(), Path()))
    record = Record("web", spec, time.time(), time.monotonic(), "", boot=run)
    directory, alive = ownership.claim(registry.directory_of(tmp_path), record)
    os.close(alive)
    journal = Journal(directory, record)
    name: Any = {"nic": "eth0", "follows": 0, "device": TAP}
    journal.hold("port", **name, bridge=BRIDGE, ovs="", index=port.index, mark="m")
    device = {**name, "netns": netns.OWN, "index": port.index, "was_up": True}
    kind = {"settings": {}, "rx_limit": 0, "tx_limit": 0}
    if not is_same_boot:  # which is not undone, else
        journal.hold("tap", **device, **kind, place=ownership._place(device))
    assert lifecycle.delete(tmp_path, "web") == []
    assert found().master == (0 if is_same_boot else port.master)
    assert not directory.exists()
