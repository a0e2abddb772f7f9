"""Routes, rules, next hops and neighbours are given from one kernel to another: here between two
namespaces, where the second knows the interface by another index."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.endpoint import carried, discovery
from tapwright.errors import NetworkError
from tapwright.linux import entries, links, netns
from tapwright.linux.entries import Entry, TooManyError
from tapwright.linux.netlink import Netlink

THERE = 77

COMMANDS = (
    "address add 10.1.0.2/24 dev eth0",
    "address add fd01::2/64 dev eth0 nodad",
    "route add default via 10.1.0.1",
    "route add blackhole 10.2.0.0/16",
    "route add 10.3.0.0/16 nexthop via 10.1.0.1 weight 3 nexthop via 10.1.0.3 dev eth0 onlink",
    "route add 10.4.0.0/16 via 10.1.0.1 tos 0x10 mtu lock 1400 initcwnd 9 table 70000",
    "route add local 10.5.0.0/16 dev lo table 5",
    "route add fd02::/16 via fd01::1 pref high",
    "-6 route add unreachable fd03::/32 metric 7",
    "nexthop add id 1 via 10.1.0.1 dev eth0",
    "nexthop add id 2 group 1",
    "route add 10.6.0.0/16 nhid 2",
    "rule add not from 10.0.0.0/8 fwmark 1/0xff lookup 70000 pref 9",
    "rule delete pref 32767",
    "-6 rule add iif eth0 prohibit pref 8",
    "neigh add 10.1.0.7 lladdr 02:00:00:00:00:07 dev eth0 nud permanent",
    "neigh add proxy fd01::8 dev eth0",
)


def ip(path: str, command: str) -> str:
    words = ["ip", "-n", Path(path).name, *command.split()]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture
def pair(scratch_netns: str) -> Iterator[tuple[str, str]]:
    """Two namespaces with an eth0 that is up, of different indexes."""
    other = f"{scratch_netns}-there"
    netns.create(other)
    try:
        for path, index in ((scratch_netns, 5), (other, THERE)):
            ip(path, "link set lo up")
            ip(path, f"link add eth0 index {index} type veth peer name peer0")
            ip(path, "link set peer0 up")
            ip(path, "link set eth0 up")
        yield scratch_netns, other
    finally:
        netns.remove(other)


def read(path: str) -> list[Entry]:
    with netns.entered(path), Netlink() as nl:
        return discovery.scan(nl).entries


def given(path: str, some: list[Entry], remove: bool = False) -> list[tuple[int, int, str]]:
    ordered = sorted(some, key=entries.rank, reverse=remove)
    messages = [
        entries.message(entry, number, {1: 1, 5: THERE}, remove)
        for number, entry in enumerate(ordered)
    ]
    with netns.entered(path), Netlink() as nl:
        return nl.replay(b"".join(messages))


def told(path: str) -> list[str]:
    """What `ip` shows of it, without the parts that each kernel chooses."""
    commands = (
        "-4 route show table all",
        "-6 route show table all",
        "-4 rule",
        "-6 rule",
        "nexthop show",
        "neigh show nud permanent",
        "neigh show proxy",
    )
    lines = [line.strip() for command in commands for line in ip(path, command).splitlines()]
    # Those of link-local addresses come when the kernel likes.
    passed_over = "fe80", "ff00", "peer0"
    return sorted(line for line in lines if not any(word in line for word in passed_over))


def test_given_to_another_kernel(pair: tuple[str, str]) -> None:
    here, there = pair
    for command in COMMANDS:
        ip(here, command)
    for command in COMMANDS[:2]:
        ip(there, command)
    before = told(there)
    found = read(here)
    assert given(there, found) == []
    assert told(there) == told(here)
    assert [str(entry) for entry in read(there)] == [str(entry) for entry in found]
    assert given(there, found, remove=True) == []
    assert told(there) == before


def test_a_refused_entry_is_named_by_its_number(pair: tuple[str, str]) -> None:
    here, there = pair
    for command in COMMANDS[:3]:
        ip(here, command)
    found = read(here)
    # Nobody there has an address by which the gateway could be reached.
    ((number, code, words),) = given(there, found)
    refused = sorted(found, key=entries.rank)[number]
    assert entries.is_failure(refused, code, remove=False)
    assert "route 0.0.0.0/0 via 10.1.0.1: Nexthop has invalid gateway" in entries.refusal(
        refused, code, words
    )


def test_what_the_kernel_makes_is_not_carried(pair: tuple[str, str]) -> None:
    here, _ = pair
    assert read(here) == []
    ip(here, "address add 10.1.0.2/24 dev eth0")
    ip(here, "address add 10.1.0.3/24 dev eth0")
    ip(here, "address add 10.8.0.1 peer 10.8.0.2 dev eth0")
    ip(here, "address add 10.9.0.1/24 dev eth0 metric 50")
    ip(here, "address add fd01::2/64 dev eth0 nodad")
    ip(here, "address add fd02::2/64 dev eth0 nodad noprefixroute")
    assert read(here) == []


def test_a_route_of_the_kernels_that_is_not_there(pair: tuple[str, str]) -> None:
    here, there = pair
    for path in pair:
        ip(path, "address add 10.1.0.2/24 dev eth0")
        ip(path, "address add fd01::2/64 dev eth0 nodad")
    ip(here, "route delete 10.1.0.0/24 dev eth0")
    ip(here, "-6 route delete fd01::/64 dev eth0")
    found = read(here)
    assert [(str(entry), entry.absent) for entry in found] == [
        ("route 10.1.0.0/24", True),
        ("route fd01::/64", True),
    ]
    assert given(there, found) == []
    assert told(there) == told(here)
    assert given(there, found, remove=True) == []
    assert read(there) == []


def test_default_rules_are_those_of_this_kernel(scratch_netns: str) -> None:
    with netns.entered(scratch_netns), Netlink() as nl:
        assert carried.rules(entries.rules(nl, 100)) == []


def test_a_selector_that_older_kernels_pass_over() -> None:
    (rule, *_) = entries.default_rules(2)
    assert entries.unknown_selector(rule) == 0
    part = b"\x05\x00\x1b\x00\x01\x00\x00\x00"  # FRA_DSCP
    assert entries.unknown_selector(entries.rule(rule.body + part)) == 27


def test_too_many(pair: tuple[str, str]) -> None:
    here, _ = pair
    batch = "".join(f"route add blackhole 10.1.{n // 250}.{n % 250}\n" for n in range(500))
    subprocess.run(["ip", "-n", Path(here).name, "-batch", "-"], input=batch, text=True, check=True)
    with netns.entered(here), Netlink() as nl:
        assert len([*entries.routes(nl, 1000)]) > 500
        with pytest.raises(TooManyError, match="more than 400 routes"):
            list(entries.routes(nl, 400))
        # The walk that was given up leaves nothing behind.
        assert links.find(nl, "eth0")


def test_too_many_are_refused_in_words(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "MOST_ROUTES", 3)
    here, _ = pair
    with pytest.raises(NetworkError, match="more than 3 routes, which a guest is not given"):
        read(here)
