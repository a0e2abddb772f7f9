"""Interfaces that CNI results name: each becomes a NIC, or is missed aloud."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.hypervisor.machine import Machine
from tapwright.nics import promised
from tapwright.state.record import Journal, NetworkRequest, Record, Spec
from tests.namespaces import Namespace, namespace
from tests.sandboxes import Networks, Tapwright

SANDBOX = "named"
# Does what its configuration says, in the namespace, and returns what that says. The makings are
# those of the reference plugins `tap`, with `bridge` and `multiQueue`, and `bridge`, with
# `disableContainerInterface`, which Debian 12 has not.
PLUGIN = f"""#!{sys.executable}
import json, os, subprocess, sys
config = json.load(sys.stdin)
inside = os.environ.get("CNI_NETNS", "")
adds = os.environ["CNI_COMMAND"] == "ADD"
for command in config[os.environ["CNI_COMMAND"]]:
    subprocess.run(["nsenter", "--net=" + inside, *command.split()], check=adds)
if adds:
    made = [{{"name": name, "sandbox": inside}} for name in config["makes"]]
    print(json.dumps({{"cniVersion": "1.0.0", "interfaces": made}}))
"""
MAKES: dict[str, tuple[list[str], list[str]]] = {
    "tap-in-bridge": (
        ["eth0"],
        [
            "ip link add br97 type bridge",
            "ip address add 10.97.0.1/24 dev br97",
            "ip link set br97 up",
            "ip tuntap add dev eth0 mode tap multi_queue",
            "ip link set eth0 master br97 up",
        ],
    ),
    "down": (
        ["eth1"],
        ["ip link add eth1 type veth peer name peer1", "ip link set peer1 mtu 1400"],
    ),
    "port": (
        ["eth2"],
        ["ip link add eth2 type veth peer name peer2", "ip link set eth2 master br97 up"],
    ),
    "nothing": (
        ["eth3", "other3"],
        ["ip tuntap add dev tun0 mode tun", "ip link set tun0 up"],
    ),
}
WARNINGS = [
    "network 'port': eth2 became no NIC of the guest: it is a port of a bridge, whose frames its "
    "are",
    "network 'nothing': eth3 became no NIC of the guest: the namespace has no interface of that "
    "name",
    "network 'nothing': other3 became no NIC of the guest: the namespace has no interface of that "
    "name",
    "tun0 became no NIC of the guest: a tun carries no Ethernet frames",
]


@pytest.fixture(scope="module")
def run(
    tapwright: Tapwright, networks: Networks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """The sandbox as `run` reports it, and its warnings; the namespace is `named`."""
    plugins = tmp_path_factory.mktemp("plugins")
    (plugins / "made").write_text(PLUGIN)
    (plugins / "made").chmod(0o755)
    for name, (makes, commands) in MAKES.items():
        gone = [f"ip link delete {made}" for made in makes]
        networks.write(name, [{"type": "made", "makes": makes, "ADD": commands, "DEL": gone}])
    words = [word for name in MAKES for word in ("--network", name)]
    with namespace("named") as ns:
        done = tapwright.run(
            *("sandbox", "run", SANDBOX, "--json", "--vcpus", "2", "--netns", ns.path, *words),
            config=tapwright.configuration(template=tapwright.templates, plugins=plugins),
        )
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout) | {"said": done.stderr}
        tapwright.run("sandbox", "delete", "--force", SANDBOX)
    for name in MAKES:
        (networks.directory / f"{name}.conflist").unlink()


def test_what_becomes_a_nic(run: dict[str, Any]) -> None:
    assert {nic["name"]: nic["network"] for nic in run["interfaces"]} == {
        "eth0": "tap-in-bridge",
        "eth1": "down",
    }


def test_what_does_not_is_warned_of(run: dict[str, Any], tapwright: Tapwright) -> None:
    assert run["warnings"] == WARNINGS
    assert all(f"warning: {text}\n" in run["said"] for text in WARNINGS)
    inspected = tapwright.json("sandbox", "inspect", SANDBOX)
    assert inspected["warnings"] == WARNINGS
    log = (tapwright.root / "sandboxes" / SANDBOX / "log").read_text()
    assert all(text in log for text in WARNINGS)


def test_a_tap_in_a_bridge_leads_there(run: dict[str, Any], tapwright: Tapwright) -> None:
    tapwright.exec(SANDBOX, "ip", "address", "add", "10.97.0.2/24", "dev", "eth0")
    assert tapwright.reaches(SANDBOX, "10.97.0.1")
    assert "master br97" in Namespace("named").ip("link show eth0")


def test_a_multi_queue_tap_has_its_queues(run: dict[str, Any], tapwright: Tapwright) -> None:
    queues = tapwright.exec(SANDBOX, "ls", "/sys/class/net/eth0/queues").split()
    assert queues == ["rx-0", "rx-1", "tx-0", "tx-1"]


def test_one_that_is_down_is_down(run: dict[str, Any], tapwright: Tapwright) -> None:
    (flags,) = tapwright.exec(SANDBOX, "cat", "/sys/class/net/eth1/flags").split()
    assert not int(flags, 16) & 1
    assert "state DOWN" in Namespace("named").ip("link show eth1")


@pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
def test_leases_that_will_not_be_renewed(scratch_netns: str, tmp_path: Path, model: str) -> None:
    """It is known from the configuration: no guest is needed."""
    networks = [
        NetworkRequest(kind, "", json.dumps({"plugins": [{"ipam": {"type": kind}}]}), "x")
        for kind in ("dhcp", "static")
    ]
    spec = Spec(Machine(Path("kernel"), Path("initrd")), networks=networks, model=model)
    journal = Journal(tmp_path, Record("x", spec, 0, 0, scratch_netns))
    promised.note_missing(journal, [{"interfaces": [{"name": "lo", "sandbox": "x"}]}] * 2)
    expected = (
        "network 'dhcp': with internetworking_model = \"macvtap\" the plugin dhcp does not get "
        "a server's answer when it renews a lease; use tcfilter"
    )
    assert journal.record.warnings == ([expected] if model == "macvtap" else [])
