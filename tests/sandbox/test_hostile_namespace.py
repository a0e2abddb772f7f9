"""Whoever may do what he likes in the network namespace keeps no supervisor from its work: what is
there is carried or refused with words, in bounded time, and at last all is followed again."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tapwright.errors import NetworkError, TapwrightError
from tapwright.linux import links, netns
from tapwright.linux.netlink import NLM_F_CREATE, Netlink, attribute, nested
from tests.sandbox.test_following import Scene

_ROUND = 60.0  # more than any should take, on a busy machine

ODD = (
    b"\xff\xfe\xfd",  # no UTF-8
    b"..-..",
    b"%s%n%d",
    b"\x1b[31mred",
    b"lo\x7f",
    "füßchen-ünd".encode()[:15],
    b"'\";$(reboot)",
    b"all",
    b"default",
)


@pytest.fixture
def scene(scratch_netns: str) -> Scene:
    return Scene(scratch_netns)


def add_dummy_pair(nl: Netlink, name: bytes, number: int) -> None:
    """A veth of that name, whatever it is made of."""
    peer = attribute(links.IFLA_IFNAME, f"peer{number}".encode() + b"\0")
    body = links._IFINFO.pack(0, 0, 0, 0, 0)
    data = attribute(links.VETH_INFO_PEER, body + peer)
    info = [attribute(links.IFLA_INFO_KIND, "veth"), nested(links.IFLA_INFO_DATA, [data])]
    payload = body + attribute(links.IFLA_IFNAME, name + b"\0")
    payload += nested(links.IFLA_LINKINFO, info)
    nl.request("add a veth", links.RTM_NEWLINK, payload, NLM_F_CREATE)
    index = links.named(nl, f"peer{number}").index
    links.set_up(nl, index)
    links.set_up(nl, index + 1 if links.at(nl, index + 1) else index - 1)


@pytest.mark.parametrize("name", ODD, ids=repr)
def test_odd_names(name: bytes, scene: Scene) -> None:
    """The others are carried all the same."""
    with netns.entered(scene.path), Netlink() as nl:
        try:
            add_dummy_pair(nl, name, 1)
        except OSError as error:
            pytest.skip(f"the kernel refuses it: {error}")
        odd = next(one for one in links.listing(nl) if one.name not in ("lo", "eth1", "eth2"))
        for text in (b"\xff\xfe", b"\x1b]0;title\x07", b"x" * 200):
            with contextlib.suppress(OSError):
                links._set(nl, "set alias", odd.index, attribute(links.IFLA_IFALIAS, text))
    scene.ip("address add 10.9.0.1/24 dev eth2")
    with contextlib.suppress(OSError, TapwrightError):
        scene.sync()
    scene.sync()
    assert {nic.name for nic in scene.interfaces.nics.values()} >= {"eth1", "eth2"}


def test_more_of_everything_than_is_carried(scene: Scene) -> None:
    """Each is refused with words; and followed when it has gone."""
    scene.sync()
    for many, words in (
        ([f"rule add from 10.0.0.0/8 pref {n} lookup 5" for n in range(1, 9000)], "rules"),
        ([f"address add 10.{n // 250}.{n % 250}.1/32 dev eth1" for n in range(8200)], "addresses"),
        (
            [
                f"neigh add 10.{n // 250}.{n % 250}.1 lladdr 02:00:00:00:00:01 dev eth1"
                for n in range(8200)
            ],
            "neighbours",
        ),
        ([f"nexthop add id {n} dev eth1" for n in range(1, 9000)], "next hops"),
    ):
        scene.batch(many)
        with pytest.raises(NetworkError, match=f"more than 8192 [a-z ]*{words}"):
            scene.sync()
        scene.batch([line.replace(" add ", " delete ", 1) for line in many])
        scene.batch(["nexthop flush"])
        assert scene.sync() is None


@contextmanager
def endless_changes(scene: Scene) -> Iterator[None]:
    """Links, addresses, routes, rules and settings that come and go without an end."""
    lines = [
        "address add 10.5.0.1/24 dev eth1",
        "route add 10.6.0.0/16 dev eth1",
        "rule add from 10.7.0.0/16 lookup 7",
        "link add flap type veth peer name flop",
        "link set flap up",
        "link set flop up",
        "link delete flap",
        "rule delete from 10.7.0.0/16 lookup 7",
        "route delete 10.6.0.0/16 dev eth1",
        "address delete 10.5.0.1/24 dev eth1",
    ]
    end = threading.Event()

    def change() -> None:
        while not end.is_set():
            scene.batch(lines * 20)

    threads = [threading.Thread(target=change), threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_endless_changes(scene: Scene) -> None:
    with endless_changes(scene):
        for _ in range(20):
            with contextlib.suppress(OSError, TapwrightError):
                asyncio.run(asyncio.wait_for(scene.following.sync(), _ROUND))
    scene.batch(["link delete flap", "route add 10.8.0.0/16 dev eth1"])
    seen = set()
    for _ in range(3):  # what failed may be tried again
        scene.sync()
        seen |= scene.agent.added_routes()
    assert "10.8.0.0/16" in seen
    assert {nic.name for nic in scene.interfaces.nics.values()} == {"eth1", "eth2"}
