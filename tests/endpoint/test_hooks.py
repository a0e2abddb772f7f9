"""Where frames of the guest pass packet rules of the namespace: nowhere with `tcfilter`, so that
only the guest applies them; at the hooks of a device with a macvtap."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.host import eventually
from tests.namespaces import Namespace, namespace

_RULES = """
table netdev t {
    chain in { type filter hook ingress device eth0 priority 0; meta protocol ip counter; }
    chain out { type filter hook egress device eth0 priority 0; meta protocol ip counter; }
}
table inet t {
    chain in { type filter hook prerouting priority raw; meta l4proto icmp counter; }
    chain out { type filter hook postrouting priority raw; meta l4proto icmp counter; }
}
"""
_MACVLAN = "link add link eth0 name guest address 02:00:00:00:00:02 type macvlan mode bridge"


@pytest.fixture
def here() -> Iterator[Namespace]:
    with namespace("tw-hooks") as made, namespace("tw-vm") as vm, namespace("tw-peer") as peer:
        made.ip("link add eth0 type veth peer name h0 netns tw-peer")
        made.ip("link add tap type veth peer name guest netns tw-vm")
        for where, name in ((made, "eth0"), (made, "tap"), (vm, "guest"), (peer, "h0")):
            where.ip(f"link set {name} up")
        peer.ip("address add 10.0.0.1/24 dev h0")
        yield made


def counted(where: Namespace) -> list[int]:
    """The packets of a ruleset's counters, in their order."""
    command = ["ip", "netns", "exec", where.name, "nft", "list", "ruleset"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(map(int, re.findall(r"packets (\d+)", listed)))


def pings(where: str) -> None:
    command = ["ip", "netns", "exec", where, "ping", "-c", "3", "-i", "0.05", "10.0.0.1"]
    # What is sent before the kernel has taken note of a carrier is dropped.
    assert eventually(
        lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


def ruled(where: Namespace) -> None:
    command = ["ip", "netns", "exec", where.name, "nft", "-f", "-"]
    subprocess.run(command, input=_RULES, check=True, text=True)


def test_traffic_control_takes_frames_away_before_any_hook(here: Namespace) -> None:
    here.join("eth0", "tap")
    Namespace("tw-vm").ip("address add 10.0.0.2/24 dev guest")
    ruled(here)
    pings("tw-vm")
    assert counted(here) == [0, 0, 0, 0]


def test_a_device_on_top_leaves_frames_to_the_hooks_of_the_device(here: Namespace) -> None:
    """A macvlan, whose frames go where those of a macvtap do."""
    Namespace("tw-vm").ip("link delete guest")
    here.ip(_MACVLAN)
    here.ip("link set guest netns tw-vm")
    Namespace("tw-vm").ip("link set guest up")
    Namespace("tw-vm").ip("address add 10.0.0.2/24 dev guest")
    ruled(here)
    pings("tw-vm")
    ingress, egress, *stack = counted(here)
    assert ingress >= 3
    assert egress >= 3
    assert stack == [0, 0]
