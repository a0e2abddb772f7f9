"""Our rtnetlink against those of pyroute2 and iproute2: what one makes, the others see."""

import errno
import json
import os
import socket
import subprocess
from typing import Any

import pytest
from pyroute2 import NetNS

from tapwright.linux import addresses, links, neighbours, netns, routes, tc, tuntap
from tapwright.linux.addresses import Address
from tapwright.linux.neighbours import Neighbour
from tapwright.linux.netlink import Netlink, NetlinkError
from tapwright.linux.routes import Route


def ip(path: str, *words: str) -> Any:
    command = ["ip", "-n", os.path.basename(path), "-details", "-json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def add(nl: Netlink, route: Route, append: bool = False) -> None:
    for refusal in filter(None, routes.add_many(nl, [route], append)):
        raise refusal


def remove(nl: Netlink, route: Route) -> None:
    for refusal in filter(None, routes.remove_many(nl, [route])):
        raise refusal


def test_links_are_those_of_iproute2(nl: Netlink, scratch_netns: str, veth: links.Link) -> None:
    links.set_mtu(nl, veth.index, 1400)
    links.set_alias(nl, veth.index, "tapwright")
    ours = links.listing(nl)
    for link, theirs in zip(ours, ip(scratch_netns, "link"), strict=True):
        assert link.index == theirs["ifindex"]
        assert link.name == theirs["ifname"]
        assert link.mtu == theirs["mtu"]
        assert link.is_up == ("UP" in theirs["flags"])
        assert link.kind == theirs.get("linkinfo", {}).get("info_kind", "")
        assert link.alias == theirs.get("ifalias", "")
        if link.is_ethernet:
            assert link.mac == theirs["address"]
    changed = links.find(nl, "a0")
    assert changed is not None
    assert (changed.mtu, changed.alias, changed.kind) == (1400, "tapwright", "veth")


def test_link_rename_remove_and_absence(nl: Netlink, veth: links.Link) -> None:
    links.set_down(nl, veth.index)
    links.rename(nl, veth.index, "c0")
    assert links.find(nl, "a0") is None
    assert links.find(nl, "c0") is not None
    links.remove(nl, veth.index)
    assert links.find(nl, "b0") is None


def test_mac_and_master(nl: Netlink, scratch_netns: str, veth: links.Link) -> None:
    with NetNS(os.path.basename(scratch_netns)) as theirs:
        theirs.link("add", ifname="br0", kind="bridge")
    bridge = links.find(nl, "br0")
    assert bridge is not None
    links.set_mac(nl, veth.index, "02:00:00:00:00:77")
    links.set_master(nl, veth.index, bridge.index)
    (theirs_of_it,) = ip(scratch_netns, "link", "show", "a0")
    assert (theirs_of_it["address"], theirs_of_it["master"]) == ("02:00:00:00:00:77", "br0")
    ours = links.find(nl, "a0")
    assert ours is not None
    assert (ours.mac, ours.master) == ("02:00:00:00:00:77", bridge.index)
    links.set_master(nl, veth.index, 0)
    (theirs_of_it,) = ip(scratch_netns, "link", "show", "a0")
    assert "master" not in theirs_of_it


def test_running_is_up_with_a_carrier(nl: Netlink, veth: links.Link) -> None:
    peer = links.find(nl, "b0")
    assert peer is not None
    assert veth.is_running
    links.set_down(nl, peer.index)
    found = links.find(nl, "a0")
    assert found is not None
    assert found.is_up
    assert not found.is_running


@pytest.mark.parametrize("mode", ["bridge", "passthru"])
def test_macvtap(nl: Netlink, scratch_netns: str, veth: links.Link, mode: str) -> None:
    links.add_macvtap(nl, "mt0", veth.index, mode)
    ours = links.find(nl, "mt0")
    assert ours is not None
    assert (ours.kind, ours.parent) == ("macvtap", veth.index)
    assert (ours.mac == veth.mac) == (mode == "passthru")
    (theirs,) = ip(scratch_netns, "link", "show", "mt0")
    assert theirs["link"] == "a0"
    assert theirs["linkinfo"]["info_kind"] == "macvtap"
    assert theirs["linkinfo"]["info_data"]["mode"] == mode
    with pytest.raises(NetlinkError, match="make macvtap mt0: File exists"):
        links.add_macvtap(nl, "mt0", veth.index, mode)


def test_ifb(nl: Netlink, scratch_netns: str) -> None:
    links.add_ifb(nl, "ifb7")
    (theirs,) = ip(scratch_netns, "link", "show", "ifb7")
    assert theirs["linkinfo"]["info_kind"] == "ifb"


@pytest.mark.parametrize(
    "address",
    [
        Address("10.1.2.3", 24, broadcast="10.1.2.255"),
        Address("10.1.2.3", 32, peer="10.9.9.9"),
        Address("fd00::5", 64),
        Address("fd00::5", 128),
    ],
)
def test_addresses(nl: Netlink, scratch_netns: str, veth: links.Link, address: Address) -> None:
    addresses.add(nl, veth.index, address)
    addresses.add(nl, veth.index, address)
    (ours,) = [
        found
        for index, found in addresses.listing(nl)
        if index == veth.index and not found.is_made_from(veth.mac)
    ]
    assert ours._replace(flags=0) == address
    (theirs,) = [
        entry
        for entry in ip(scratch_netns, "address", "show", "a0")[0]["addr_info"]
        if entry["scope"] != "link"
    ]
    assert theirs["local"] == address.address
    assert theirs["prefixlen"] == address.prefix_length
    assert theirs.get("address") == address.peer
    assert "tentative" not in theirs
    addresses.remove(nl, veth.index, ours)
    assert all(
        found.is_made_from(veth.mac)
        for index, found in addresses.listing(nl)
        if index == veth.index
    )


@pytest.mark.smoke
@pytest.mark.parametrize(
    "route",
    [
        Route("0.0.0.0/0", 0, gateway="10.1.2.1"),
        Route("10.50.0.0/16", 0, gateway="10.1.2.1", metric=77, table=1234),
        Route("10.51.0.0/16", 0, scope=routes.SCOPE_LINK, source="10.1.2.3"),
        Route("10.52.0.0/16", 0, gateway="192.0.2.1", onlink=True),
        Route("10.53.0.0/16", 0, gateway="10.1.2.1", mtu=1300, advmss=1200),
        Route("::/0", 0, gateway="fd00::1", metric=55),
        Route("fd01::/64", 0, gateway="fd00::1", metric=1024, table=300),
        Route("fd02::/64", 0, metric=1024, source="fd00::5"),
    ],
)
def test_routes(nl: Netlink, scratch_netns: str, veth: links.Link, route: Route) -> None:
    addresses.add(nl, veth.index, Address("10.1.2.3", 24))
    addresses.add(nl, veth.index, Address("fd00::5", 64))
    route = route._replace(device=veth.index)
    add(nl, route)
    with pytest.raises(NetlinkError, match="File exists"):
        add(nl, route)
    assert route in routes.listing(nl)
    family = "-6" if route.family == socket.AF_INET6 else "-4"
    name = "default" if route.destination in ("0.0.0.0/0", "::/0") else route.destination
    (theirs,) = [
        entry
        for entry in ip(scratch_netns, family, "route", "show", "table", str(route.table))
        if entry["dst"] == name
    ]
    assert theirs.get("gateway") == route.gateway
    assert theirs.get("prefsrc") == route.source
    assert theirs.get("metric", 0) == route.metric
    assert ("onlink" in theirs["flags"]) == route.onlink
    if route.mtu:
        (metrics,) = theirs["metrics"]
        assert (metrics["mtu"], metrics["advmss"]) == (route.mtu, route.advmss)
    remove(nl, route)
    remove(nl, route)
    assert route not in routes.listing(nl)


@pytest.mark.parametrize("family", ["10.1.2.1 10.54.0.0/16", "fd00::1 fd54::/64"])
def test_a_route_to_a_next_hop_object(
    nl: Netlink, scratch_netns: str, veth: links.Link, family: str
) -> None:
    """It is found, removed and added again by the object, whose way the kernel reports with it."""
    gateway, destination = family.split()
    addresses.add(nl, veth.index, Address("10.1.2.3", 24))
    addresses.add(nl, veth.index, Address("fd00::5", 64))
    for command in (
        f"nexthop add id 7 via {gateway} dev a0",
        f"route add {destination} nhid 7 metric 1024",
    ):
        ip(scratch_netns, *command.split())
    (route,) = (each for each in routes.listing(nl) if each.destination == destination)
    assert (route.nexthop, route.gateway, route.device) == (7, gateway, veth.index)
    remove(nl, route)
    assert route not in routes.listing(nl)
    add(nl, route)
    assert route in routes.listing(nl)


def test_several_routes_to_one_destination(nl: Netlink, veth: links.Link) -> None:
    peer = links.find(nl, "b0")
    assert peer is not None
    addresses.add(nl, veth.index, Address("10.1.2.3", 24))
    addresses.add(nl, veth.index, Address("fd00::5", 64))
    addresses.add(nl, peer.index, Address("10.1.3.3", 24))
    addresses.add(nl, peer.index, Address("fd01::5", 64))
    wanted = [
        Route("0.0.0.0/0", veth.index, gateway="10.1.2.1"),
        Route("0.0.0.0/0", peer.index, gateway="10.1.3.1"),
        Route("::/0", veth.index, gateway="fd00::1", metric=1024),
        Route("::/0", peer.index, gateway="fd01::1", metric=1024),
    ]
    for route in wanted:
        add(nl, route, append=True)
    listed = [r for r in routes.listing(nl) if r.protocol != routes.RTPROT_KERNEL]
    assert listed[:2] == wanted[:2]
    assert sorted(map(str, listed)) == sorted(map(str, wanted))
    for route in wanted:
        remove(nl, route)
    assert [r for r in routes.listing(nl) if r.protocol != routes.RTPROT_KERNEL] == []


@pytest.mark.parametrize("address", ["10.1.2.9", "fd00::9"])
def test_neighbours(nl: Netlink, scratch_netns: str, veth: links.Link, address: str) -> None:
    entry = Neighbour(address, "02:00:00:00:00:09", veth.index)
    neighbours.add(nl, entry)
    assert neighbours.listing(nl) == [entry]
    (theirs,) = [n for n in ip(scratch_netns, "neighbour") if n["dst"] == address]
    assert (theirs["lladdr"], theirs["state"]) == (entry.mac, ["PERMANENT"])


def test_what_pyroute2_made(nl: Netlink, scratch_netns: str) -> None:
    with NetNS(os.path.basename(scratch_netns)) as theirs:
        theirs.link("add", ifname="p0", kind="veth", peer="p1", address="02:00:00:00:00:01")
        (index,) = theirs.link_lookup(ifname="p0")
        theirs.link("set", index=index, state="up", mtu=1450)
        theirs.addr("add", index=index, address="10.7.0.2", prefixlen=16)
        theirs.route("add", dst="10.8.0.0/16", gateway="10.7.0.1", priority=9)
        theirs.neigh(
            "add", dst="10.7.0.1", lladdr="02:00:00:00:00:02", ifindex=index, state="permanent"
        )
    link = links.find(nl, "p0")
    assert link is not None
    assert (link.mac, link.mtu, link.is_up) == ("02:00:00:00:00:01", 1450, True)
    assert [str(a) for i, a in addresses.listing(nl) if i == index] == ["10.7.0.2/16"]
    assert [
        (route.destination, route.gateway, route.metric)
        for route in routes.listing(nl)
        if route.protocol != routes.RTPROT_KERNEL
    ] == [("10.8.0.0/16", "10.7.0.1", 9)]
    assert neighbours.listing(nl) == [Neighbour("10.7.0.1", "02:00:00:00:00:02", index)]


def test_pyroute2_sees_the_redirection(nl: Netlink, scratch_netns: str, veth: links.Link) -> None:
    peer = links.find(nl, "b0")
    assert peer is not None
    tc.add_ingress(nl, veth.index)
    tc.redirect_ingress(nl, veth.index, peer.index)
    with NetNS(os.path.basename(scratch_netns)) as theirs:
        filters = list(theirs.get_filters(index=veth.index, parent=0xFFFF0000))
        actions = [
            action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
            for entry in filters
            if (options := entry.get_attr("TCA_OPTIONS")) and options.get_attr("TCA_U32_ACT")
            for _, action in options.get_attr("TCA_U32_ACT")["attrs"]
        ]
    assert [(a["eaction"], a["ifindex"]) for a in actions] == [(tc.TCA_EGRESS_REDIR, peer.index)]
    tc.remove_ingress(nl, veth.index)
    tc.remove_ingress(nl, veth.index)


def test_tap_is_seen_and_ends_with_its_descriptor(nl: Netlink, scratch_netns: str) -> None:
    with netns.entered(scratch_netns):
        fd = tuntap.create("tap7")
        with pytest.raises(OSError, match="busy") as raised:
            tuntap.create("tap7")
    assert raised.value.errno == errno.EBUSY
    command = ["ip", "-n", os.path.basename(scratch_netns), "tuntap", "show"]
    assert "tap7: tap vnet_hdr" in subprocess.check_output(command, text=True)
    os.close(fd)
    assert links.find(nl, "tap7") is None


def test_refusal_names_the_operation_and_the_reason(nl: Netlink, veth: links.Link) -> None:
    with pytest.raises(NetlinkError) as raised:
        add(nl, Route("10.1.0.0/16", veth.index, gateway="203.0.113.1"))
    assert raised.value.errno == errno.ENETUNREACH
    assert "add route 10.1.0.0/16 via 203.0.113.1" in str(raised.value)
    assert "gateway" in str(raised.value), "the kernel's own explanation"


def test_dump_that_does_not_fit_one_read(nl: Netlink, veth: links.Link) -> None:
    for number in range(2000):
        destination = f"10.{100 + number // 250}.{number % 250}.0/24"
        add(nl, Route(destination, veth.index, scope=routes.SCOPE_LINK))
    assert len([r for r in routes.listing(nl) if r.device == veth.index]) >= 2000


def test_notifications(scratch_netns: str, nl: Netlink) -> None:
    with netns.entered(scratch_netns):
        listening = Netlink(links.RTMGRP_LINK)
    with listening:
        assert listening.notifications() == []
        links.add_veth(nl, "n0", "n1")
        names = {
            links.decode(body).name
            for kind, body in listening.notifications()
            if kind == links.RTM_NEWLINK
        }
    assert names == {"n0", "n1"}


@pytest.mark.unit
@pytest.mark.parametrize("mac", ["", "02:00", "02-00-00-00-00-00", "zz:00:00:00:00:00"])
def test_what_is_no_mac(mac: str) -> None:
    from tapwright.linux.netlink import pack_mac

    with pytest.raises(ValueError, match="is not a MAC address"):
        pack_mac(mac)


def test_namespace_is_one_of_ip_netns(scratch_netns: str) -> None:
    path = f"{scratch_netns}-own"
    netns.create(path)
    try:
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
        assert os.path.basename(path) in listed.stdout
        assert ip(path, "link", "show", "lo")[0]["flags"][:2] == ["LOOPBACK", "UP"]
        with pytest.raises(FileExistsError):
            netns.create(path)
        assert netns.exists(path)
    finally:
        netns.remove(path)
    netns.remove(path)
    assert not os.path.exists(path)
    assert not netns.exists(path)


@pytest.mark.unit
def test_a_file_is_no_namespace(tmp_path: Any) -> None:
    (tmp_path / "file").touch()
    assert not netns.exists(str(tmp_path / "file"))
