"""The JSON of `kata-network`, as Kata's own runtime and monitor read and write it."""

import io
import ipaddress
import sys
from typing import Any

import pytest

from tapwright.cli import kata_network
from tapwright.control import kata
from tapwright.errors import TapwrightError, UsageError

pytestmark = pytest.mark.unit

MAC = "02:42:20:6f:a3:69"


@pytest.mark.parametrize("written", [MAC, "02-42-20-6f-a3-69", "0242.206F.A369"])
def test_mac_addresses_as_go_parses_them(written: str) -> None:
    request = kata.read_interface({"device": "tap0", "name": "eth0", "hwAddr": written})
    assert request.mac == MAC


@pytest.mark.parametrize("mtu", [{}, {"Mtu": None}, {"Mtu": 0}])
def test_no_mtu_as_go_writes_it(mtu: Any) -> None:
    request = kata.read_interface({"Device": "tap0", "Name": "eth0", "HwAddr": MAC, **mtu})
    assert request.mtu == 1500


@pytest.mark.parametrize(
    "written",
    ["024220.6fa369", "02:42-20:6f:a3:69", "0242206fa369", "01-00-5e-00-00-01", "0000.0000.0000"],
)
def test_what_is_no_mac_address(written: str) -> None:
    with pytest.raises(UsageError, match="hwAddr: "):
        kata.read_interface({"device": "tap0", "name": "eth0", "hwAddr": written})


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ({"name": "eth0"}, ("eth0", "")),
        ({"HwAddr": MAC}, ("", MAC)),
        ({"Device": "eth0", "Name": "", "HwAddr": "02-42-20-6F-A3-69"}, ("", MAC)),
        ({"name": "eth0", "hwAddr": MAC}, ("eth0", MAC)),
    ],
)
def test_what_names_an_interface_that_goes(content: Any, read: tuple[str, str]) -> None:
    assert kata.read_leaving(content) == read


@pytest.mark.parametrize("content", [{}, {"device": "eth0"}, {"name": "", "hwAddr": ""}])
def test_what_names_none(content: Any) -> None:
    with pytest.raises(UsageError, match="name: it is missing"):
        kata.read_leaving(content)


@pytest.mark.parametrize(
    ("route", "dest"),
    [
        ({"Dest": "", "Gateway": "10.1.0.1", "Device": "eth0"}, "0.0.0.0/0"),
        ({"Dest": "", "Gateway": "fd00::1", "Device": "eth0"}, "::/0"),
        ({"Dest": "", "Gateway": "", "Device": "eth0", "Scope": 253}, "0.0.0.0/0"),
        ({"Dest": "", "Device": "eth0", "Source": "fd00::5"}, "::/0"),
        ({"dest": "default", "device": "eth0"}, "0.0.0.0/0"),
    ],
)
def test_default_routes_of_katas_monitor(route: Any, dest: str) -> None:
    """What is `default dev eth0` has neither destination nor gateway there."""
    (read,) = kata.read_table([route])
    assert (read.dest, read.device) == (dest, "eth0")


@pytest.mark.parametrize("route", [{}, {"Dest": "", "Scope": 253}, {"gateway": "10.1.0.1"}])
def test_a_route_that_leads_nowhere(route: Any) -> None:
    with pytest.raises(UsageError, match=r"(dest|device): it is missing"):
        kata.read_table([route])


@pytest.mark.parametrize("dest", ["192.168.157.204/20", "fd00::7/64"])
def test_bits_beyond_the_prefix_do_not_count(dest: str) -> None:
    """Kata's agent takes them (kata-containers/kata-containers#5207)."""
    route = {"dest": dest, "device": "eth0", "scope": 253}
    (read,) = kata.read_table([route])
    assert read.dest == str(ipaddress.ip_network(dest, strict=False))
    assert kata.read_routes(route, one=True) == kata.read_routes([route]) == [read]


def test_a_destination_is_not_left_out_by_people() -> None:
    """As with openEuler's verbs; the word `default` is the pattern of all default routes."""
    route = {"device": "eth0"}
    for as_patterns in (False, True):
        with pytest.raises(UsageError, match="dest: it is missing"):
            kata.read_routes([route], as_patterns=as_patterns)
    (pattern,) = kata.read_routes([{**route, "dest": "default"}], as_patterns=True)
    assert pattern.dest == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name":"a"}{"name":"b"}', {"name": "a"}),
        (' \n[] {"name":', []),
        ("null\n#", None),
        ('{"name":"a","name":"b"}', {"name": "b"}),
    ],
)
def test_the_first_value_counts(text: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kata's runtime decodes a stream, and reads one value (cli/network.go)."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert kata_network._read("-") == value


@pytest.mark.parametrize("text", ["", "\ufeff{}", "{'name': 1}", '{"name"'])
def test_what_is_no_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(TapwrightError, match="standard input is not JSON"):
        kata_network._read("-")


def test_keys_and_null_as_go_has_them() -> None:
    request = kata.read_interface(
        {
            "DEVICE": "tap0",
            "device": None,
            "Name": "eth0",
            "HWAddr": MAC,
            "ipaddre\u017f\u017fes": [],
        }
    )
    assert (request.device, request.name, request.mac) == ("tap0", "eth0", MAC)


@pytest.mark.parametrize(
    "fields",
    [
        {"vhostUserSocket": "/run/\ud800"},
        {"vhostUserSocket": "/run/\0"},
        {"linkType": "tap\0"},
        {"IPAddresses": [{"address": "fe80::1%eth0", "mask": "64"}]},
        {"IPAddresses": [{"address": "10.0.0.1/24", "mask": "24"}]},
        {"IPAddresses": [{"address": "10.0.0.1", "mask": "255.255.255.0"}]},
        {"IPAddresses": [{"address": "10.0.0.1", "mask": "9" * 5000}]},
        {"IPAddresses": [None]},
    ],
)
def test_what_no_kernel_takes(fields: Any) -> None:
    with pytest.raises(UsageError):
        kata.read_interface({"device": "tap0", "name": "eth0", "hwAddr": MAC, **fields})


@pytest.mark.parametrize("key", ["dest", "gateway", "source"])
def test_an_address_with_an_interface_is_no_address(key: str) -> None:
    with pytest.raises(UsageError, match=f"{key}: 'fe80::1%eth0' is refused"):
        kata.read_routes([{"dest": "fd00::/64", "device": "eth0", key: "fe80::1%eth0"}])
