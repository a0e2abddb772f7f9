"""The same networks with a second namespace of this host in the place of a guest: the supervisor's
and the agent's part in one process, without a machine between them. So it is quick, and both have
one kernel: what differs is ours."""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tapwright.agent.guest import network
from tapwright.agent.guest.__main__ import OPERATIONS
from tapwright.endpoint.discovery import Interface
from tapwright.errors import AgentRefusedError
from tapwright.linux import links, netns
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.nics import rulesets
from tapwright.nics.following import Following
from tapwright.state import record
from tests.namespaces import Namespace, namespace
from tests.parity.networked import Json, Networked, host_side, probed, unexplained, why_not
from tests.parity.networks import BOTH, DEFAULT, ROWS, Row


class Agent:
    """Does what it is asked in the second namespace."""

    def __init__(self, place: Namespace) -> None:
        self._place = place

    async def call(self, request: Json, _: float = 15.0) -> Json:
        op = request["op"]
        with netns.entered(self._place.path), Netlink() as nl:
            try:
                return OPERATIONS[op](nl, json.loads(json.dumps(request)))
            except OSError as error:
                raise AgentRefusedError(f"the agent refused {op}: {error}") from None


class Nics:
    """NICs there, which are veths."""

    def __init__(self, place: Namespace) -> None:
        self._place = place
        self._nics: dict[int, record.Nic] = {}
        self._last = 0

    def followers(self) -> dict[int, record.Nic]:
        return dict(self._nics)

    def as_carried(self, found: list[Interface]) -> list[Interface]:
        return found

    def joined_by_request(self) -> set[int]:
        return set()

    def seen_by_hooks(self) -> frozenset[str]:
        return frozenset()

    def is_joined(self, nic: record.Nic, link: Link) -> bool:
        return nic.mac == link.mac

    async def carry(self, found: Interface, network: str = "") -> None:
        link = found.link
        self._last += 1
        peer = f"p{self._last}"
        # With another index than the interface has, which is taken.
        index = 1000 + self._last
        self._place.ip(
            f"link add n{self._last} address {link.mac} index {index} "
            f"type veth peer name {peer} index {link.index}"
        )
        self._place.ip(f"link set {peer} addrgenmode none mtu 65535 up")
        nic = record.Nic(link.name, peer, link.mac, link.mtu, [], index=link.index)
        self._nics[link.index] = nic
        self._set_carrier(nic, found)

    async def follow(self, nic: record.Nic, found: Interface) -> None:
        nic.name = found.link.name
        self._set_carrier(nic, found)

    def _set_carrier(self, nic: record.Nic, found: Interface) -> None:
        self._place.ip(f"link set {nic.device} {'up' if found.is_running else 'down'}")

    async def remove(self, nic: record.Nic) -> None:
        self._place.ip(f"link delete {nic.device}")
        del self._nics[nic.index]


class Twin:
    """A namespace that follows another one."""

    def __init__(self, path: str, place: Namespace) -> None:
        self._place = place
        interfaces: Any = Nics(place)
        agent: Any = Agent(place)
        self._following = Following(path, interfaces, agent, rulesets.NONE)

    def sync(self) -> None:
        asyncio.run(self._following.sync(at_once=True))

    def probe(self, wanted: Json) -> Json:
        found = probed(self._place.path, wanted)
        for kind in ("routes", "routes6"):  # without those of the NICs' other ends
            found[kind] = [r for r in found[kind] if not str(r.get("dev")).startswith("p")]
        return found

    def log(self) -> str:
        return ""


@pytest.fixture(scope="module")
def networked(private_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networked]:
    with host_side(), namespace("twtest-here") as here, namespace("twtest-there") as there:
        here.ip("link set lo up")
        with netns.entered(there.path), Netlink() as nl:
            network.prepare(nl)
            assert links.find(nl, "lo")
        yield Networked(here.path, Twin(here.path, there), tmp_path_factory.mktemp("twins"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row, networked: Networked) -> None:
    if why := why_not(row):
        pytest.skip(why)
    found = networked.tried(row)
    assert not unexplained(found), "\n".join(unexplained(found))


def test_what_a_kernel_made_and_somebody_took_away(networked: Networked) -> None:
    """While the guest follows: it has what its own kernel made until then."""
    row = Row("taken away", ip=(*BOTH, DEFAULT))
    steps = (
        "route delete 10.70.0.0/24 dev eth0",
        "route add 10.124.0.0/16 via 10.70.0.1 onlink dev eth0",
        "-6 address flush dev eth0 scope link",
        "address add fe80::5/64 dev eth0 nodad",
        "address delete fe80::5/64 dev eth0",
        "link set eth0 addrgenmode none",
        "link set eth0 down",
        "link set eth0 up",
        "link set eth0 addrgenmode eui64",
        "link set eth0 down",
        "link set eth0 up",
        "route delete 10.70.0.0/24 dev eth0; -6 address flush dev eth0 scope link",
        # Both are there again then, and nobody looks in between.
        "link set eth0 down; link set eth0 up",
        "route delete 10.70.0.0/24 dev eth0",
        "address delete 10.70.0.9/24 dev eth0",
    )
    try:
        networked.make(row)
        networked.guest.sync()
        assert not unexplained(networked.compared())
        for step in steps:
            for command in step.split("; "):
                networked.run(command)
            networked.guest.sync()
            found = unexplained(networked.compared())
            assert not found, "\n".join([step, *found])
    finally:
        networked.clear()


def test_a_thousand_mixed_changes(networked: Networked) -> None:
    """Routes, rules, neighbours and settings come, change and go, while the guest follows: it may
    look at any moment, and at last it is what the namespace is."""
    choose = random.Random(16)  # noqa: S311
    row = Row("changes", ("eth0", "eth1"), ip=("address add 10.70.0.9/24 dev eth0",))
    settings = {f"ipv{n}/conf/{name}/forwarding": "0" for n in (4, 6) for name in row.interfaces}
    try:
        networked.make(row)
        there: list[str] = []
        for number in range(1000):
            if number % 2 and there:
                command = there.pop(choose.randrange(len(there))).replace(" add ", " delete ", 1)
            else:
                command = _change(number, choose)
                there.append(command)
            networked.run(command)
            if number % 10 == 0:
                path = choose.choice(list(settings))
                networked.set(path, choose.choice("01"))
            if choose.random() < 0.05:
                networked.guest.sync()
        networked.guest.sync()
        found = networked.compared()
    finally:
        networked.clear()
    assert not unexplained(found), "\n".join(unexplained(found))


def _change(number: int, choose: random.Random) -> str:
    name = choose.choice(("eth0", "eth1"))
    metric, table = choose.randrange(1, 50), choose.choice(("main", "100", "70000"))
    subnet = f"10.{100 + number // 250}.{number % 250}.0/24"
    return choose.choice(
        (
            f"route add {subnet} dev {name} table {table} metric {metric}",
            f"route add unreachable {subnet} table {table} metric {metric}",
            f"-6 route add fd00:{number:x}::/32 dev {name} table {table} metric {metric}",
            f"rule add from {subnet} lookup {table} pref {1000 + metric}",
            f"-6 rule add from fd00:{number:x}::/32 lookup {table} pref {1000 + metric}",
            f"neigh add 10.70.{number // 250}.{number % 250} lladdr 02:00:00:00:00:01 dev {name}",
        )
    )
