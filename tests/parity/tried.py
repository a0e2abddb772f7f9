"""The networks on which is tried what works: first in a namespace by a container of runc's, then in
a sandbox's guest. Attaching a sandbox changes a namespace, so these are two."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.oci.bundles import CAPABILITIES, configuration, write
from tests.parity import behaviour
from tests.parity.behaviour import Found, Others, Station, Trial, Trying
from tests.parity.networked import Json, Networked, ip
from tests.parity.networks import ROWS, V4, V6, Row, bridge, ipam, with_plugin


@dataclass(frozen=True)
class Case:
    """A network, what is tried on it, and its gateways by version of IP. The neighbour is a
    container of the same network where CNI plugins make that."""

    row: Row
    tried: tuple[Trying, ...]
    gateways: tuple[str, ...] = ("10.70.0.1", "fd70::1")
    silent: tuple[str, ...] = ()
    """Beginnings of the names of what is not answered."""


_ROWS = {row.name: row for row in ROWS}
_NO_ADVERTISEMENT = ("discovery: a router advertisement",)
_EVERYDAY = (behaviour.reaching, behaviour.being_reached)
_SIZES = (behaviour.sizes, behaviour.packets)
_QUICK = {f"ipv{version}/neigh/eth0/retrans_time_ms": "50" for version in (4, 6)}
_BOTH = ("address add 10.70.0.9/24 dev eth0", "address add fd70::9/64 dev eth0 nodad")
_DEFAULTS = ("route add default via 10.70.0.1", "route add default via fd70::1")
_PORTS = tuple(
    {
        "hostPort": behaviour.PUBLISHED,
        "containerPort": behaviour.PORT,
        "protocol": "tcp",
        "hostIP": address,
    }
    for address in behaviour.HOST.values()
)


def _by_hand(name: str, *commands: str, settings: dict[str, str] | None = None) -> Row:
    return Row(name, ip=(*_BOTH, *_DEFAULTS, *commands), settings=settings or {})


CASES = (
    Case(
        _by_hand("dual-stack"),
        (
            *_EVERYDAY,
            *(behaviour.groups, *_SIZES, behaviour.errors, behaviour.neighbourhood),
            *(behaviour.forwarding, behaviour.advertised),
        ),
    ),
    Case(
        Row(
            "bridge with published ports",
            (),
            cni=(
                with_plugin(
                    bridge(
                        "br-b1", "10.61.1.0/24", "fd61:1::/64", routes=(V4, V6), hairpinMode=True
                    ),
                    {"type": "portmap", "capabilities": {"portMappings": True}},
                    {"type": "firewall"},
                ),
            ),
            ports=_PORTS,
        ),
        (*_EVERYDAY, behaviour.published, behaviour.groups, behaviour.neighbourhood),
        ("10.61.1.1", "fd61:1::1"),
    ),
    Case(
        Row(
            "ptp",
            (),
            cni=(
                with_plugin(
                    {"type": "ptp", "ipam": ipam("10.61.2.0/24", "fd61:2::/64", routes=(V4, V6))}
                ),
            ),
        ),
        (*_EVERYDAY, behaviour.errors),
        ("10.61.2.1", "fd61:2::1"),
    ),
    Case(
        Row(
            "two bridges, the second with sbr",
            (),
            cni=(
                with_plugin(bridge("br-b3", "10.61.3.0/24")),
                with_plugin(bridge("br-b4", "10.61.4.0/24"), {"type": "sbr"}, ifname="net1"),
            ),
        ),
        _EVERYDAY,
        ("10.61.3.1",),
    ),
    Case(
        Row(
            "macvlan",
            (),
            needs=("macvlan",),
            cni=(with_plugin({"type": "macvlan", "master": "up0", "ipam": ipam("10.61.5.0/24")}),),
        ),
        (behaviour.reaching, behaviour.groups, behaviour.neighbourhood),
        (),
    ),
    Case(_ROWS["no address"], (behaviour.leased, behaviour.advertised), ()),
    Case(
        _ROWS["router advertisements off (CVE-2020-10749)"],
        (behaviour.advertised, behaviour.neighbourhood),
        silent=_NO_ADVERTISEMENT,
    ),
    Case(
        Row(
            "IPv6 off",
            ip=(_BOTH[0], _DEFAULTS[0]),
            settings={"ipv6/conf/eth0/disable_ipv6": "1"},
        ),
        (*_EVERYDAY, behaviour.neighbourhood, behaviour.advertised),
        ("10.70.0.1",),
        _NO_ADVERTISEMENT,
    ),
    Case(
        _by_hand(
            "forwarding",
            settings={"ipv4/conf/all/forwarding": "1", "ipv6/conf/all/forwarding": "1"},
        ),
        (behaviour.forwarding, behaviour.advertised, behaviour.neighbourhood),
        silent=_NO_ADVERTISEMENT,
    ),
    Case(
        _by_hand("MTU 1300", "link set eth0 mtu 1300"),
        _SIZES,
        silent=(
            "sizes: fragments to the neighbour",
            *(f"sizes: {size} bytes by" for size in (1452, 1453, 1472, 1473, 8900)),
        ),
    ),
    Case(
        _by_hand("a route with an MTU", "route add 10.81.0.0/24 via 10.70.0.1 mtu lock 1280"),
        _SIZES,
    ),
    Case(
        _by_hand(
            "routes for no traffic, and absent neighbours",
            "route add blackhole 10.100.0.0/16",
            "route add unreachable 10.101.0.0/16",
            "route add prohibit 10.102.0.0/16",
            "route add throw 10.103.0.0/16",
            "-6 route add blackhole fd00:100::/32",
            "-6 route add unreachable fd00:101::/32",
            "-6 route add prohibit fd00:102::/32",
            "route delete default",
            "-6 route delete default",
            settings=_QUICK,
        ),
        (behaviour.absent,),
    ),
    Case(
        _by_hand(
            "several addresses, and sources of routes",
            "address add 10.70.0.10/24 dev eth0",
            "address add 10.88.0.1/32 dev lo",
            "address add fd70::a/64 dev eth0 nodad preferred_lft 0",
            "route add 10.81.0.0/24 via 10.70.0.1 src 10.88.0.1",
            "route add 192.0.2.0/24 via 10.70.0.1 src 10.70.0.10",
            "-6 route add fd81::/64 via fd70::1 src fd70::a",
        ),
        (*_EVERYDAY, behaviour.neighbourhood),
        # There is no way back to such a source.
        silent=("reaching: node by",),
    ),
    Case(
        Row(
            "answers for others, and to all",
            ip=(
                *_BOTH,
                *_DEFAULTS,
                "neigh add proxy 10.70.0.88 dev eth0",
                "neigh add proxy fd70::88 dev eth0",
                "route add 10.70.0.88/32 dev lo",
                "address add 10.88.0.1/32 dev lo",
            ),
            settings={
                "ipv4/conf/all/forwarding": "1",
                "ipv6/conf/all/forwarding": "1",
                "ipv6/conf/eth0/proxy_ndp": "1",
                "ipv4/neigh/eth0/proxy_delay": "0",
                "ipv6/neigh/eth0/proxy_delay": "0",
                "ipv4/icmp_echo_ignore_broadcasts": "0",
                "ipv4/ip_default_ttl": "33",
            },
        ),
        (behaviour.neighbourhood, behaviour.groups, behaviour.reaching),
    ),
    Case(
        Row(
            "answers to none",
            ip=(*_BOTH, *_DEFAULTS, "address add 10.88.0.1/32 dev lo"),
            settings={
                "ipv4/conf/eth0/arp_ignore": "1",
                "ipv4/icmp_echo_ignore_all": "1",
                "ipv6/icmp/echo_ignore_all": "1",
                "ipv4/conf/eth0/rp_filter": "1",
                "ipv4/conf/all/rp_filter": "1",
            },
        ),
        (behaviour.neighbourhood, behaviour.being_reached),
        silent=("being reached: by ICMP",),
    ),
)


class Nobody:
    """Who follows a namespace that no sandbox has joined."""

    def sync(self) -> None:
        pass

    def probe(self, wanted: Json) -> Json:
        raise NotImplementedError

    def log(self) -> str:
        return ""


def by_runc(netns: str, directory: Path, *argv: str) -> list[str]:
    """What runs a program of this host in a container of runc's, on the network of a namespace."""
    bundle = directory / "bundle"
    name = f"twtest-parity-{os.urandom(4).hex()}"
    if not bundle.exists():
        for link in ("bin", "lib", "lib64", "sbin"):
            (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
            (bundle / "rootfs" / link).symlink_to(f"usr/{link}")
    usr = {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]}
    content = configuration(*argv, mounts=[usr])
    sets = ("bounding", "effective", "permitted")
    capabilities = [*CAPABILITIES, "CAP_NET_ADMIN"]
    content["process"]["capabilities"] = dict.fromkeys(sets, capabilities)
    for namespace in content["linux"]["namespaces"]:
        if namespace["type"] == "network":
            namespace["path"] = netns
    write(bundle, content)
    return ["runc", "--root", str(directory / "runc"), "run", "--bundle", str(bundle), name]


@contextmanager
def beside(case: Case, others: Others, directory: Path) -> Iterator[Others]:
    """The others, with a neighbour in the network of CNI plugins."""
    if not case.row.cni:
        yield others
        return
    name = f"twtest-beside-{os.getpid()}"
    ip(f"netns add {name}")
    networked = Networked(f"/run/netns/{name}", Nobody(), directory)
    row = Row(case.row.name, (), cni=case.row.cni[:1])
    try:
        networked.make(row)
        with behaviour.at(name) as one:
            neighbour = behaviour.party("neighbour", one, name, "eth0")
            yield Others(others.host, neighbour, others.node)
    finally:
        networked.clear()
        ip(f"netns delete {name}")


def found(case: Case, networked: Networked, one: Station, others: Others, expected: Found) -> Found:
    """What is found by a station on the network, which is there."""
    own = behaviour.party("own", one, networked.name, "eth0")
    gateways = {6 if ":" in address else 4: address for address in case.gateways}
    trial = Trial(own, others, gateways, expected, case.silent)
    forget_neighbours()
    for tried in case.tried:
        tried(trial)
    return trial.found


def forget_neighbours() -> None:
    """Another machine has an address now than before."""
    for place in ("", f"-n twtest-neighbour-{os.getpid()}"):
        subprocess.run(
            ["ip", *place.split(), "neigh", "flush", "all"], check=True, stderr=subprocess.DEVNULL
        )


@contextmanager
def made(case: Case, networked: Networked) -> Iterator[None]:
    try:
        networked.make(case.row)
        networked.guest.sync()
        yield
    finally:
        networked.clear()


def compared(
    case: Case,
    plain: Networked,
    followed: Networked,
    in_guest: Sequence[str],
    others: Others,
    directory: Path,
) -> tuple[Found, Found]:
    """What is found in the one namespace, and by the command `in_guest` in the guest."""
    with beside(case, others, plain.directory) as party:
        command = by_runc(plain.path, directory, *behaviour.PROGRAM)
        with made(case, plain), behaviour.running(command) as one:
            here = found(case, plain, one, party, {})
        with made(case, followed), behaviour.running([*in_guest, *behaviour.PROGRAM]) as one:
            there = found(case, followed, one, party, here)
    return here, there
