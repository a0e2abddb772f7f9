"""A NIC that programs of the guest change, and others from outside: it becomes what one interface
becomes that both change, as that of a container by runc.

The namespaces are real, and so is the agent's code, which works in one of them; a veth is the NIC.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent.guest import network, routing, sysctls
from tapwright.agent.guest.refusal import RefusedError
from tapwright.errors import AgentRefusedError
from tapwright.linux import links, netns
from tapwright.linux.netlink import Netlink
from tapwright.nics.following import Following
from tests.host import eventually
from tests.sandbox.test_following import Interfaces

Json = dict[str, Any]

PLAIN, SPACE, GUEST, WIRE = "both-plain", "both-space", "both-guest", "both-wire"
MAC = "02:00:00:00:00:01"
OPERATIONS = {
    "set_interface": network.set_interface,
    "replay": routing.replay,
    "change_settings": sysctls.change_settings,
}
SET_UP = """\
link set lo up
address add 10.0.0.2/24 dev eth0
address add 10.0.0.3/24 dev eth0
address add 10.0.1.2/24 dev eth0
address add fd00::2/64 dev eth0 nodad
address add fd00::3/64 dev eth0 nodad
link set eth0 up
route add default via 10.0.0.1
route add 10.8.0.0/16 via 10.0.0.1
route add 10.9.0.0/16 via 10.0.1.1 src 10.0.1.2
route add fd09::/64 via fd00::1
neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
"""


class Agent:
    """Does what it is asked in the namespace of the guest."""

    def __init__(self) -> None:
        self._index = 0

    async def call(self, request: Json, _: float = 15.0) -> Json:
        with netns.entered(f"/run/netns/{GUEST}"), Netlink() as nl:
            try:
                return self._answer(nl, request)
            except RefusedError as error:
                raise AgentRefusedError(str(error)) from None

    def _answer(self, nl: Netlink, request: Json) -> Json:
        if request["op"] == "batch":
            return {"replies": [self._answer(nl, each) for each in request["requests"]]}
        mac = request.get("mac", "lo")
        if mac != "lo" and self._index and (nic := links.at(nl, self._index)):
            request = {**request, "mac": nic.mac}  # a veth tells no permanent address
        answer: Json = OPERATIONS[request["op"]](nl, request)
        if mac != "lo":
            self._index = answer["index"]
        return answer


def run(namespace: str, commands: str) -> None:
    """Commands of ip(8), and those of other programs that begin with `!`."""
    batch: list[str] = []
    for line in [*commands.splitlines(), "!true"]:
        if not line.startswith("!"):
            batch.append(line)
            continue
        if batch:
            words = ["ip", "-n", namespace, "-batch", "-"]
            subprocess.run(words, input="\n".join(batch), text=True, check=True)
        subprocess.run(["ip", "netns", "exec", namespace, *line[1:].split()], check=True)
        batch = []


@pytest.fixture(scope="module")
def _wire() -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", WIRE], check=True)
    yield
    subprocess.run(["ip", "netns", "delete", WIRE], check=True)


class Both:
    """A namespace that both change; one that is changed from outside; and that of the guest, which
    follows it."""

    def __init__(self) -> None:
        for name in (PLAIN, SPACE):
            run(name, SET_UP)
        run(GUEST, "link set lo up")
        for scope in ("all", "default"):
            run(GUEST, f"!sysctl -qw net.ipv6.conf.{scope}.accept_dad=0")
        for name in (PLAIN, SPACE):
            assert eventually(partial(is_settled, name))
        self._following = Following(f"/run/netns/{SPACE}", Interfaces(), Agent())  # type: ignore[arg-type]
        self.sync()

    def sync(self) -> None:
        asyncio.run(self._following.sync(at_once=True))

    def are_the_same(self) -> bool:
        """As the monitor, this looks again when the kernel has taken note of a carrier."""
        self.sync()
        return state(GUEST) == state(PLAIN)

    def inside(self, commands: str) -> None:
        for name in (PLAIN, GUEST):
            run(name, commands)

    def outside(self, commands: str, of_plain: str = "") -> None:
        run(PLAIN, of_plain or commands)
        run(SPACE, commands)
        self.sync()


def is_settled(name: str) -> bool:
    (link,) = shown(name, "address show dev eth0")
    return link["operstate"] == "UP" and len(link["addr_info"]) == 6


@pytest.fixture
def both(_wire: None) -> Iterator[Both]:
    with ExitStack() as undo:
        for name in (PLAIN, SPACE, GUEST):
            subprocess.run(["ip", "netns", "add", name], check=True)
            undo.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
            nic = "nic0" if name == GUEST else "eth0"
            run(WIRE, f"link add {name} type veth peer name {nic} address {MAC} netns {name}")
            # The namespace itself goes later.
            undo.callback(run, WIRE, f"link delete {name}")
            run(WIRE, f"link set {name} up")
        yield Both()


def shown(name: str, command: str) -> list[Json]:
    words = ["ip", "-n", name, "-json", "-details", *command.split()]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found: list[Json] = json.loads(text or "[]")
    return found


KEYS = ("ifname", "mtu", "group", "txqlen", "address", "ifalias", "altnames", "qdisc", "operstate")
OF_ADDRESSES = ("local", "prefixlen", "broadcast", "scope", "label", "noprefixroute", "deprecated")
SETTINGS = "rp_filter", "proxy_arp"
OF_ROUTES = ("type", "dst", "gateway", "dev", "table", "scope", "prefsrc", "metric", "flags")


def state(name: str) -> Json:
    """What a container sees there."""
    found = {link["link_type"]: link for link in shown(name, "address")}
    nic = found["ether"]
    with netns.entered(f"/run/netns/{name}"):
        settings = [
            Path("/proc/sys/net/ipv4/conf", nic["ifname"], one).read_text() for one in SETTINGS
        ]
    return {
        **{key: nic.get(key) for key in KEYS},
        "flags": sorted(nic["flags"]),
        "addresses": [picked(one, OF_ADDRESSES) for one in nic["addr_info"]],
        "ends": [one["valid_life_time"] > 1 << 30 for one in nic["addr_info"]],
        "loopback": [picked(one, OF_ADDRESSES) for one in found["loopback"]["addr_info"]],
        "routes": sorted(
            str(picked(route, OF_ROUTES))
            for family in ("-4", "-6")
            for route in shown(name, f"{family} route show table all")
            if route.get("type") != "multicast"
        ),
        "neighbours": sorted(
            (one["dst"], one["lladdr"]) for one in shown(name, "neigh show nud permanent")
        ),
        "rules": [picked(one, ("priority", "src", "table")) for one in shown(name, "rule")],
        "settings": settings,
    }


def picked(one: Json, keys: tuple[str, ...]) -> Json:
    return {key: one[key] for key in keys if key in one}


OTHER = "address add 10.0.0.9/24 dev eth0"  # something else
ROWS = {
    "how it looks": [
        "in link set eth0 alias mine group 7 txqueuelen 7 mtu 1400 promisc on allmulticast on",
        "in link set eth0 arp off multicast off address 02:00:00:00:00:99",
        "in link property add dev eth0 altname mine0",
        "in !tc qdisc add dev eth0 root pfifo limit 7",
        f"out {OTHER}",
        "out link set eth0 down",
    ],
    "how it looked from outside": [
        "out link set eth0 alias yours group 5 promisc on address 02:00:00:00:00:88",
        "out link property add dev eth0 altname a0 altname b0",
        "in link set eth0 alias mine group 7 promisc off address 02:00:00:00:00:99",
        "in link property del dev eth0 altname a0",
        f"out {OTHER}\nlink property del dev eth0 altname b0",
    ],
    "the same, the last time from outside": [
        "in link set eth0 alias mine group 7 txqueuelen 7 mtu 1400 address 02:00:00:00:00:99",
        "out link set eth0 alias yours group 5 txqueuelen 5 mtu 1300 address 02:00:00:00:00:88\n"
        "neigh replace 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
        f"out {OTHER}",
    ],
    "its MAC address, and down and up": [
        "out link set eth0 down\nlink set eth0 address 02:00:00:00:00:88\nlink set eth0 up",
    ],
    "its link-local address": ["out address flush dev eth0 scope link"],
    "a deprecated address": ["out address add 10.0.0.9/24 dev eth0 preferred_lft 0"],
    "down": [
        "in link set eth0 down",
        f"out {OTHER}\naddress add fd00::9/64 dev eth0 nodad",
        "out address delete 10.0.1.2/24 dev eth0\nlink set eth0 address 02:00:00:00:00:88",
    ],
    "down, and then up from outside": [
        "in link set eth0 down",
        "out link set eth0 down",
        "out link set eth0 up",
    ],
    "down and up": ["in link set eth0 down\nlink set eth0 up", f"out {OTHER}"],
    "down and up from outside": [
        "in address add 10.0.0.5/24 dev eth0",
        "out link set eth0 down",
        "out link set eth0 up\nroute add default via 10.0.0.1",
    ],
    "its addresses": [
        "in address delete 10.0.0.2/24 dev eth0\naddress delete fd00::3/64 dev eth0",
        "in address add 10.0.0.5/24 dev eth0\naddress add fd00::5/64 dev eth0 nodad",
        "in address change 10.0.0.3/24 dev eth0 valid_lft 1000 preferred_lft 900",
        f"out {OTHER}\naddress add fd00::9/64 dev eth0 nodad",
        "out address delete fd00::2/64 dev eth0\nlink set eth0 mtu 1400",
        "out address change 10.0.1.2/24 dev eth0 valid_lft 1000 preferred_lft 900",
    ],
    "all of its addresses": ["in address flush dev eth0", f"out {OTHER}"],
    "an address, gone with it": [
        "in route add 10.6.0.0/16 via 10.0.1.1\naddress add 10.0.0.5/24 dev eth0",
        "in address delete 10.0.0.3/24 dev eth0\nneigh delete 10.0.0.77 dev eth0",
        "out address delete 10.0.1.2/24 dev eth0",
    ],
    "tables": [
        "in route delete 10.8.0.0/16\nroute delete fd09::/64\nroute replace default via 10.0.0.4",
        "in route add 10.6.0.0/16 via 10.0.0.1\nroute add default via 10.0.0.4 table 7",
        "in rule add from 10.0.0.3 lookup 7 pref 7\nneigh delete 10.0.0.77 dev eth0",
        "in neigh add 10.0.0.78 lladdr 02:00:00:00:00:78 dev eth0 nud permanent",
        f"out {OTHER}\nrule add from 10.0.0.2 lookup main pref 8",
        "out route add 10.7.0.0/16 via 10.0.0.1\nlink set eth0 alias yours",
    ],
    "its name": [
        "in link set eth0 name mine0",
        "out address add 10.0.0.9/24 dev eth0 / address add 10.0.0.9/24 dev mine0",
    ],
    "its name, from outside": [
        "in address add 10.0.0.5/24 dev eth0\nroute add 10.6.0.0/16 via 10.0.0.1",
        "out link set eth0 name wan0",
    ],
    "settings and loopback": [
        "out !sysctl -qw net.ipv4.conf.eth0.rp_filter=1\naddress add 10.255.0.2/32 dev lo",
        "in !sysctl -qw net.ipv4.conf.eth0.rp_filter=2\naddress delete 10.255.0.2/32 dev lo",
        "in address add 10.255.0.1/32 dev lo\naddress add 127.0.0.2/8 dev lo",
        "out !sysctl -qw net.ipv4.conf.eth0.proxy_arp=1\naddress add 10.255.0.3/32 dev lo",
    ],
}
"""Commands in the container and from outside; after a slash what is the same where one interface
has both changes."""


@pytest.mark.parametrize("row", ROWS)
def test_what_both_change(both: Both, row: str) -> None:
    for step in ROWS[row]:
        who, _, commands = step.partition(" ")
        if who == "in":
            both.inside(commands)
        else:
            both.outside(*commands.split(" / "))
    if not eventually(both.are_the_same):
        assert state(GUEST) == state(PLAIN)
