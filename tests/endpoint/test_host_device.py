"""Interfaces of the host that are moved into a namespace, and back."""

from collections.abc import Iterator
from typing import Any

import pytest

from tapwright.endpoint import host_device
from tapwright.endpoint.host_device import HostDevice
from tapwright.errors import NetworkError
from tests.host import eventually
from tests.namespaces import Namespace, namespace

DEVICE, PEER, INSIDE = "ndev0", "ndev1", "inner0"
ADDRESSES = [
    "10.79.0.2/24 broadcast +",
    "10.79.0.3/24",
    "10.79.1.2/24 noprefixroute",
    "10.79.2.2 peer 10.79.2.1/32",
    "169.254.7.7/16 scope link",
    "fd79::2/64 nodad",
    "fd79::3/64 nodad",
]
host = Namespace()


@pytest.fixture
def inside() -> Iterator[Namespace]:
    """A namespace; the host has a veth, up and with addresses."""
    with namespace("twtest-device") as made:
        host.ip(f"link add {DEVICE} mtu 1450 type veth peer name {PEER}")
        host.ip(f"link set {PEER} up")
        host.ip(f"link set {DEVICE} alias something up")
        for address in ADDRESSES:
            host.ip(f"address add {address} dev {DEVICE}")
        # One that is not for good.
        host.ip(f"address add 10.79.3.2/24 dev {DEVICE} valid_lft 600 preferred_lft 600")
        assert eventually(lambda: "state UP" in host.ip(f"link show {DEVICE}"))
        yield made
        for name in (DEVICE, PEER, "taken0"):
            if f"{name}:" in host.ip("-o link") or f"{name}@" in host.ip("-o link"):
                host.ip(f"link delete {name}")


def told(place: Namespace, name: str) -> dict[str, Any]:
    """What is to be the same before and after."""
    state = place.state()[name]
    (link,), (addresses,) = state["links"], state["addresses"]
    kept = ("ifname", "address", "mtu", "ifalias", "operstate", "master", "txqlen")
    fields = ("local", "prefixlen", "address", "broadcast", "scope", "noprefixroute")
    return {key: link.get(key) for key in kept} | {
        "addresses": [
            {key: one.get(key) for key in fields}
            for one in addresses["addr_info"]
            if one["valid_life_time"] == 2**32 - 1
        ]
    }


def looked_at(inside: Namespace, name: str = INSIDE) -> HostDevice:
    return host_device.look(DEVICE, name, inside.path)


def again(device: HostDevice) -> HostDevice:
    """As another process reads it from the journal."""
    return host_device.of_entry({"kind": "net_device", **host_device.entry_of(device)})


def is_back(before: dict[str, Any]) -> bool:
    return eventually(lambda: told(host, DEVICE) == before)


def test_there_and_back(inside: Namespace) -> None:
    before = told(host, DEVICE)
    device = looked_at(inside)
    assert device.move_in() == inside.index(INSIDE)
    assert DEVICE not in host.ip("link")
    assert eventually(lambda: "state UP" in inside.ip(f"link show {INSIDE}"))
    there = told(inside, INSIDE)
    expected = [one for one in before["addresses"] if one["scope"] == "global"]
    assert there["addresses"][: len(expected)] == expected
    assert [one["local"] for one in there["addresses"][len(expected) :]] == [
        one["local"] for one in before["addresses"] if one["local"].startswith("fe80")
    ]
    assert {key: there[key] for key in ("address", "mtu", "ifalias")} == {
        key: before[key] for key in ("address", "mtu", "ifalias")
    }
    again(device).move_back()
    assert is_back(before)
    again(device).move_back()
    assert is_back(before)


def test_one_that_was_down_in_a_bridge(inside: Namespace) -> None:
    host.ip("link add taken0 type bridge")
    host.ip(f"link set {DEVICE} down")
    host.ip(f"link set {DEVICE} master taken0")
    assert eventually(lambda: "state DOWN" in host.ip(f"link show {DEVICE}"))
    before = told(host, DEVICE)
    device = looked_at(inside)
    device.move_in()
    assert eventually(lambda: "state UP" in inside.ip(f"link show {INSIDE}"))
    again(device).move_back()
    assert is_back(before)
    assert before["master"] == "taken0"


def test_what_was_begun_only(inside: Namespace) -> None:
    """Killed between the steps: the interface is down, or has nothing so far."""
    before = told(host, DEVICE)
    device = looked_at(inside)
    again(device).move_back()
    assert told(host, DEVICE) == before
    host.ip(f"link set {DEVICE} down")
    again(device).move_back()
    assert is_back(before)
    host.ip(f"link set {DEVICE} down")
    host.ip(f"link set {DEVICE} name {INSIDE} netns {inside.name}")
    again(device).move_back()
    assert is_back(before)


def test_a_name_that_is_taken_in_the_meantime(inside: Namespace) -> None:
    device = looked_at(inside)
    device.move_in()
    mac = inside.mac(INSIDE)
    host.ip(f"link add {DEVICE} type bridge")
    again(device).move_back()
    assert INSIDE not in inside.ip("link")
    found = next(link for link in host.ip("-o link").splitlines() if mac in link)
    name = found.split()[1].partition("@")[0]
    assert name == INSIDE
    assert "10.79.0.2/24" in host.ip(f"address show {name}")
    host.ip(f"link delete {name}")


def test_a_number_that_is_free(inside: Namespace) -> None:
    inside.ip("link add eth0 type bridge")
    before = told(host, DEVICE)
    device = looked_at(inside, "eth%d")
    assert device.move_in() == inside.index("eth1")
    again(device).move_back()
    assert is_back(before)


def test_one_that_was_renamed_inside(inside: Namespace) -> None:
    before = told(host, DEVICE)
    device = looked_at(inside)
    device.move_in()
    inside.ip(f"link set {INSIDE} down")
    inside.ip(f"link set {INSIDE} name other7")
    again(device).move_back()
    assert is_back(before)


def test_a_namespace_that_has_gone(inside: Namespace) -> None:
    """With it went the interface: nothing is left to do, and another of the name is let be."""
    device = looked_at(inside)
    device.move_in()
    inside.ip(f"link delete {INSIDE}")
    host.ip(f"link add {DEVICE} type bridge")
    before = told(host, DEVICE)
    again(device).move_back()
    assert told(host, DEVICE) == before


@pytest.mark.parametrize(
    ("device", "name", "message"),
    [
        ("nowhere0", "x", "there is no interface nowhere0 on the host"),
        ("lo", "x", "lo is a loopback, and no NIC of a VM can stand for that"),
        (DEVICE, "lo", "there is an interface lo in /run/netns/twtest-device already; give ndev0"),
    ],
)
def test_what_is_refused(inside: Namespace, device: str, name: str, message: str) -> None:
    before = told(host, DEVICE)
    with pytest.raises(NetworkError, match=message):
        host_device.look(device, name, inside.path)
    assert told(host, DEVICE) == before
