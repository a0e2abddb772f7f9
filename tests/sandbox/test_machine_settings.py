"""Settings of the machine, from a configuration file to traffic on a network."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host import answers_ping, eventually
from tests.hypervisor.test_machines import available_hugepages, hugepages
from tests.sandboxes import Tapwright, pids_of

SANDBOX = "machine"
VHOST = "/dev/vhost-net"

__all__ = ["hugepages"]


@pytest.fixture
def ended_sandbox(tapwright: Tapwright) -> Iterator[None]:
    yield
    tapwright.run("sandbox", "delete", "--force", SANDBOX)


pytestmark = pytest.mark.usefixtures("ended_sandbox", "nothing_left")


def run(tapwright: Tapwright, **qemu: Any) -> Any:
    config = tapwright.configuration(**qemu)
    done = tapwright.run("sandbox", "run", SANDBOX, "--network", "dual", config=config)
    assert done.returncode == 0, done.stderr
    return tapwright.json("sandbox", "inspect", SANDBOX)


def has_traffic(tapwright: Tapwright, sandbox: Any) -> bool:
    for address in sandbox["interfaces"][0]["addresses"]:
        assert answers_ping(address.partition("/")[0]), address
    for gateway in ("10.91.0.1", "fd91::1"):
        assert tapwright.reaches(SANDBOX, gateway)
    return True


def test_pc(tapwright: Tapwright) -> None:
    sandbox = run(tapwright, machine_type="pc", default_bridges=2)
    assert has_traffic(tapwright, sandbox)
    command = Path(f"/proc/{pids_of(sandbox)[1]}/cmdline").read_text().split("\0")
    assert command[command.index("-machine") + 1].startswith("pc")
    # Behind a bridge, where Kata has its first NIC.
    device = tapwright.exec(SANDBOX, "readlink", "-f", "/sys/class/net/eth0/device").strip()
    assert device.rsplit("/", 3)[1:3] == ["0000:00:02.0", "0000:01:01.0"]
    if sandbox["accelerator"] == "tcg":
        features = set(tapwright.exec(SANDBOX, "cat", "/proc/cpuinfo").split())
        assert "avx2" in features
        assert features.isdisjoint(("erms", "fsrm", "la57")), "only take an emulated one time"
    tapwright.delete(SANDBOX)


def test_hugepages_and_no_vhost_net(tapwright: Tapwright, hugepages: int) -> None:
    before = available_hugepages()
    sandbox = run(tapwright, enable_hugepages=True, disable_vhost_net=True)
    assert has_traffic(tapwright, sandbox)
    assert before - available_hugepages() == sandbox["memory_mib"] // 2
    descriptors = Path(f"/proc/{pids_of(sandbox)[1]}/fd")
    assert VHOST not in [os.readlink(descriptor) for descriptor in descriptors.iterdir()]
    tapwright.delete(SANDBOX)
    assert eventually(lambda: available_hugepages() == before)


def test_vhost_net(tapwright: Tapwright) -> None:
    """Without the key, the sandbox uses vhost-net if the host has it."""
    if not Path(VHOST).exists():
        pytest.skip(f"this host has no {VHOST}")
    sandbox = run(tapwright)
    assert has_traffic(tapwright, sandbox)
    descriptors = Path(f"/proc/{pids_of(sandbox)[1]}/fd")
    assert VHOST in [os.readlink(descriptor) for descriptor in descriptors.iterdir()]
    tapwright.delete(SANDBOX)
