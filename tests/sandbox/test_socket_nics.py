"""NICs on the sockets of a CNI result, from results as plugins print them."""

from typing import Any

import pytest

from tapwright.errors import NetworkError
from tapwright.nics import socket_nics

pytestmark = pytest.mark.unit

Json = Any

NETNS = "/run/netns/x"
SOCKET = {"name": "net0", "mac": "02:42:20:6f:a3:70", "sandbox": NETNS, "socketPath": "/run/s"}
HOSTS = {"name": "vhost0"}


def result(*interfaces: Json, ips: list[Json], routes: list[Json] | None = None) -> Json:
    return {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": ips, "routes": routes or []}


@pytest.mark.parametrize("index", [{}, {"interface": None}, {"interface": 0}, {"interface": 7}])
def test_one_interface_has_all_addresses(index: Json) -> None:
    """Also where the addresses name none, or the one on the host."""
    ips = [{"address": "10.1.0.5/24", "gateway": "10.1.0.1", **index}, {"address": "fd01::5/64"}]
    (nic,) = socket_nics.of(result(HOSTS, SOCKET, ips=ips, routes=[{"dst": "0.0.0.0/0"}]))
    assert [str(address) for address in nic.request.addresses] == ["10.1.0.5/24", "fd01::5/64"]
    (route,) = nic.routes
    assert (route["destination"], route["gateway"]) == ("0.0.0.0/0", "10.1.0.1")
    assert not route["onlink"]


def test_one_interface_has_a_gateway_on_no_network() -> None:
    """As Calico's: such a gateway is on the link."""
    ips = [{"address": "10.1.0.5/32", "interface": 0}]
    routes = [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]
    (nic,) = socket_nics.of(result(SOCKET, ips=ips, routes=routes))
    (route,) = nic.routes
    assert (route["gateway"], route["onlink"]) == ("169.254.1.1", True)


def test_several_interfaces_have_their_own() -> None:
    other = {**SOCKET, "name": "net1", "socketPath": "/run/t"}
    ips = [
        {"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 0},
        {"address": "10.2.0.5/24", "interface": 1},
        {"address": "10.3.0.5/24"},
    ]
    routes = [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "10.9.0.0/16", "gw": "10.2.0.1"}]
    first, second = socket_nics.of(result(SOCKET, other, ips=ips, routes=routes))
    for nic, address, destination in (
        (first, "10.1.0.5/24", "0.0.0.0/0"),
        (second, "10.2.0.5/24", "10.9.0.0/16"),
    ):
        assert [str(address) for address in nic.request.addresses] == [address]
        assert [route["destination"] for route in nic.routes] == [destination]


def test_the_namespace_by_another_path() -> None:
    (nic,) = socket_nics.of(result({**SOCKET, "sandbox": "/var/run/netns/x"}, ips=[]))
    assert nic.request.vhost_user_socket == "/run/s"


def test_a_device_that_would_be_passed_through() -> None:
    for interface in ({**SOCKET, "pciID": "0000:03:00.1"}, {"name": "v", "pciID": "0000:03:00.1"}):
        if "sandbox" in interface:
            with pytest.raises(NetworkError, match="VFIO"):
                socket_nics.of(result(interface, ips=[]))
        else:
            assert socket_nics.of(result(interface, ips=[])) == []
