"""`kata-network`: TAPs that somebody made and bridged, plugged into a running VM."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import NetworkError
from tapwright.sandbox import client
from tapwright.state import registry
from tests import forked
from tests.amounts import amount
from tests.host import Host, answers_ping, eventually
from tests.sandboxes import COMMAND, Tapwright, ended, pids_of

BRIDGE = "br-kata"
GATEWAY = "172.16.0.1"
VM = "vm-0001"

Json = Any


@pytest.fixture(scope="module")
def bridge() -> Iterator[str]:
    """A Linux bridge with addresses of the host's."""
    for command in (
        f"link add {BRIDGE} type bridge",
        f"address add {GATEWAY}/16 dev {BRIDGE}",
        f"address add fd16::1/64 dev {BRIDGE} nodad",
        f"link set {BRIDGE} up",
    ):
        ip(command)
    yield BRIDGE
    ip(f"link delete {BRIDGE}")


@pytest.fixture(scope="module")
def vm(tapwright: Tapwright, bridge: str) -> Iterator[Json]:
    yield tapwright.json("sandbox", "run", VM)
    tapwright.delete(VM)


@pytest.fixture
def clean(host: Host, vm: Json, tapwright: Tapwright) -> Iterator[None]:
    """The test ends with a VM without NICs, and a host as before it."""
    asked = client.of(registry.find(tapwright.root, VM))
    assert asked.list_interfaces() == []
    before = host.snapshot()
    yield
    try:
        host.assert_same(before)
        assert asked.list_interfaces() == []
    finally:
        for interface in asked.list_interfaces():
            asked.remove_interface({"name": interface["name"]})


@pytest.fixture
def taps(bridge: str, clean: None) -> Iterator[Any]:
    """Make a TAP in the bridge, as an administrator does; they go at the end."""
    made = []

    def make(name: str, *flags: str, up: bool = True, mode: str = "tap") -> str:
        ip(f"tuntap add dev {name} mode {mode} {' '.join(flags)}")
        made.append(name)
        if mode == "tap":
            ip(f"link set {name} master {bridge}" + (" up" if up else ""))
        return name

    yield make
    for name in made:
        ip(f"link delete {name}")


class Kata:
    """Runs `kata-network` on the VM through a link named kata-runtime, as a script of Kata's
    operators does. JSON goes in and comes out."""

    def __init__(self, tapwright: Tapwright, directory: Path, sandbox: str = VM) -> None:
        self._tapwright = tapwright
        self._sandbox = sandbox
        self.link = directory / "kata-runtime"
        self.link.symlink_to(COMMAND)

    def command(self, verb: str, sandbox: str, with_input: bool) -> list[str]:
        words = ["--config", str(self._tapwright.config), "--root", str(self._tapwright.root)]
        end = ["-"] if with_input else []
        return [str(self.link), *words, "kata-network", verb, sandbox, *end]

    def run(
        self, verb: str, content: Json = None, sandbox: str = ""
    ) -> subprocess.CompletedProcess[str]:
        text = content if isinstance(content, str) else json.dumps(content)
        has_input = not verb.startswith("list-")
        return forked.run(
            self.command(verb, sandbox or self._sandbox, has_input),
            input=text if has_input else None,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def __call__(self, verb: str, content: Json = None, sandbox: str = "") -> Json:
        """Insist on success; the answer, which is one line."""
        done = self.run(verb, content, sandbox)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("\n") == 1
        return json.loads(done.stdout)

    def refused(self, verb: str, content: Json = None, sandbox: str = "") -> str:
        """Insist on a failure that prints null; the reason, which is one line."""
        done = self.run(verb, content, sandbox)
        assert (done.returncode, done.stdout) in ((1, "null\n"), (2, "null\n")), done
        assert done.stderr.count("\n") == 1
        return done.stderr


@pytest.fixture(scope="module")
def kata(tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory) -> Kata:
    return Kata(tapwright, tmp_path_factory.mktemp("bin"))


def ip(command: str) -> str:
    done = subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
    return done.stdout


def interface(tap: str, **changes: Json) -> dict[str, Json]:
    fields = {
        "device": tap,
        "name": "eth-test",
        "IPAddresses": [{"address": "172.16.0.3", "mask": "16"}],
        "hwAddr": "02:42:20:6f:a3:69",
        "mtu": 1500,
        **changes,
    }
    return {key: value for key, value in fields.items() if value is not None}


def tap_state(name: str) -> Json:
    (link,) = json.loads(ip(f"-details -json link show {name}"))
    offloads = subprocess.run(
        ["ethtool", "-k", name], check=True, capture_output=True, text=True
    ).stdout
    keys = "ifindex", "mtu", "master", "linkmode", "address", "linkinfo"
    # What follows from the carrier (LOWER_UP) the kernel notes up to a second later.
    flags = set(link["flags"]) - {"NO-CARRIER"}
    # Off is off; what the kernel would like to have on is its own affair.
    told = offloads.replace(" [requested on]", "")
    return {key: link.get(key) for key in keys} | {"flags": flags}, told


# --- the day of an operator -----------------------------------------------------------------


def test_add_list_and_delete(tapwright: Tapwright, kata: Kata, taps: Any, clean: None) -> None:
    taps("tap-test")
    before = tap_state("tap-test")
    answer = kata("add-iface", interface("tap-test"))
    assert answer == {
        "device": "tap-test",
        "name": "eth-test",
        "IPAddresses": [{"Family": 2, "Address": "172.16.0.3", "Mask": "16"}],
        "mtu": 1500,
        "hwAddr": "02:42:20:6f:a3:69",
        "pciAddr": "01.0/00",
    }
    assert kata("list-ifaces") == [
        {"name": "eth-test", "mac": "02:42:20:6f:a3:69", "ip": ["172.16.0.3/16"], "mtu": 1500}
    ]
    assert answers_ping("172.16.0.3")
    assert tapwright.reaches(VM, GATEWAY)
    assert kata("del-iface", {"name": "eth-test"}) is None
    assert tap_state("tap-test") == before
    assert kata("list-ifaces") is None


def test_answer_is_spelled_as_in_kata(kata: Kata, taps: Any, clean: None) -> None:
    taps("tap-test")
    done = kata.run("add-iface", interface("tap-test"))
    assert done.stdout == (
        '{"device":"tap-test","name":"eth-test","IPAddresses":[{"Family":2,'
        '"Address":"172.16.0.3","Mask":"16"}],"mtu":1500,"hwAddr":"02:42:20:6f:a3:69",'
        '"pciAddr":"01.0/00"}\n'
    )
    assert kata.run("del-iface", {"name": "eth-test"}).stdout == "null\n"


def test_keys_in_any_case_from_a_file(kata: Kata, taps: Any, tmp_path: Path, clean: None) -> None:
    taps("tap-test")
    content = {
        "Device": "tap-test",
        "NAME": "eth-test",
        "ipaddresses": [{"Address": "172.16.0.4", "Mask": "24", "Family": 2}],
        "HwAddr": "02:42:20:6F:A3:70",
        "Mtu": 1400,
        "RawFlags": 0,
    }
    (tmp_path / "iface.json").write_text(json.dumps(content))
    command = [*kata.command("add-iface", VM[:4], False), str(tmp_path / "iface.json")]
    subprocess.run(command, check=True, capture_output=True)
    (listed,) = kata("list-ifaces")
    assert listed == {
        "name": "eth-test",
        "mac": "02:42:20:6f:a3:70",
        "ip": ["172.16.0.4/24"],
        "mtu": 1400,
    }
    kata("del-iface", content)


def test_addresses_of_both_families_and_none(
    kata: Kata, tapwright: Tapwright, taps: Any, clean: None
) -> None:
    for name in ("tap-a", "tap-b"):
        taps(name)
    addresses = [
        {"address": "172.16.0.5", "mask": "16"},
        {"address": "172.16.9.5", "mask": 24},
        {"address": "fd16::5", "mask": "64"},
    ]
    kata("add-iface", interface("tap-a", IPAddresses=addresses))
    kata(
        "add-iface",
        interface("tap-b", name="bare0", hwAddr="02:42:20:6f:a3:71", IPAddresses=None, mtu=None),
    )
    both, bare = kata("list-ifaces")
    assert sorted(both["ip"]) == ["172.16.0.5/16", "172.16.9.5/24", "fd16::5/64"]
    assert (bare["ip"], bare["mtu"]) == ([], 1500)
    assert answers_ping("172.16.0.5")
    assert answers_ping("fd16::5")
    for name in ("eth-test", "bare0"):
        kata("del-iface", {"name": name})


def _is_neighbour(address: str, mac: str) -> bool:
    return mac in ip(f"neighbour show {address} dev {BRIDGE}")


@pytest.fixture
def carrier(bridge: str) -> Iterator[None]:
    """A bridge that has lost its last one forgets its neighbours, some time within a second."""
    ip(f"link add kata-carrier master {bridge} up type veth peer name kata-carried")
    ip("link set kata-carried up")
    yield
    ip("link delete kata-carrier")


def test_address_that_was_elsewhere(kata: Kata, taps: Any, carrier: None, clean: None) -> None:
    """A guest says where its address is now, so that nobody goes on sending to where it was."""
    taps("tap-test")
    for version in (4, 6):
        # Else a slow host asks for the neighbour while it is away, and forgets it.
        Path(f"/proc/sys/net/ipv{version}/neigh/{BRIDGE}/delay_first_probe_time").write_text("600")
    for address, mac, is_first in (
        ("172.16.0.3", "02:42:20:6f:a3:01", True),
        ("172.16.0.3", "02:42:20:6f:a3:02", False),
        ("fd16::3", "02:42:20:6f:a3:03", True),
        ("fd16::3", "02:42:20:6f:a3:04", False),
    ):
        addresses = [{"address": address, "mask": "64" if ":" in address else "16"}]
        kata("add-iface", interface("tap-test", hwAddr=mac, IPAddresses=addresses))
        is_known = partial(_is_neighbour, address, mac)
        # By the guest's word alone: the host sends nothing until then, so it does not ask.
        assert is_first or eventually(is_known)
        assert answers_ping(address)
        assert is_known()
        kata("del-iface", {"name": "eth-test"})


def test_routes(kata: Kata, tapwright: Tapwright, taps: Any, clean: None) -> None:
    taps("tap-test")
    addresses = [{"address": "172.16.0.3", "mask": "16"}, {"address": "fd16::3", "mask": "64"}]
    kata("add-iface", interface("tap-test", IPAddresses=addresses))
    on_link = [
        {"dest": "172.16.0.0/16", "device": "eth-test", "source": "172.16.0.3", "scope": 253},
        {"dest": "fd16::/64", "device": "eth-test", "metric": 256},
    ]
    assert kata("list-routes") == on_link
    default = {"dest": "default", "gateway": GATEWAY, "device": "eth-test"}
    other = {"dest": "10.5.0.0/16", "gateway": GATEWAY, "device": "eth-test", "metric": 7}
    host_route = {"dest": "10.9.9.9", "device": "eth-test"}
    six = {"dest": "default", "gateway": "fd16::1", "device": "eth-test"}
    added = kata("add-route", [default, other, host_route, six])
    assert added == [
        default,
        other,
        {"dest": "10.9.9.9/32", "device": "eth-test", "scope": 253},
        six,
    ]
    listed = kata("list-routes")
    for route in (default, other, {**six, "metric": 1024}):
        assert route in listed
    assert "default via 172.16.0.1 dev eth-test" in tapwright.exec(VM, "ip", "route")

    kata("add-route", [default])  # twice is once
    assert kata("list-routes") == listed

    # All that match go; gateway and device narrow.
    assert kata("del-route", [{"dest": "10.5.0.0/16", "gateway": "172.16.0.9"}]) == [
        {"dest": "10.5.0.0/16", "gateway": "172.16.0.9"}
    ]
    assert other in kata("list-routes")
    kata("del-route", [{"dest": "10.5.0.0/16"}, {"dest": "default"}])
    remaining = kata("list-routes")
    assert [r for r in remaining if r["dest"] in ("default", "10.5.0.0/16")] == []

    # The whole table afterwards; the kernel's routes are not in question.
    result = kata("update-routes", [other])
    assert [route for route in result if route not in on_link] == [other]
    assert kata("update-routes", []) == on_link
    kata("del-iface", {"name": "eth-test"})
    assert kata("list-routes") is None


def test_routes_as_katas_monitor_sends_them(
    kata: Kata, tapwright: Tapwright, taps: Any, clean: None
) -> None:
    """All of the table, a default route to a link among them; other routes go."""
    taps("tap-test")
    kata("add-iface", interface("tap-test"))
    kata("add-route", [{"dest": "10.6.0.0/16", "gateway": GATEWAY, "device": "eth-test"}])
    on_link = {"Dest": "", "Gateway": "", "Device": "eth-test", "Source": "", "Scope": 253}
    listed = kata("update-routes", [on_link])
    assert {"dest": "0.0.0.0/0", "device": "eth-test", "scope": 253} in listed
    assert "10.6.0.0/16" not in [route["dest"] for route in listed]
    assert "default dev eth-test" in tapwright.exec(VM, "ip", "route")
    kata("del-route", [{"dest": "default", "device": "eth-test"}])
    assert "default" not in tapwright.exec(VM, "ip", "route")
    kata("del-iface", {"name": "eth-test"})


def test_del_iface_by_the_mac_address(kata: Kata, taps: Any, clean: None) -> None:
    """All that Kata's runtime looks at, in any of Go's notations."""
    for tap, mac in (("tap-a", "02:42:20:6f:a3:69"), ("tap-b", "0242.206f.a370")):
        taps(tap)
        kata("add-iface", interface(tap, name=tap, hwAddr=mac, IPAddresses=None))
    assert (
        "no interface has 02:42:20:6f:a3:71"
        in kata.run("del-iface", {"hwAddr": "02:42:20:6f:a3:71"}).stderr
    )
    kata("del-iface", {"Device": "tap-a", "HwAddr": "02-42-20-6F-A3-69"})
    assert [nic["mac"] for nic in kata("list-ifaces")] == ["02:42:20:6f:a3:70"]
    kata("del-iface", {"name": "renamed", "hwAddr": "02:42:20:6F:A3:70"})
    assert kata("list-ifaces") is None


def test_routes_through_loopback(kata: Kata, clean: None) -> None:
    kata("add-route", [{"dest": "10.77.0.0/16", "device": "lo"}])
    assert [route["dest"] for route in kata("list-routes")] == ["10.77.0.0/16"]
    kata("del-route", [{"dest": "10.77.0.0/16"}])
    assert kata("list-routes") is None


def test_one_route(kata: Kata, taps: Any, clean: None) -> None:
    """As on openEuler's page: an object."""
    taps("tap-test")
    kata("add-iface", interface("tap-test"))
    before = kata("list-routes")
    route = {"dest": "172.17.10.10/24", "gateway": "", "device": "eth-test"}
    added = {"dest": "172.17.10.0/24", "device": "eth-test", "scope": 253}
    assert kata("add-route", route) == [added]
    default = {"dest": "default", "gateway": GATEWAY, "device": "eth-test"}
    assert kata("add-route", default) == [default]
    assert {"dest": "default", "gateway": GATEWAY, "device": "eth-test"} in kata("list-routes")
    assert kata("del-route", {"dest": "172.17.10.10/24"}) == [{"dest": "172.17.10.10/24"}]
    assert kata("del-route", default) == [default]
    assert kata("list-routes") == before
    assert "routes are a JSON list" in kata.refused("update-routes", default)
    assert "dest: it is missing" in kata.refused("add-route", {})
    kata("del-iface", {"name": "eth-test"})


def test_update_iface(kata: Kata, tapwright: Tapwright, taps: Any, clean: None) -> None:
    taps("tap-test")
    made = kata("add-iface", interface("tap-test"))
    update = {
        "device": "",
        "name": "eth-test",
        "mtu": 0,
        "hwAddr": "",
        "linkType": "",
        "queues": 0,
        "IPAddresses": [{"address": "172.16.0.9", "mask": "16"}],
        "vhostUserSocket": "",
    }
    address = {"Family": 2, "Address": "172.16.0.9", "Mask": "16"}
    assert kata("update-iface", update) == {**made, "IPAddresses": [address]}
    assert answers_ping("172.16.0.9")
    assert "172.16.0.3" not in tapwright.exec(VM, "ip", "address")
    (listed,) = kata("list-ifaces")
    assert (listed["ip"], listed["mtu"]) == (["172.16.0.9/16"], 1500)
    # No addresses are no change.
    assert kata("update-iface", {"name": "eth-test"}) == {**made, "IPAddresses": [address]}
    assert kata("list-ifaces") == [listed]
    for change, reason in (
        ({"mtu": 1500}, "mtu: 1500 is refused: only IPAddresses can be updated"),
        ({"hwAddr": "02:42:20:6f:a3:69"}, "hwAddr: "),
        ({"device": "tap-test"}, "device: "),
        ({"queues": 1}, "queues: "),
        ({"linkType": "tap"}, "linkType: "),
        ({"vhostUserSocket": "/x"}, "vhostUserSocket: "),
        ({"name": "eth9"}, "there is no interface 'eth9'"),
        ({"IPAddresses": [{"address": "x", "mask": "16"}]}, "IPAddresses: "),
    ):
        assert reason in kata.refused("update-iface", {**update, **change})
    assert kata("list-ifaces") == [listed]
    kata("del-iface", {"name": "eth-test"})


def test_update_of_an_interface_that_follows(
    kata: Kata, tapwright: Tapwright, vm: Json, clean: None
) -> None:
    """Its routes, which go with the address, are there again; and the namespace has the last
    word when it changes."""
    name = Path(vm["netns"]).name
    ip(f"link add twtest1 type veth peer name lan0 netns {name}")
    ip("address add 10.98.0.1/24 dev twtest1")
    ip("link set twtest1 up")
    ip(f"-n {name} address add 10.98.0.2/24 dev lan0")
    ip(f"-n {name} link set lan0 up")
    ip(f"-n {name} route add default via 10.98.0.1")
    sandbox = registry.find(tapwright.root, VM)
    client.of(sandbox).call("sync", at_once=True)
    assert "default via 10.98.0.1 dev lan0" in tapwright.exec(VM, "ip", "route")
    addresses = [{"address": "10.98.0.7", "mask": "24"}]
    assert kata("update-iface", {"name": "lan0", "IPAddresses": addresses})["device"] == "lan0"
    assert answers_ping("10.98.0.7")
    assert "default via 10.98.0.1 dev lan0" in tapwright.exec(VM, "ip", "route")
    client.of(sandbox).call("sync")
    assert "10.98.0.7/24" in tapwright.exec(VM, "ip", "address")
    ip(f"-n {name} address add 10.98.0.3/24 dev lan0")
    client.of(sandbox).call("sync")
    shown = tapwright.exec(VM, "ip", "address")
    assert [f"10.98.0.{n}/24" in shown for n in (2, 3, 7)] == [True, True, False]
    ip("link delete twtest1")
    client.of(sandbox).call("sync")


def test_listing_as_kata_has_it(tapwright: Tapwright, kata: Kata, taps: Any, clean: None) -> None:
    taps("tap-test")
    config = tapwright.configuration({"enable_compat_old_cni": False}, tapwright.templates)
    assert tapwright.run("sandbox", "run", "full", config=config).returncode == 0
    try:
        assert kata("list-ifaces", sandbox="full") is None
        addresses = [{"address": "172.16.0.3", "mask": "16"}, {"address": "fd16::3", "mask": "64"}]
        made = kata("add-iface", interface("tap-test", IPAddresses=addresses), sandbox="full")
        assert kata("list-ifaces", sandbox="full") == [made]
        assert [one["Family"] for one in made["IPAddresses"]] == [2, 10]
    finally:
        tapwright.delete("full")


def test_failed_routes_change_nothing(kata: Kata, taps: Any, clean: None) -> None:
    taps("tap-test")
    kata("add-iface", interface("tap-test"))
    kata("add-route", [{"dest": "10.5.0.0/16", "gateway": GATEWAY, "device": "eth-test"}])
    before = kata("list-routes")
    good = {"dest": "10.6.0.0/16", "gateway": GATEWAY, "device": "eth-test"}
    for bad, reason in (
        ({"dest": "10.7.0.0/16", "gateway": "192.0.2.1", "device": "eth-test"}, "10.7.0.0/16"),
        ({"dest": "10.7.0.0/16", "device": "eth-none"}, "no interface called 'eth-none'"),
        ({"dest": "10.5.0.0/16", "gateway": "172.16.0.7", "device": "eth-test"}, "File exists"),
    ):
        assert reason in kata.refused("add-route", [good, bad])
        assert kata("list-routes") == before
    unreachable = {"dest": "10.7.0.0/16", "gateway": "192.0.2.1", "device": "eth-test"}
    kata.refused("update-routes", [good, unreachable])
    assert kata("list-routes") == before
    kata("del-iface", {"name": "eth-test"})


# --- TAPs of all makes -----------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("vnet_hdr",), ("multi_queue",), ("pi",)])
@pytest.mark.parametrize("up", [True, False])
def test_tap_is_given_back_as_it_was(
    kata: Kata, taps: Any, clean: None, flags: tuple[str, ...], up: bool
) -> None:
    taps("tap-test", *flags, up=up)
    before = tap_state("tap-test")
    kata("add-iface", interface("tap-test"))
    assert answers_ping("172.16.0.3")
    kata("del-iface", {"name": "eth-test"})
    assert tap_state("tap-test") == before


def test_queues(kata: Kata, tapwright: Tapwright, taps: Any, clean: None) -> None:
    taps("tap-mq", "multi_queue", "vnet_hdr")
    before = tap_state("tap-mq")
    kata("add-iface", interface("tap-mq", queues=5))
    assert answers_ping("172.16.0.3")
    queues = tapwright.exec(VM, "ls", "/sys/class/net/eth-test/queues").split()
    assert sorted(queues) == sorted(f"{d}-{n}" for d in ("rx", "tx") for n in range(5))
    used = tapwright.exec(VM, "sh", "-c", "grep -c virtio.*-input /proc/interrupts")
    assert int(used) >= 5
    kata("del-iface", {"name": "eth-test"})
    assert tap_state("tap-mq") == before


def test_tap_in_the_sandboxs_namespace_comes_first(
    kata: Kata, vm: Json, taps: Any, clean: None
) -> None:
    name = Path(vm["netns"]).name
    ip(f"-n {name} tuntap add dev tap-test mode tap")
    taps("tap-test")
    kata("add-iface", interface("tap-test"))
    assert "LOWER_UP" in ip(f"-n {name} link show tap-test")
    assert "LOWER_UP" not in ip("link show tap-test")
    kata("del-iface", {"name": "eth-test"})
    ip(f"-n {name} link delete tap-test")


def test_veth_in_the_sandboxs_namespace_is_joined(kata: Kata, vm: Json, clean: None) -> None:
    name = Path(vm["netns"]).name
    ip(f"link add twtest1 type veth peer name lan0 netns {name}")
    ip("address add 10.98.0.1/24 dev twtest1")
    ip("link set twtest1 up")
    ip(f"-n {name} link set lan0 up")
    mac = json.loads(ip(f"-n {name} -json link show lan0"))[0]["address"]
    addresses = [{"address": "10.98.0.2", "mask": "24"}]
    kata(
        "add-iface",
        interface("lan0", IPAddresses=addresses, hwAddr=mac, linkType="veth"),
    )
    assert answers_ping("10.98.0.2")
    kata("del-iface", {"name": "eth-test"})
    shown = subprocess.check_output(["tc", "-n", name, "qdisc", "show", "dev", "lan0"], text=True)
    assert "ingress" not in shown
    ip("link delete twtest1")


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": None}, "device: it is missing"),
        ({"device": "a" * 16}, "1 to 15 letters"),
        ({"device": "9tap"}, "the first a letter"),
        ({"device": "tap/1"}, "device: 'tap/1' is refused"),
        ({"name": None}, "name: it is missing"),
        ({"name": "eth 0"}, "name: 'eth 0' is refused"),
        ({"hwAddr": None}, "hwAddr: it is missing"),
        ({"hwAddr": "02:42:20:6f:a3"}, "six bytes in hexadecimal"),
        ({"hwAddr": "01:00:5e:00:00:01"}, "a unicast address"),
        ({"hwAddr": "00:00:00:00:00:00"}, "a unicast address"),
        ({"mtu": 45}, "mtu: 45 is refused: it must be a whole number from 46 to 9600"),
        ({"mtu": 9601}, "from 46 to 9600"),
        ({"mtu": "1500"}, "mtu: '1500' is refused"),
        ({"mtu": True}, "mtu: True is refused"),
        ({"queues": -1}, "queues: -1 is refused"),
        ({"queues": 1000}, "from 0 to 256"),
        ({"IPAddresses": [{"address": "172.16.0.3", "mask": "33"}]}, "172.16.0.3/33"),
        ({"IPAddresses": [{"address": "172.16.0.300", "mask": "16"}]}, "172.16.0.300/16"),
        ({"IPAddresses": [{"address": "172.16.0.3"}]}, "a prefix length"),
        ({"IPAddresses": [{"address": "224.0.0.1", "mask": "16"}]}, "that one NIC can have"),
        ({"IPAddresses": "172.16.0.3/16"}, "it must be a list"),
        ({"vhostUserSocket": "run/sock"}, "an absolute path"),
        ({"vhostUserSocket": "/" + "s" * 128}, "at most 128 bytes, not 129"),
        (
            {"vhostUserSocket": "/" + "s" * 107},
            "at most 107 bytes, the longest path of a unix socket",
        ),
        ({"vhostUserSocket": "/run/sock"}, "set file_mem_backend in [hypervisor.qemu]"),
        ({"queues": 2}, "queues: 2: tap-test was made for one queue"),
        ({"linkType": "veth"}, "linkType: 'veth', but tap-test is a tap"),
        ({"device": "tap-none"}, "there is no tap-none in the sandbox's network namespace"),
        ({"device": BRIDGE}, f"{BRIDGE} is no TAP but a bridge"),
        ({"device": "tun-test"}, "tun-test is no TAP but a tun"),
        ({"mtu": 46}, "MTU 46"),
    ],
)
def test_what_is_refused(kata: Kata, taps: Any, clean: None, changes: Json, reason: str) -> None:
    taps("tap-test")
    taps("tun-test", mode="tun")
    before = tap_state("tap-test")
    assert reason in kata.refused("add-iface", interface("tap-test", **changes))
    assert tap_state("tap-test") == before
    kata("add-iface", interface("tap-test"))
    kata("del-iface", {"name": "eth-test"})


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        ({}, "dest: it is missing"),
        ({"dest": "10.0.0.1/33", "device": "lo"}, "ADDRESS/PREFIX, ADDRESS, or default"),
        ({"dest": "10.0.0.0/8"}, "device: it is missing"),
        ({"dest": "10.0.0.0/8", "device": "x" * 16}, "1 to 15 letters"),
        ({"dest": "10.0.0.0/8", "device": "lo", "gateway": "x"}, "gateway: 'x' is refused"),
        ({"dest": "10.0.0.0/8", "device": "lo", "gateway": "fd00::1"}, "of the same family"),
        ({"dest": "10.0.0.0/8", "device": "lo", "metric": -1}, "metric: -1 is refused"),
        ({"dest": "10.0.0.0/8", "device": "lo", "scope": 256}, "scope: 256 is refused"),
        (7, "a route is a JSON object, not 7"),
    ],
)
def test_what_routes_are_refused(kata: Kata, clean: None, route: Json, reason: str) -> None:
    assert reason in kata.refused("add-route", [route])


_TAKING = ["add-iface", "update-iface", "add-route", "del-route", "update-routes"]


@pytest.mark.parametrize("verb", _TAKING)
@pytest.mark.parametrize("text", ["", "{", "nul", "\x00", "7", '"x"'])
def test_what_is_no_request(kata: Kata, clean: None, verb: str, text: str) -> None:
    kata.refused(verb, text)


def test_unknown_sandbox_and_missing_file(kata: Kata, vm: Json) -> None:
    assert "there is no sandbox 'nobody'" in kata.refused("list-ifaces", sandbox="nobody")
    done = subprocess.run(
        [*kata.command("add-iface", VM, False), "/nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "null\n")
    assert "/nowhere can't be read" in done.stderr


def test_name_mac_and_device_are_unique(kata: Kata, taps: Any, clean: None) -> None:
    for name in ("tap-a", "tap-b"):
        taps(name)
    kata("add-iface", interface("tap-a"))
    other = {"hwAddr": "02:42:20:6f:a3:99", "name": "eth-b", "IPAddresses": None}
    assert "name: 'eth-test' is taken" in kata.refused(
        "add-iface", interface("tap-b", **{**other, "name": "eth-test"})
    )
    assert "hwAddr: '02:42:20:6F:A3:69' is that of the sandbox's eth-test" in kata.refused(
        "add-iface", interface("tap-b", **{**other, "hwAddr": "02:42:20:6F:A3:69"})
    )
    assert f"tap-a is in use by sandbox '{VM}' as eth-test" in kata.refused(
        "add-iface", interface("tap-a", **other)
    )
    kata("add-iface", interface("tap-b", **other))
    for name in ("eth-test", "eth-b"):
        kata("del-iface", {"name": name})


def test_device_of_another_sandbox(
    kata: Kata, tapwright: Tapwright, taps: Any, clean: None
) -> None:
    taps("tap-mq", "multi_queue")
    tapwright.json("sandbox", "run", "other")
    kata("add-iface", interface("tap-mq"), "other")
    assert "in use by sandbox 'other' as eth-test" in kata.refused("add-iface", interface("tap-mq"))
    tapwright.delete("other")
    kata("add-iface", interface("tap-mq"))
    kata("del-iface", {"name": "eth-test"})


def test_device_of_another_process(kata: Kata, taps: Any, clean: None) -> None:
    from tapwright.linux import tuntap

    taps("tap-test")
    flags = tuntap.Tap(packet_info=False, vnet_hdr=False, persistent=True, multi_queue=False)
    (fd,) = tuntap.attach("tap-test", flags, 1)
    said = kata.refused("add-iface", interface("tap-test"))
    assert f"(pid {os.getpid()})" in said
    os.close(fd)
    kata("add-iface", interface("tap-test"))
    kata("del-iface", {"name": "eth-test"})


def test_queues_of_another_process(kata: Kata, taps: Any, clean: None) -> None:
    from tapwright.linux import tuntap

    taps("tap-mq", "multi_queue")
    flags = tuntap.Tap(packet_info=False, vnet_hdr=False, persistent=True, multi_queue=True)
    fds = tuntap.attach("tap-mq", flags, 2)
    said = kata.refused("add-iface", interface("tap-mq", queues=2))
    assert f"(pid {os.getpid()})" in said
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("qdisc", ["clsact", "ingress"])
def test_traffic_control_of_somebody_else(kata: Kata, vm: Json, clean: None, qdisc: str) -> None:
    name = Path(vm["netns"]).name
    ip(f"link add twtest1 type veth peer name lan0 netns {name}")
    ip(f"-n {name} link set lan0 up")
    tc = ["tc", "-n", name, "qdisc"]
    subprocess.run([*tc, "add", "dev", "lan0", qdisc], check=True)
    said = kata.refused("add-iface", interface("lan0"))
    assert "lan0 has traffic control on its ingress already" in said
    assert qdisc in subprocess.check_output([*tc, "show", "dev", "lan0"], text=True)
    ip("link delete twtest1")


def test_namespace_of_the_sandbox_gone(
    kata: Kata, tapwright: Tapwright, taps: Any, clean: None
) -> None:
    taps("tap-test")
    sandbox = tapwright.json("sandbox", "run", "homeless")
    ip(f"netns delete {Path(sandbox['netns']).name}")
    assert "namespace" in kata.refused("add-iface", interface("tap-test"), "homeless")
    tapwright.delete("homeless")


def test_hypervisor_that_is_late(kata: Kata, tapwright: Tapwright, taps: Any, clean: None) -> None:
    """What it was asked is done when it goes on, and no other sandbox waits for that."""
    taps("tap-test")
    taps("tap-other")
    tapwright.json("sandbox", "run", "other")
    _, qemu = pids_of(tapwright.json("sandbox", "inspect", VM))
    os.kill(qemu, signal.SIGSTOP)
    adding = subprocess.Popen(
        kata.command("add-iface", VM, True), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert adding.stdin is not None
    with adding.stdin as pipe:
        pipe.write(json.dumps(interface("tap-test")).encode())
    with pytest.raises(subprocess.TimeoutExpired):
        adding.wait(1)
    elsewhere = [{"address": "172.16.0.9", "mask": "16"}]
    kata("add-iface", interface("tap-other", IPAddresses=elsewhere), "other")
    assert answers_ping("172.16.0.9")
    tapwright.delete("other")
    assert adding.poll() is None
    os.kill(qemu, signal.SIGCONT)
    assert adding.wait(60) == 0
    assert answers_ping("172.16.0.3")
    kata("del-iface", {"name": "eth-test"})


def test_interface_that_is_not_there(kata: Kata, vm: Json) -> None:
    done = kata.run("del-iface", {"name": "eth-none", "device": "x"})
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"name": "eth-none", "device": "x"}
    assert "there is no interface 'eth-none'; there are: none" in done.stderr


def is_silent(tapwright: Tapwright) -> bool:
    try:
        tapwright.run("sandbox", "exec", "silent", "--", "true", timeout=5)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_agent_that_is_silent(kata: Kata, tapwright: Tapwright, taps: Any, clean: None) -> None:
    """Stopped, it answers nothing; the kernel of the guest still lets go of the NIC."""
    taps("tap-test")
    before = tap_state("tap-test")
    tapwright.json("sandbox", "run", "silent")
    # A busy guest may be silent for a while, too: by then it is about to be stopped.
    script = "echo ready; sleep 1; kill -STOP $PPID"
    stopped = tapwright.start("sandbox", "exec", "silent", "--", "sh", "-c", script)
    assert stopped.stdout
    assert stopped.stdout.readline() == "ready\n"
    assert eventually(lambda: is_silent(tapwright))
    said = kata.refused("add-iface", interface("tap-test"), "silent")
    assert "did not answer batch within" in said
    assert tap_state("tap-test") == before
    assert tapwright.json("sandbox", "inspect", "silent")["interfaces"] == []
    stopped.kill()
    stopped.communicate()
    tapwright.delete("silent")


# --- many, often, at once ---------------------------------------------------------------------


def test_thirty_at_once_then_no_slot(
    kata: Kata, tapwright: Tapwright, taps: Any, clean: None
) -> None:
    config = tapwright.configuration(template=tapwright.templates, default_bridges=1)
    assert tapwright.run("sandbox", "run", "wide", config=config).returncode == 0
    wide = client.of(registry.find(tapwright.root, "wide"))
    for number in range(31):
        taps(f"tap-{number}")
        request = interface(
            f"tap-{number}",
            name=f"n{number}",
            hwAddr=f"02:00:00:00:01:{number:02x}",
            IPAddresses=[{"address": f"172.16.1.{number + 1}", "mask": "16"}],
        )
        if number < 30:
            wide.add_interface(request)
        else:
            assert "all 30 slots for NICs are taken" in kata.refused("add-iface", request, "wide")
    listed = kata("list-ifaces", sandbox="wide")
    assert len(listed) == 30
    assert answers_ping("172.16.1.1")
    assert answers_ping("172.16.1.30")
    for number in range(30):
        wide.remove_interface({"name": f"n{number}"})
    tapwright.delete("wide")


@pytest.mark.large
def test_many_times_without_growth(
    kata: Kata, tapwright: Tapwright, vm: Json, taps: Any, clean: None
) -> None:
    taps("tap-test")
    sandbox = registry.find(tapwright.root, VM)
    supervisor, qemu = pids_of(tapwright.json("sandbox", "inspect", VM))

    def size() -> dict[str, int]:
        record = (sandbox.directory / "record.json").read_text()
        return {
            "supervisor's descriptors": len(os.listdir(f"/proc/{supervisor}/fd")),
            "QEMU's descriptors": len(os.listdir(f"/proc/{qemu}/fd")),
            "journal": len(record),
        }

    def resident(pid: int) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def once() -> None:
        client.of(sandbox).add_interface(interface("tap-test"))
        client.of(sandbox).remove_interface({"name": "eth-test"})

    for _ in range(10):
        once()
    before, memory = size(), resident(supervisor)
    for _ in range(amount(20, 180)):
        once()
    # A connection that has been answered is closed a moment later, before and now.
    assert eventually(lambda: all(now <= before[what] for what, now in size().items())), (
        size(),
        before,
    )
    assert resident(supervisor) < memory * 1.1
    assert client.of(sandbox).add_interface(interface("tap-test"))["pciAddr"] == "01.0/00"
    client.of(sandbox).remove_interface({"name": "eth-test"})


def test_two_at_once_are_served_in_turn(kata: Kata, taps: Any, clean: None) -> None:
    requests = [
        interface(
            taps(f"tap-{n}"),
            name=f"n{n}",
            hwAddr=f"02:00:00:00:02:{n:02x}",
            IPAddresses=[{"address": f"172.16.2.{n + 1}", "mask": "16"}],
        )
        for n in range(6)
    ]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda request: kata("add-iface", request), requests))
    assert len({answer["pciAddr"] for answer in answers}) == 6
    assert {entry["name"] for entry in kata("list-ifaces")} == {f"n{n}" for n in range(6)}
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda request: kata("del-iface", request), requests))


def test_one_of_several_at_once_gets_a_name(
    kata: Kata, tapwright: Tapwright, taps: Any, clean: None
) -> None:
    sandbox = registry.find(tapwright.root, VM)
    requests = [
        interface(taps(f"tap-{n}"), hwAddr=f"02:00:00:00:03:{n:02x}", IPAddresses=None)
        for n in range(4)
    ]

    def add(request: Json) -> str:
        try:
            client.of(sandbox).add_interface(request)
        except NetworkError as error:
            return str(error)
        return "added"

    with ThreadPoolExecutor(4) as pool:
        outcomes = sorted(pool.map(add, requests))
    assert outcomes == ["added", *["name: 'eth-test' is taken in this sandbox; choose another"] * 3]
    assert len(kata("list-ifaces")) == 1
    kata("del-iface", {"name": "eth-test"})


def test_command_killed_at_any_moment(kata: Kata, taps: Any, clean: None) -> None:
    """The supervisor finishes what has begun; either way the list is true."""
    taps("tap-test")
    before = tap_state("tap-test")
    for step in range(8):
        process = subprocess.Popen(
            kata.command("add-iface", VM, True),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(interface("tap-test")))
        process.stdin.close()
        try:
            # The moment itself is what is tested.
            process.wait(0.03 * step)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        # Served in turn: this waits for the one that was killed.
        listed = kata("list-ifaces") or []
        if listed:
            assert answers_ping("172.16.0.3")
            kata("del-iface", {"name": "eth-test"})
        assert tap_state("tap-test") == before


def test_supervisor_killed_with_a_tap(tapwright: Tapwright, kata: Kata, taps: Any) -> None:
    taps("tap-test", up=False)
    before = tap_state("tap-test")
    sandbox = tapwright.json("sandbox", "run", "victim")
    kata("add-iface", interface("tap-test"), "victim")
    supervisor, qemu = pids_of(sandbox)
    os.kill(supervisor, signal.SIGKILL)
    assert ended(qemu)
    tapwright.delete("victim")
    assert tap_state("tap-test") == before


def test_deleted_with_a_tap(tapwright: Tapwright, kata: Kata, taps: Any) -> None:
    taps("tap-test")
    before = tap_state("tap-test")
    tapwright.json("sandbox", "run", "victim")
    kata("add-iface", interface("tap-test"), "victim")
    tapwright.delete("victim")
    assert tap_state("tap-test") == before
