"""The guest follows its namespace also where QEMU or the agent fail. Real ones can't be made to do
that at the right moment, so these two are stand-ins here. The namespace is real."""

import asyncio
import binascii
import errno
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tapwright.endpoint.discovery import Interface
from tapwright.errors import AgentError, AgentRefusedError, HypervisorError
from tapwright.linux import addresses, entries, links, netns, routes
from tapwright.linux.addresses import IFAPROT_KERNEL_RA, Address
from tapwright.linux.entries import Entry
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tapwright.nics import carriers
from tapwright.nics.following import Following
from tapwright.state import record
from tests.host import eventually

Json = dict[str, Any]


class Agent:
    """Writes down what it is asked. `refuses` names an operation and a text in its arguments."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Json]] = []
        self.refuses = ("", "")
        self.loses = False
        self._names: dict[str, str] = {}
        self.is_silent = False

    async def call(self, request: Json, _: float = 15.0) -> Json:
        arguments = dict(request)
        op = arguments.pop("op")
        self.asked.append((op, arguments))
        name, text = self.refuses
        if self.is_silent:
            raise AgentError(f"the agent did not answer {op} within 15 s")
        if op == "batch":
            if op == name and text in str(arguments):
                raise AgentRefusedError(f"the agent refused {op}: {text}")
            (request,) = arguments["requests"]
            self._names[request["mac"]] = name = request.get("name") or self._names[request["mac"]]
            lost = {"lost": True} if self.loses else {}
            return {"replies": [{"name": name, "index": 77, **lost}]}
        if op == "replay":
            return {
                "refused": [
                    [number, errno.EINVAL, "it is not wanted"]
                    for number, _, entry in replayed(arguments)
                    if op == name and text in str(entry)
                ]
            }
        return {}

    def added_routes(self) -> set[str]:
        """The destinations of all that it was asked to add."""
        return {
            route.destination
            for op, arguments in self.asked
            if op == "replay"
            for _, is_new, entry in replayed(arguments)
            if is_new
            for route in routes.decode(entry.body)
        }

    def requested(self, name: str) -> Json:
        """What it was asked for an interface."""
        found = [a["requests"][0] for op, a in self.asked if op == "batch"]
        return next(request for request in found if self._names[request["mac"]] == name)

    def configured(self) -> list[str]:
        """The names of interfaces that it was asked to configure."""
        return [self._names[a["requests"][0]["mac"]] for op, a in self.asked if op == "batch"]


def replayed(arguments: Json) -> Iterator[tuple[int, bool, Entry]]:
    """(number, whether it is to be added, route) of each route that the agent is asked for."""
    data, offset = binascii.a2b_base64(arguments["messages"]), 0
    while offset < len(data):
        length, kind, _, number, _ = struct.unpack_from("=IHHII", data, offset)
        if kind in (entries.RTM_NEWROUTE, entries.RTM_DELROUTE):
            body = data[offset + 16 : offset + length]
            yield number, kind == entries.RTM_NEWROUTE, entries.route(body)
        offset += (length + 3) & ~3


class Interfaces:
    """NICs that are there at once, or not at all."""

    def __init__(self) -> None:
        self.nics: dict[int, record.Nic] = {}
        self.carriers: list[tuple[str, bool]] = []
        self.has_room = True

    def followers(self) -> dict[int, record.Nic]:
        return dict(self.nics)

    def as_carried(self, found: list[Interface]) -> list[Interface]:
        return found

    def joined_by_request(self) -> set[int]:
        return set()

    def seen_by_hooks(self) -> frozenset[str]:
        return frozenset()

    def is_joined(self, nic: record.Nic, link: Link) -> bool:
        return True

    async def carry(self, found: Interface, network: str = "") -> None:
        if not self.has_room:
            raise HypervisorError("all slots for NICs are taken")
        link = found.link
        nic = record.Nic(link.name, link.name, link.mac, link.mtu, [], index=link.index)
        self.nics[link.index] = nic

    async def follow(self, nic: record.Nic, found: Interface) -> None:
        nic.name = found.link.name
        nic.permanent, nic.mac = nic.identity, found.link.mac

    async def set_carrier(self, nic: record.Nic, on: bool) -> None:
        self.carriers.append((nic.name, on))

    async def remove(self, nic: record.Nic) -> None:
        del self.nics[nic.index]


class Scene:
    """A namespace with eth1 and eth2, which are each other's peers, and what follows it."""

    def __init__(self, path: str) -> None:
        self.path, self._name = path, Path(path).name
        self.agent, self.interfaces = Agent(), Interfaces()
        self.following = Following(path, self.interfaces, self.agent)  # type: ignore[arg-type]
        self.ip("link add eth1 type veth peer name eth2")
        self.ip("address add 10.0.0.2/24 dev eth1")
        self.ip("link set eth1 up")
        self.ip("link set eth2 up")
        for end in ("eth1", "eth2"):
            assert eventually(partial(self.is_up, end))

    def is_up(self, end: str) -> bool:
        return "state UP" in self.ip(f"link show {end}")

    def ip(self, command: str) -> str:
        words = ["ip", "-n", self._name, *command.split()]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def batch(self, commands: list[str]) -> None:
        """Many of them, whatever becomes of each."""
        words = ["ip", "-n", self._name, "-force", "-batch", "-"]
        text = "".join(f"{command}\n" for command in commands)
        subprocess.run(words, input=text, capture_output=True, text=True, check=False)

    def replace_namespace(self) -> None:
        """Another one at the path, with nothing in it."""
        subprocess.run(["ip", "netns", "delete", self._name], check=True)
        subprocess.run(["ip", "netns", "add", self._name], check=True)

    def sync(self) -> float | None:
        self.agent.asked.clear()
        return asyncio.run(self.following.sync())


@pytest.fixture
def scene(scratch_netns: str) -> Scene:
    return Scene(scratch_netns)


def test_nothing_to_do_is_nothing_done(scene: Scene) -> None:
    assert scene.sync() is None
    assert set(scene.agent.configured()) == {"eth1", "eth2"}
    assert scene.sync() is None
    assert scene.agent.asked == []


def test_an_address_that_ends_is_carried_once(scene: Scene) -> None:
    """However often it is looked at; and again when it is to end later."""
    scene.ip("address add 10.5.0.2/24 dev eth1 valid_lft 1000 preferred_lft 500")
    scene.sync()
    for _ in range(3):
        time.sleep(0.4)  # the seconds that are left become fewer
        scene.sync()
        assert scene.agent.configured() == []
    scene.ip("address change 10.5.0.2/24 dev eth1 valid_lft 2000 preferred_lft 500")
    scene.sync()
    assert scene.agent.configured() == ["eth1"]


def test_no_room_and_then_nobody_wants_it(scene: Scene) -> None:
    """What failed and is not wanted any more is not to be tried again, least of all at once."""
    scene.interfaces.has_room = False
    assert scene.sync() is not None
    scene.ip("link set eth1 down")
    scene.ip("link set eth2 down")
    assert scene.sync() is None


def test_a_refused_change_that_is_taken_back(scene: Scene) -> None:
    """Nobody knows how much of it the guest did: so it is made what the interface is."""
    scene.sync()
    scene.agent.refuses = ("batch", "1400")
    scene.ip("link set eth1 mtu 1400")
    assert scene.sync() is not None
    scene.ip("link set eth1 mtu 1500")
    assert scene.sync() is None
    assert scene.agent.configured() == ["eth1"]
    assert scene.sync() is None
    assert scene.agent.asked == []


def test_a_nic_that_went_by_itself(scene: Scene) -> None:
    scene.ip("route add 10.1.0.0/16 dev eth1")
    scene.sync()
    scene.interfaces.nics.clear()
    scene.sync()
    assert set(scene.agent.configured()) == {"eth1", "eth2"}
    assert "10.1.0.0/16" in scene.agent.added_routes()


def test_an_agent_that_does_not_answer_ends_the_round(scene: Scene) -> None:
    """Each question would take its 15 seconds."""
    for number in range(50):
        scene.ip(f"route add 10.{number + 1}.0.0/16 dev eth1")
    scene.agent.is_silent = True
    with pytest.raises(AgentError, match="did not answer"):
        scene.sync()
    assert len(scene.agent.asked) == 1


def test_one_route_that_is_refused_keeps_no_other_back(scene: Scene) -> None:
    for number in range(20):
        scene.ip(f"route add 10.{number + 1}.0.0/16 dev eth1")
    scene.agent.refuses = ("replay", "10.7.0.0/16")
    assert scene.sync() is not None
    assert "10.20.0.0/16" in scene.agent.added_routes()
    scene.agent.refuses = ("", "")
    assert eventually(lambda: scene.sync() is None and bool(scene.agent.added_routes()))
    assert scene.agent.added_routes() == {"10.7.0.0/16"}


def test_renamed_while_a_route_is_refused(scene: Scene) -> None:
    """A rename may cost the guest's interface its routes, so they are all added again."""
    scene.ip("route add 10.1.0.0/16 dev eth1")
    scene.ip("route add 10.7.0.0/16 dev eth1")
    scene.agent.refuses = ("replay", "10.7.0.0/16")
    scene.sync()
    scene.ip("link set eth1 name wan0")
    scene.agent.loses = True
    scene.sync()
    assert scene.agent.configured() == ["wan0"]
    assert "10.1.0.0/16" in scene.agent.added_routes()


def test_routes_with_the_address_of_another_interface(scene: Scene) -> None:
    """They go with the address, so they are added again where it had to go."""
    scene.ip("address add 10.9.0.2/24 dev eth2")
    scene.ip("route add 10.1.0.0/16 dev eth1 src 10.9.0.2")
    scene.sync()
    scene.ip("address add 10.9.1.2/24 dev eth2")
    scene.sync()
    assert scene.agent.configured() == ["eth2"]
    assert scene.agent.added_routes() == set(), "a program may have removed it"
    scene.agent.loses = True
    scene.ip("address add 10.9.2.2/24 dev eth2")
    scene.sync()
    assert "10.1.0.0/16" in scene.agent.added_routes()


def test_dismissed_until_it_is_gone(scene: Scene) -> None:
    scene.sync()
    (index,) = (index for index, nic in scene.interfaces.nics.items() if nic.name == "eth1")
    scene.following.dismiss(index)
    scene.interfaces.nics.pop(index)
    scene.sync()
    assert [nic.name for nic in scene.interfaces.nics.values()] == ["eth2"]


def test_next_hops_stay_several_and_in_order(scene: Scene) -> None:
    scene.ip("route add 10.1.0.0/16 nexthop via 10.0.0.7 dev eth1 nexthop via 10.0.0.3 dev eth1")
    scene.sync()
    (request,) = (a for op, a in scene.agent.asked if op == "replay")
    (route,) = (
        entry
        for _, is_new, entry in replayed(request)
        if is_new and routes.decode(entry.body)[0].destination == "10.1.0.0/16"
    )
    hops = [hop.gateway for hop in routes.decode(route.body)]
    assert hops == ["10.0.0.7", "10.0.0.3"]
    assert {hop.device for hop in routes.decode(route.body)} == {77}, "the guest's index"


def test_a_route_that_is_there_and_can_not_be_added_again(scene: Scene) -> None:
    """One with several hops stays while an interface is down, through which it could not be added.
    It goes when it goes in the namespace."""
    scene.ip("address add 10.9.0.2/24 dev eth2")
    scene.ip("route add 10.1.0.0/16 nexthop via 10.0.0.7 dev eth1 nexthop via 10.9.0.7 dev eth2")
    scene.sync()
    scene.agent.loses, scene.agent.refuses = True, ("replay", "10.1.0.0/16")
    scene.ip("address add 10.9.1.2/24 dev eth2")
    assert scene.sync() is not None
    scene.agent.loses, scene.agent.refuses = False, ("", "")
    scene.ip("route delete 10.1.0.0/16")
    assert scene.sync() is None
    gone = [
        e for op, a in scene.agent.asked if op == "replay" for _, new, e in replayed(a) if not new
    ]
    assert "route 10.1.0.0/16" in [str(entry) for entry in gone]


def test_an_interface_without_a_carrier(scene: Scene) -> None:
    """What there is when a container starts is there in the guest, too."""
    scene.ip("link set eth2 down")
    assert eventually(lambda: not scene.is_up("eth1"))
    asyncio.run(scene.following.sync(at_once=True))
    assert [nic.name for nic in scene.interfaces.nics.values()] == ["eth1"]
    (request,) = (a["requests"][0] for op, a in scene.agent.asked if op == "batch")
    assert (request["up"], request["running"]) == (True, False)


def test_only_what_has_changed_is_sent_again(scene: Scene) -> None:
    """The rest may be a program's of the guest."""
    scene.ip("address add 10.0.0.3/24 dev eth1")
    scene.sync()
    first = scene.agent.requested("eth1")
    assert (first["mtu"], first["txqlen"], "unwanted" in first) == (1500, 1000, False)
    scene.ip("address delete 10.0.0.3/24 dev eth1")
    scene.ip("link set eth1 mtu 1400")
    scene.sync()
    again = scene.agent.requested("eth1")
    assert (again["mtu"], "txqlen" in again) == (1400, False)
    assert [address["address"] for address in again["unwanted"]] == ["10.0.0.3"]


def test_of_a_carrier_the_guest_is_sent_nothing(scene: Scene) -> None:
    """QEMU takes it away. Routes that a program of the guest has deleted stay away, as they do in
    a namespace."""
    scene.ip("route add 10.1.0.0/16 dev eth1")
    scene.sync()
    scene.ip("link set eth2 down")
    assert eventually(lambda: not scene.is_up("eth1"))
    scene.sync()
    assert scene.agent.configured() == ["eth2"]
    assert scene.agent.added_routes() == set()


def test_addresses_that_a_refused_change_has_left(scene: Scene) -> None:
    scene.sync()
    scene.agent.refuses = ("batch", "10.0.0.3")
    scene.ip("address add 10.0.0.3/24 dev eth1")
    scene.sync()
    scene.ip("address delete 10.0.0.3/24 dev eth1")
    scene.sync()
    assert [one["address"] for one in scene.agent.requested("eth1")["unwanted"]] == ["10.0.0.3"]


def test_an_address_of_a_router_advertisement(scene: Scene) -> None:
    """The guest's kernel hears the further ones, and the namespace none: so the address ends there,
    and not in the guest."""
    end = round(time.monotonic()) + 99
    address = Address("fd99::2", 64, protocol=IFAPROT_KERNEL_RA, valid=end, preferred=end)
    with netns.entered(scene.path), Netlink() as nl:
        link = links.find(nl, "eth1")
        assert link
        addresses.add(nl, link.index, address)
        scene.sync()
        assert "fd99::2" in str(scene.agent.requested("eth1")["addresses"])
        addresses.remove(nl, link.index, address)
    scene.sync()
    assert scene.agent.configured() == []
    scene.ip("link set eth1 mtu 1400")
    scene.sync()
    assert "fd99::2" not in str(scene.agent.requested("eth1"))


def test_another_mac(scene: Scene) -> None:
    """The guest's NIC stays, and gets it: a container by runc has the same interface, too, with all
    that is bound to it."""
    scene.sync()
    before = {nic.name: nic.mac for nic in scene.interfaces.nics.values()}
    scene.ip("link set eth1 down")
    scene.ip("link set eth1 address 02:00:00:00:00:77")
    assert scene.sync() is None
    request = scene.agent.requested("eth1")
    assert (request["mac"], request["address"]) == (before["eth1"], "02:00:00:00:00:77")
    assert request["up"] is False
    scene.ip("link set eth1 up")
    assert scene.sync() is None
    assert "address" not in scene.agent.requested("eth1"), "it may have another one by now"


def test_carriers_are_followed_without_a_monitor(scene: Scene) -> None:
    """Also where the interface got or lost its carrier before somebody looked."""
    asyncio.run(scene.following.sync(at_once=True))

    def carriers_of(name: str) -> list[bool]:
        return [on for nic, on in scene.interfaces.carriers if nic == name]

    async def follow() -> None:
        scene.ip("link set eth2 down")
        async with carriers.followed(scene.path, scene.interfaces):  # type: ignore[arg-type]
            assert await eventually_there(lambda: carriers_of("eth1")[-1:] == [False])
            scene.ip("link set eth2 up")
            assert await eventually_there(lambda: carriers_of("eth1")[-1:] == [True])

    asyncio.run(follow())


async def eventually_there(is_true: Callable[[], bool]) -> bool:
    """As `eventually`, while the event loop runs."""
    return await asyncio.to_thread(eventually, is_true)


def test_another_namespace_is_not_followed(scene: Scene) -> None:
    """The path may be another one's by now: its interfaces are no business of the guest's."""
    assert scene.sync() is None
    before = scene.interfaces.followers()
    scene.replace_namespace()
    with pytest.raises(OSError, match="does not lead to it any more"):
        scene.sync()
    assert scene.interfaces.followers() == before
