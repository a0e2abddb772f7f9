"""What the agent does to interfaces, routes and neighbours, in a namespace of this machine."""

import json
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent.guest import network, routing
from tapwright.agent.guest.refusal import RefusedError
from tapwright.linux import addresses, links, netns, routes
from tapwright.linux.netlink import Netlink, NetlinkError, NetlinkRequest
from tests.host import eventually

MAC = "02:00:00:00:00:5a"
RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100
ETH_P_ARP = 0x0806


@pytest.fixture
def nl(scratch_netns: str) -> Iterator[Netlink]:
    """In the namespace, as the agent is in its guest, with a NIC that has the address MAC."""
    with netns.entered(scratch_netns), Netlink() as opened:
        network.prepare(opened)
        links.add_veth(opened, "nic0", "peer0")
        nic, peer = links.find(opened, "nic0"), links.find(opened, "peer0")
        assert nic is not None
        assert peer is not None
        links.leave_ipv6_alone(opened, nic.index)
        links.leave_ipv6_alone(opened, peer.index)
        links.set_mac(opened, nic.index, MAC)
        links.set_up(opened, peer.index)
        links.set_up(opened, nic.index)
        assert eventually(lambda: is_running(opened, nic.index))
        yield opened


def is_running(nl: Netlink, index: int) -> bool:
    link = links.at(nl, index)
    return link is not None and link.is_running


def set_addresses(nl: Netlink, *some: str, **more: Any) -> None:
    wanted = []
    for text in some:
        address, length = text.split("/")
        wanted.append({"address": address, "prefix_length": int(length)})
    network.set_interface(nl, {"mac": MAC, "addresses": wanted, **more})


def shown(family: str = "-4") -> list[str]:
    """The NIC's addresses as ip(8) shows them, later ones of a subnet with a star."""
    listed = json.loads(subprocess.check_output(["ip", "-json", family, "address"], text=True))
    return [
        f"{entry['local']}/{entry['prefixlen']}{'*' if entry.get('secondary') else ''}"
        for link in listed
        for entry in link["addr_info"]
        if link["ifname"] != "lo" and entry["scope"] != "link"
    ]


def route_lines(*words: str) -> list[str]:
    listed = subprocess.check_output(["ip", "route", "show", *words], text=True)
    return [line.strip() for line in listed.splitlines() if "proto kernel" not in line]


class Watched:
    """What changes in addresses and links from here on."""

    def __init__(self) -> None:
        groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | links.RTMGRP_LINK
        self._netlink = Netlink(groups)

    def removed(self) -> list[str]:
        return [
            str(addresses.decode(body)[1])
            for kind, body in self._netlink.notifications()
            if kind == addresses.RTM_DELADDR
        ]

    def nothing(self) -> bool:
        return not self._netlink.notifications()


def arp_socket() -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
    opened.bind(("peer0", ETH_P_ARP))
    opened.setblocking(False)
    return opened


def announced(raw: socket.socket) -> list[str]:
    found = []
    with suppress(BlockingIOError):
        while True:
            (packed,) = struct.unpack_from("4s", raw.recv(100), 28)  # the sender's address
            found.append(socket.inet_ntoa(packed))
    return found


@pytest.mark.smoke
def test_prepare(nl: Netlink) -> None:
    for scope in ("all", "default"):
        assert setting(f"ipv6/conf/{scope}/accept_dad") == "0"


def setting(path: str) -> str:
    return Path(f"/proc/sys/net/{path}").read_text().strip()


def test_order_of_addresses(nl: Netlink) -> None:
    set_addresses(nl, "10.1.0.2/24", "10.1.0.3/24", "10.1.0.4/24")
    assert shown() == ["10.1.0.2/24", "10.1.0.3/24*", "10.1.0.4/24*"]
    watched = Watched()
    set_addresses(nl, "10.1.0.2/24", "10.1.0.4/24", "10.1.0.3/24")
    assert shown() == ["10.1.0.2/24", "10.1.0.4/24*", "10.1.0.3/24*"]
    assert "10.1.0.2/24" not in watched.removed(), "it was where it belongs"
    set_addresses(nl, "10.1.0.3/24", "10.1.0.2/24")
    assert shown() == ["10.1.0.3/24", "10.1.0.2/24*"]


def test_second_address_outlives_the_first(nl: Netlink) -> None:
    set_addresses(nl, "10.1.0.2/24", "10.1.0.3/24")
    watched = Watched()
    set_addresses(nl, "10.1.0.3/24")
    assert shown() == ["10.1.0.3/24"]
    assert watched.removed() == ["10.1.0.2/24"]
    assert setting("ipv4/conf/nic0/promote_secondaries") == "0", "it is as it was"


@pytest.mark.parametrize(
    "wanted",
    [
        ["10.1.0.2/24", "fd00::2/64", "fd00::3/64", "fec0::2/64"],
        ["10.1.0.2/24", "10.1.0.3/24", "10.2.0.2/16"],  # listed by the kernel in another order
        ["10.1.0.2/24", "10.1.0.2/25", "10.1.0.130/25"],
        ["10.1.0.2/24", "10.1.0.3/24", "10.1.0.3/24", "10.1.0.2/24"],
    ],
)
def test_what_is_so_is_left_alone(nl: Netlink, wanted: list[str]) -> None:
    set_addresses(nl, *wanted)
    with arp_socket() as raw:
        watched = Watched()
        set_addresses(nl, *wanted, name="nic0", mtu=1500, txqlen=1000)
        assert watched.nothing()
        assert announced(raw) == []
        set_addresses(nl, *wanted, "10.9.0.2/24")
        assert announced(raw) == ["10.9.0.2"]
    assert sorted(shown("-6")) == [address for address in wanted if ":" in address]


def test_what_programs_of_the_guest_have_added_stays(nl: Netlink) -> None:
    """As it does in a namespace: the address of keepalived, or one of loopback."""
    set_addresses(nl, "10.1.0.2/24", "10.1.0.3/24", "fd00::2/64")
    for own in ("10.1.0.77/24", "10.2.0.77/32", "fd00::77/128"):
        subprocess.run(["ip", "address", "add", own, "dev", "nic0"], check=True)
    given = {"address": "10.1.0.2", "prefix_length": 24}
    set_addresses(nl, "10.1.0.4/24", "10.1.0.3/24", "fd00::3/64", unwanted=[given])
    assert sorted(shown()) == ["10.1.0.3/24*", "10.1.0.4/24*", "10.1.0.77/24", "10.2.0.77/32"]
    assert sorted(shown("-6")) == ["fd00::2/64", "fd00::3/64", "fd00::77/128"]
    set_addresses(nl, "10.1.0.3/24")
    assert shown() + shown("-6") == ["10.1.0.3/24"], "where nothing was given, all others go"


def test_other_details_of_an_address(nl: Netlink) -> None:
    same = {"address": "10.1.0.2", "prefix_length": 24}
    for more in ({}, {"broadcast": "10.1.0.255"}, {"peer": "10.1.0.9"}, {"flags": 0x200}, {}):
        network.set_interface(nl, {"mac": MAC, "addresses": [{**same, **more}]})
        nic = links.find(nl, "nic0")
        assert nic is not None
        (found,) = addresses.of(nl, nic.index)
        assert found == addresses.Address("10.1.0.2", 24, **more)


def test_down_and_up(nl: Netlink) -> None:
    set_addresses(nl, "10.1.0.2/24", "fd00::2/64")
    routing.change_routes(nl, {"add": [{"destination": "10.9.0.0/16", "device": "nic0"}]})
    set_addresses(nl, "10.1.0.2/24", "10.1.0.3/24", "fd00::2/64", up=False)
    nic = links.find(nl, "nic0")
    assert nic is not None
    assert not nic.is_up
    assert shown() == ["10.1.0.2/24", "10.1.0.3/24*"]
    assert shown("-6") == ["fd00::2/64"]
    with arp_socket() as raw:
        set_addresses(nl, "10.1.0.2/24", "10.1.0.3/24", "fd00::2/64")
        assert eventually(lambda: is_running(nl, nic.index))
        heard = announced(raw)
        while len(heard) < 2:  # the test's own time limit ends it
            select.select([raw], [], [])
            heard += announced(raw)
        assert heard == ["10.1.0.2", "10.1.0.3"]
    assert shown("-6") == ["fd00::2/64"]
    assert route_lines() == []


def test_a_nic_that_a_program_has_taken_away(nl: Netlink) -> None:
    """A change of it is refused at once: it does not wait for the NIC, as a first request does."""
    with pytest.raises(RefusedError, match="02:00:00:00:00:99 has left the network namespace"):
        network.set_interface(nl, {"mac": "02:00:00:00:00:99", "mtu": 1400, "change": True})


def test_another_name_while_up(nl: Netlink) -> None:
    set_addresses(nl, "10.1.0.2/24", "fd00::2/64", txqlen=77)
    routing.change_routes(nl, {"add": [{"destination": "10.9.0.0/16", "device": "nic0"}]})
    answer = network.set_interface(nl, {"mac": MAC, "name": "lan0", "change": True})
    found = links.find(nl, "lan0")
    assert found is not None
    assert found.is_up
    assert found.txqlen == 77
    assert shown() == ["10.1.0.2/24"]
    assert shown("-6") == ["fd00::2/64"]
    # Kernels before 6.2 need it down; then the caller adds them again.
    assert ("lost" in answer) != ("10.9.0.0/16 dev lan0" in route_lines())


def to(number: int, **more: Any) -> dict[str, Any]:
    destination = f"10.{100 + number // 250}.{number % 250}.0/24"
    return {"destination": destination, "device": "nic0", "gateway": "10.1.0.1", **more}


def test_a_nic_that_takes_the_name_meanwhile(nl: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel's names do, when it finds NICs one after the other."""
    rename = links.rename

    def late(netlink: Netlink, index: int, name: str) -> None:
        if name == "eth0" and links.find(netlink, "late0"):
            rename(netlink, links.find(netlink, "late0").index, "eth0")  # type: ignore[union-attr]
        rename(netlink, index, name)

    links.add_veth(nl, "late0", "late1")
    found = links.find(nl, "late0")
    assert found
    monkeypatch.setattr(links, "rename", late)
    set_addresses(nl, "192.0.2.5/24", name="eth0")
    assert shown() == ["192.0.2.5/24"]
    ours, other = links.find(nl, "eth0"), links.at(nl, found.index)
    assert ours
    assert ours.mac == MAC
    assert other
    assert other.name == f"tw{found.index}"


def test_a_thousand_routes(nl: Netlink) -> None:
    set_addresses(nl, "10.1.0.2/24")
    all_of_them = [to(number) for number in range(1000)]
    routing.change_routes(nl, {"add": all_of_them})
    assert len(route_lines()) == 1000
    routing.change_routes(nl, {"add": all_of_them[::-1]})
    routing.change_routes(nl, {"remove": all_of_them[:500] * 2, "add": [to(0)]})
    assert len(route_lines()) == 501
    routing.change_routes(nl, {"add": [to(0, gateway="10.1.0.9")], "append": True})
    assert len(route_lines()) == 502
    routing.change_routes(nl, {"remove": [*all_of_them, to(0, gateway="10.1.0.9")]})
    assert route_lines() == []


def test_failure_among_many_routes(nl: Netlink) -> None:
    """It is named, and all is as before, in whatever batch it was."""
    set_addresses(nl, "10.1.0.2/24")
    routing.change_routes(nl, {"add": [to(number) for number in range(5)]})
    before = route_lines()
    add = [to(number) for number in range(3, 300)]
    for bad, reason in (
        (to(900, gateway="192.0.2.7"), r"add route 10.103.150.0/24 via 192.0.2.7: .* gateway"),
        (to(900, gateway="10.1.0"), "'10.1.0' is not an IP address"),
        (to(4, gateway="10.1.0.7"), r"add route 10.100.4.0/24 via 10.1.0.7: File exists"),
    ):
        with pytest.raises((NetlinkError, ValueError), match=reason):
            routing.change_routes(
                nl, {"remove": [to(0), to(1)], "add": [*add[:150], bad, *add[150:]]}
            )
        assert sorted(route_lines()) == sorted(before)


def test_routes_that_need_each_other(nl: Netlink) -> None:
    set_addresses(nl, "10.1.0.2/24")
    behind = to(0, gateway="169.254.1.1")
    link = {"destination": "169.254.1.1/32", "device": "nic0", "scope": routes.SCOPE_LINK}
    with pytest.raises(NetlinkError, match=r"add route 10.100.0.0/24 via 169.254.1.1"):
        routing.change_routes(nl, {"add": [behind]})
    routing.change_routes(nl, {"add": [behind, link]})
    assert sorted(route_lines()) == [
        "10.100.0.0/24 via 169.254.1.1 dev nic0",
        "169.254.1.1 dev nic0 scope link",
    ]


def test_a_route_like_it_is_not_removed(nl: Netlink) -> None:
    """The kernel would take metric 0, and no source, for any."""
    set_addresses(nl, "10.1.0.2/24", "10.1.0.3/24")
    other = to(0, metric=50, source="10.1.0.3")
    routing.change_routes(nl, {"add": [other]})
    routing.change_routes(nl, {"remove": [to(0)]})
    assert len(route_lines()) == 1
    routing.change_routes(nl, {"remove": [other]})
    assert route_lines() == []


def test_routes_of_an_unknown_device(nl: Netlink) -> None:
    with pytest.raises(RefusedError, match="no interface called 'no0'"):
        routing.change_routes(nl, {"add": [to(0, device="no0")]})
    # What was on it has gone with it.
    routing.change_routes(nl, {"remove": [to(0, device="no0")]})


def test_each_refusal_is_its_own(nl: Netlink) -> None:
    """Every other of many requests is refused, and then all of them."""
    nic = links.find(nl, "nic0")
    assert nic is not None
    set_addresses(nl, "10.1.0.2/24")
    good, bad = (routes.Route("10.9.0.0/16", nic.index, gateway=g) for g in ("10.1.0.1", "9.9.9.9"))
    requests = [
        NetlinkRequest(
            f"number {number}", routes.RTM_NEWROUTE, routes.encoded(route), 0x400 | 0x100
        )
        for number, route in enumerate([good, bad] * 100 + [bad] * 300)
    ]
    refusals = nl.request_many(requests)
    assert [number for number, refusal in enumerate(refusals) if not refusal] == [*range(0, 200, 2)]
    for number, refusal in enumerate(refusals):
        assert refusal is None or refusal.operation == f"number {number}"
    assert nl.request_many([]) == []
