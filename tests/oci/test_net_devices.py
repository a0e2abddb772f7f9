"""`linux.netDevices`: interfaces of the host that a container is given."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tapwright.errors import BundleError
from tapwright.hypervisor.machine import Machine
from tapwright.oci import net_devices, reports
from tapwright.oci.bundle import Bundle
from tests.host import eventually
from tests.namespaces import Namespace, namespace
from tests.oci.bundles import NAMESPACES, configuration
from tests.oci.runtime import Runtime
from tests.oci.test_networks import reaches

DEVICE, PEER = "ndev0", "ndev1"
SUBNET, LOCAL = "10.78.0", "10.178.0.3"
host = Namespace()


@pytest.fixture
def device(machine: Machine, nothing_left: None) -> Iterator[dict[str, Any]]:
    """An interface of the host, as `ip` shows it; its peer answers in another namespace."""
    with namespace("twtest-peer") as peer:
        host.ip(f"link add {DEVICE} mtu 1450 type veth peer name {PEER} netns {peer.name}")
        peer.ip(f"address add {SUBNET}.1/24 dev {PEER}")
        peer.ip(f"link set {PEER} up")
        host.ip(f"link set {DEVICE} up")
        host.ip(f"address add {SUBNET}.2/24 dev {DEVICE}")
        host.ip(f"address add {LOCAL}/24 dev {DEVICE} scope link")
        host.ip(f"address add fd78::2/64 dev {DEVICE} nodad")
        assert eventually(lambda: "state UP" in host.ip(f"link show {DEVICE}"))
        yield told()


def told() -> dict[str, Any]:
    state = host.state().get(DEVICE)
    if not state:
        return {}
    (link,), (addresses,) = state["links"], state["addresses"]
    kept = ("address", "mtu", "operstate", "flags")
    own = [(one["local"], one["prefixlen"], one["scope"]) for one in addresses["addr_info"]]
    return {key: link[key] for key in kept} | {"addresses": own}


def is_back(before: dict[str, Any]) -> bool:
    return eventually(lambda: told() == before) or told() == before


def spaces(path: str = "") -> list[dict[str, str]]:
    own = {"path": path} if path else {}
    return [{"type": kind, **(own if kind == "network" else {})} for kind in NAMESPACES]


def linux(name: str = "inner0", path: str = "") -> dict[str, Any]:
    return {"namespaces": spaces(path), "netDevices": {DEVICE: {"name": name} if name else {}}}


def test_it_is_the_container_s_and_comes_back(runtime: Runtime, device: dict[str, Any]) -> None:
    with runtime.running("sleep", "1000", linux=linux()) as container:
        assert told() == {}
        shown = container.says("ip", "addr", "show", "inner0")
        assert f"{SUBNET}.2/24" in shown
        assert "fd78::2/64" in shown
        assert "mtu 1450" in shown
        assert LOCAL not in shown  # not of global scope
        assert reaches(container, f"{SUBNET}.1")
        runtime.succeed("delete", "--force", container.id)
        assert is_back(device), (told(), device)


def test_it_comes_back_when_the_supervisor_is_killed(
    runtime: Runtime, device: dict[str, Any]
) -> None:
    with runtime.running("sleep", "1000", linux=linux("")) as container:
        assert container.says("ip", "-o", "addr", "show", DEVICE)
        (sandbox,) = runtime.tapwright.json("sandbox", "list")
        os.kill(sandbox["supervisor_pid"], signal.SIGKILL)
        assert told() == {}
        runtime.succeed("delete", "--force", container.id)
        assert is_back(device), (told(), device)


def test_it_comes_back_when_create_fails(runtime: Runtime, device: dict[str, Any]) -> None:
    hooks = {"prestart": [{"path": "/bin/false"}]}
    bundle = runtime.bundle(configuration("true", linux=linux(), hooks=hooks))
    said = runtime.refused("create", "--bundle", str(bundle), runtime.fresh_id())
    assert "prestart hook 0" in said
    assert is_back(device), (told(), device)


def test_a_namespace_of_somebody_elses_keeps_it(runtime: Runtime, device: dict[str, Any]) -> None:
    """As by runc. A name with `%d` is one that is free."""
    with namespace("twtest-given") as given:
        given.ip("link add eth0 type bridge")
        with runtime.running("sleep", "1000", linux=linux("eth%d", given.path)) as container:
            assert f"{SUBNET}.2/24" in container.says("ip", "addr", "show", "eth1")
        assert told() == {}
        assert f"{SUBNET}.2/24" in given.ip("address show eth1")
        # Nothing is made, or moved, where it can't be done.
        bundle = runtime.bundle(configuration("true", linux=linux("x", given.path)))
        said = runtime.refused("create", "--bundle", str(bundle), runtime.fresh_id())
        assert f"there is no interface {DEVICE} on the host" in said


def wanted(devices: Any, namespaces: Any = None) -> dict[str, str]:
    config = configuration("true")
    config["linux"] = {"netDevices": devices, "namespaces": namespaces or spaces()}
    return net_devices.wanted(Bundle("/nowhere", config))


@pytest.mark.unit
def test_what_is_read() -> None:
    assert wanted({"eth0": {"name": "container_eth0"}, "eth1": {}, "eth2": None}) == {
        "eth0": "container_eth0",
        "eth1": "eth1",
        "eth2": "eth2",
    }
    assert wanted({"a": {"name": "eth%d"}, "b": {"name": "eth%d"}}) == {"a": "eth%d", "b": "eth%d"}
    assert wanted({}) == {}
    assert reports.features()["linux"]["netDevices"] == {"enabled": True}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("devices", "namespaces", "message"),
    [
        ({"": {}}, None, "'' is not the name of an interface"),
        ({"a/b": {}}, None, "'a/b' is not the name"),
        ({"eth0": {"name": "a b"}}, None, "'a b' is not the name"),
        ({"eth0": {"name": "x" * 16}}, None, "1 to 15 bytes"),
        ({"eth0": {"name": ".."}}, None, r"'\.\.' is not the name"),
        ({"eth0": {"name": "a%d%d"}}, None, "'a%d%d' is not the name"),
        ({"eth0": {"name": "a%s"}}, None, "'a%s' is not the name"),
        ({"eth0": {"name": 7}}, None, "7 is not the name"),
        ({"eth0": "eth1"}, None, "eth0 must be an object"),
        ({"eth0": []}, None, "eth0 must be an object"),
        ({"eth%d": {}}, None, "names no interface of the host"),
        ({"a": {"name": "x"}, "x": {}}, None, "two interfaces can't both be called x"),
        ({"eth0": {}}, [{"type": "mount"}], "without a network namespace"),
    ],
)
def test_what_is_refused(devices: Any, namespaces: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        wanted(devices, namespaces)
