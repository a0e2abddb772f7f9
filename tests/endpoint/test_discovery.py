"""What of a namespace can become a NIC."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.endpoint import discovery
from tapwright.linux import links, netns, tuntap
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink
from tests.namespaces import Namespace, namespace


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace("twtest-found") as made:
        yield made


def found(ns: Namespace) -> dict[str, tuple[bool, str]]:
    """Whether each is ready, and why it can't be a NIC."""
    with netns.entered(ns.path), Netlink() as nl:
        interfaces = discovery.scan(nl).interfaces
    return {one.link.name: (one.is_ready, discovery.why_not(one.link)) for one in interfaces}


def test_ports_and_taps(ns: Namespace) -> None:
    ns.ip("link add br0 type bridge")
    for name in ("port0", "alone0", "down0"):
        ns.ip(f"link add {name} type veth peer name {name}p")
        ns.ip(f"link set {name} up")
    ns.ip("link set port0 master br0")
    ns.ip("link set down0 down")
    for name, more in (("tap0", ""), ("tap1", ""), ("tap2", "multi_queue"), ("tap3", "")):
        ns.ip(f"tuntap add dev {name} mode tap {more}")
        ns.ip(f"link set {name} up")
    for name in ("tap1", "tap3"):
        ns.ip(f"link set {name} master br0")
    with netns.entered(ns.path):
        (several,) = tuntap.attach("tap2", tuntap.Tap(False, False, True, True), 1)
        (one,) = tuntap.attach("tap3", tuntap.Tap(False, False, True, False), 1)
    interfaces = found(ns)
    os.close(several)
    os.close(one)
    assert {name: interfaces[name] for name in interfaces if not name.endswith("0p")} == {
        "port0": (False, "it is a port of a bridge, whose frames its are"),
        "alone0": (True, ""),
        "down0": (False, ""),
        "tap0": (True, ""),
        "tap1": (False, ""),
        "tap2": (True, ""),
        "tap3": (False, "it is a TAP that another process holds"),
    }


def test_a_vrf_takes_no_frames() -> None:
    """This host's kernel may have none."""
    link = Link(3, "eth0", "veth", "02:00:00:00:00:07", 1500, links.IFF_UP, master=7)
    assert not link._replace(master_kind="vrf").is_port
    assert discovery.why_not(link._replace(master_kind="vrf")) == ""
    port = link._replace(master_kind="bond")
    assert port.is_port
    assert discovery.why_not(port) == "it is a port of a bond, whose frames its are"


def test_a_parent_is_of_the_same_namespace(ns: Namespace) -> None:
    """Indexes of others' would be those of interfaces here."""
    ns.ip("link add low0 type veth peer name low1")
    ns.ip("link add mv0 link low0 type macvlan mode bridge")
    with namespace("twtest-found2") as other:
        ns.ip(f"link add mv1 link low0 netns {other.name} type macvlan mode bridge")
        with netns.entered(other.path), Netlink() as nl:
            assert links.named(nl, "mv1").parent == 0
    with netns.entered(ns.path), Netlink() as nl:
        assert links.named(nl, "mv0").parent == links.named(nl, "low0").index


def test_a_link_local_address_made_by_a_secret(ns: Namespace) -> None:
    """It goes to the guest as any other, whose kernel must make none by a secret of its own."""
    ns.ip("link add eth0 type veth peer name peer0")
    secret = Path("/proc/sys/net/ipv6/conf/eth0/stable_secret")
    with netns.entered(ns.path), Netlink() as nl:

        def mode() -> str | None:
            found = discovery.scan(nl).interfaces
            (own,) = (one for one in found if one.link.name == "eth0")
            return own.special_settings.get("ipv6/addr_gen_mode")

        assert mode() is None
        ns.ip("link set eth0 addrgenmode random")
        assert mode() == "1"
        secret.write_text("2001:db8::1")
        assert mode() == "1"
        ns.ip("link set eth0 addrgenmode eui64")
        assert mode() is None
