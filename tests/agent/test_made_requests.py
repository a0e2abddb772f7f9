"""Requests to the agent as they are made: what the agent itself takes for right."""

import pytest

from tapwright.agent import requests
from tapwright.agent.guest.requests import mistake

pytestmark = pytest.mark.unit

MAC = "02:00:00:00:00:01"
ADDRESS = {"address": "10.0.0.1", "prefix_length": 8}


def test_what_is_not_given_is_left_out() -> None:
    made = requests.set_interface(MAC, "eth0", [ADDRESS], mtu=1400, queues=0)
    assert made == {
        "op": "set_interface",
        "mac": MAC,
        "name": "eth0",
        "addresses": [ADDRESS],
        "mtu": 1400,
        "queues": 0,
    }
    down = requests.set_interface(MAC, "eth0", [], up=False, looks={"alias": "a"})
    assert (down["up"], down["alias"], "mtu" in down) == (False, "a", False)


def test_the_agent_takes_them() -> None:
    made = [
        requests.set_interface(MAC, "eth0", [ADDRESS], settings=[["ipv4/x", "1"]], mtu=1400),
        requests.change_routes(add=[{"destination": "10.0.0.0/8", "device": "eth0"}]),
        requests.change_settings([["ipv4/x", "1"]]),
        requests.set_dns({"nameservers": ["10.0.0.1"]}),
        requests.set_hostname("web"),
        requests.set_machine_id("0" * 32),
        requests.set_clock(1.5),
        requests.replay(""),
    ]
    others = [
        requests.resolve("127.0.0.1", [53]),
        requests.forward(4, 80),
        requests.take_room(1 << 28, 2),
        requests.mirror_files("c/volume"),
        requests.forget_files(["c/volume"]),
        requests.change_files(["c/volume/file"]),
        requests.execute(["true"]),
        requests.create_container("c", {}),
        requests.start_container("c"),
        requests.delete_container("c"),
    ]
    assert [mistake(request) for request in [requests.batch(*made), *made, *others]] == [""] * 19
    assert "seconds" in mistake(requests.of("set_clock"))
