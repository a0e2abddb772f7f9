"""From facts to a verdict, a row for each kind of fault."""

import errno
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tapwright.cli.explain import lines, split, wish_of
from tapwright.diagnosis import judging, rules, way
from tapwright.diagnosis.case import BRIDGE, OUT, PEER, TAP, Case, Explanation, Station, Wish
from tapwright.diagnosis.facts import Bridge, Host, Port, Process
from tapwright.errors import UsageError
from tapwright.linux import sightings
from tapwright.linux.lookup import Entry, Path
from tapwright.linux.netlink import pack_address, pack_mac
from tapwright.linux.nftrace import ACCEPT, DROP, Step
from tapwright.linux.sightings import Sighting
from tests.diagnosis import pictures

pytestmark = pytest.mark.unit

WEB, OWN = "198.51.100.2", "10.91.0.3"
TOKEN = b"token-of"


def probe(outcome: str, **more: Any) -> dict[str, Any]:
    empty = {"error": 0, "origin": "", "reporter": "", "size": 84, "mtu": 0, "port": 0, "macs": []}
    return {"outcome": outcome, **empty, **more}


def case() -> Case:
    """A packet that arrives nowhere, and nothing is wrong."""
    found = Case("box", Wish(WEB), way=pictures.nic(), target=WEB, own=OWN, netns=pictures.NETNS)
    settings = {"disable_ipv6": "0", "rp_filter": "0"}
    found.guest = {
        "links": [
            {
                "index": 2,
                "name": "eth0",
                "mac": pictures.MAC,
                "mtu": 1500,
                "up": True,
                "running": True,
                "loopback": False,
                "addresses": list(pictures.ADDRESSES),
                "settings": settings,
            }
        ],
        "routes": [
            Entry("0.0.0.0/0", "unicast", 2, "10.91.0.1", 0, 254)._asdict(),
            Entry("10.91.0.0/24", "unicast", 2, "", 0, 254)._asdict(),
        ],
        "listening": [],
        "resolv": {"nameservers": ["10.91.0.1"], "search": [], "ndots": 1},
        "settings": {},
    }
    found.way.wanted_routes = [way.Route("0.0.0.0/0", "10.91.0.1"), way.Route("10.91.0.0/24")]
    found.way.wanted = list(pictures.ADDRESSES)
    found.path = Path("unicast", 2, "10.91.0.1", OWN)
    found.probes = {"echo": probe("silent"), "large": probe("silent", size=1500)}
    found.host = Host(
        {4: "br-dual", 5: "up0"},
        {"10.91.0.1": "br-dual", "198.51.100.1": "up0"},
        {"ipv4/ip_forward": "1"},
        [Entry("198.51.100.0/24", "unicast", 5, "", 0, 254)],
        [Bridge("br-dual", 4, ports=[Port("veth2", 3)])],
    )
    found.forward, found.back = Path("unicast", 5), Path("unicast", 4)
    found.stations = [
        Station(TAP, "tap2_kata", 6, pictures.NETNS),
        Station(PEER, "veth2", 3),
        Station(BRIDGE, "br-dual", 4),
        Station(OUT, "up0", 5),
    ]
    return found


Change = Callable[[Case], object]


def both(*changes: Change) -> Change:
    def change(found: Case) -> None:
        for one in changes:
            one(found)

    return change


def link(found: Case, **more: Any) -> None:
    found.guest["links"][0].update(more)


def point(found: Case, kind: str) -> way.Point:
    there = found.way.point(kind)
    assert there
    return there


def asked(found: Case, outcome: str, code: int = 0) -> None:
    found.wish, found.target = Wish("web"), ""
    one = {"server": "10.91.0.1", "name": "web", "outcome": outcome, "code": code, "error": 0}
    found.asked = [{**one, "addresses": []}]


def route(found: Case, entry: Entry) -> None:
    found.guest["routes"].append(entry._asdict())


def port(found: Case) -> Port:
    return found.host.bridges[0].ports[0]


def vlan(found: Case) -> None:
    found.host.bridges[0].filters_vlans = True
    found.host.bridges[0].own_pvid = 1
    port(found).pvid = 7


def stp(found: Case) -> None:
    found.host.bridges[0].has_stp = True


def dropped(found: Case, **more: Any) -> None:
    found.steps = [Step(1, "f", "c", "rule", 4, DROP), Step(1, "f", "c", "policy", 0, ACCEPT)]
    chain = {"family": "ip", "table": "f", "name": "c", "hook": "forward"}
    match = {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": OWN}
    expr = [{"match": match}, {"drop": None}]
    rule = {"family": "ip", "table": "f", "chain": "c", "handle": 4, "expr": expr}
    found.host.nft = [{"chain": chain}, {"rule": rule}]
    found.drops = list(rules.dropped(found))


def legacy(found: Case) -> None:
    saved = (
        "*filter\n:FORWARD ACCEPT [5:420]\n[0:0] -A FORWARD -j ACCEPT\n[{}:9] -A FORWARD -j DROP\n"
    )
    found.host.legacy_before, found.host.legacy_after = saved.format(1), saved.format(4)
    found.drops = list(rules.dropped(found))


def left(found: Case, source: str = OWN) -> None:
    """It was seen on its way, up to the uplink."""
    seen = Sighting("echo-request", True, source, WEB, marked=True)
    for key in (TAP, PEER, BRIDGE):
        found.seen[key] = [seen._replace(outgoing=False)]
    found.seen[OUT] = [seen]


def towards(found: Case, number: int, *listening: list[Any]) -> None:
    found.wish, found.target = Wish(OWN, number, towards=True), OWN
    found.guest["listening"] = list(listening)
    found.probes = {"echo": probe("answered"), "tcp": probe("refused", error=errno.ECONNREFUSED)}


def mtu(found: Case, kind: str) -> None:
    found.probes["echo"] = probe("answered")
    point(found, kind).mtu = 1300


def switched(found: Case) -> None:
    """To a machine of the same bridge, which does not answer any more."""
    found.target = found.wish.target = "10.91.0.200"
    found.path = Path("unicast", 2, "", OWN)
    seen = Sighting("echo-request", True, OWN, found.target, marked=True)
    for key in (TAP, PEER):
        found.seen[key] = [seen._replace(outgoing=False)]
    found.of_ports["veth9"] = [seen]


def refused_routers(found: Case) -> None:
    found.wish, found.target = Wish("fd97::2"), "fd97::2"
    found.path, found.guest["routes"] = Path("", error=101), []
    found.guest["links"][0]["settings"]["accept_ra"] = "0"
    found.probes = {"router": probe("answered", reporter="fe80::9")}


ROWS: list[tuple[str, Change, str, str, str]] = [
    ("dead", lambda c: setattr(c, "status", "dead"), "supervisor", "dead", "sandbox delete"),
    (
        "stopped QEMU",
        lambda c: c.processes.append(Process("QEMU", 77, "T")),
        *("QEMU", "stopped", "kill -CONT 77"),
    ),
    ("agent", lambda c: setattr(c, "guest_failure", "silence"), "agent", "silence", "delete"),
    ("no NIC", lambda c: setattr(c, "way", way.Way("", "")), "guest", "no NIC", ""),
    ("DNS silent", lambda c: asked(c, "silent"), "DNS", "does not answer", ""),
    ("DNS refuses", lambda c: asked(c, "answered", 5), "DNS", "refused", ""),
    ("no name", lambda c: asked(c, "answered", 3), "DNS", "no such name", ""),
    (
        "duplicate",
        lambda c: c.probes.update({f"duplicate {OWN}": probe("answered", macs=["02::1"])}),
        *("bridge", "duplicate address", ""),
    ),
    ("NIC down", lambda c: link(c, up=False), "guest", "down", "ip link set eth0 up"),
    ("no carrier", lambda c: link(c, running=False), "QEMU", "no carrier", ""),
    ("MAC", lambda c: link(c, mac="02:00:00:00:00:99"), "guest", "MAC address", "address 02:"),
    ("address", lambda c: link(c, addresses=[]), "guest", "10.91.0.3/24", "ip address add"),
    (
        "no route",
        both(
            lambda c: c.guest["routes"].clear(), lambda c: setattr(c, "path", Path("", error=101))
        ),
        *("guest", "no default route", "route replace default via 10.91.0.1"),
    ),
    (
        "blackhole",
        lambda c: route(c, Entry("198.51.100.0/24", "blackhole", 0, "", 0, 254)),
        *("guest", "blackhole", "route del blackhole 198.51.100.0/24"),
    ),
    (
        "wrong gateway",
        both(
            lambda c: c.guest["routes"][0].update(gateway="10.91.0.9"),
            lambda c: setattr(c, "path", Path("unicast", 2, "10.91.0.9", OWN)),
        ),
        *("guest", "wrong gateway", "via 10.91.0.1"),
    ),
    (
        "TAP down",
        lambda c: setattr(point(c, way.TAP), "state", way.DOWN),
        *("tap", "down", f"nsenter --net={pictures.NETNS} ip link set tap2_kata up"),
    ),
    (
        "filters",
        both(
            lambda c: setattr(point(c, way.FILTERS), "state", way.MISSING),
            lambda c: setattr(point(c, way.FILTERS), "filters", []),
        ),
        *("tc filters", "what tap2_kata receives", "mirred egress redirect dev eth0"),
    ),
    ("blocking", lambda c: setattr(port(c), "state", 4), "bridge", "blocking", "state 3"),
    (
        "STP",
        both(stp, lambda c: setattr(port(c), "state", 1)),
        *("bridge", "holds a new port back for 30 s", "type bridge stp_state 0"),
    ),
    ("VLAN", vlan, "bridge", "VLAN 7", "vid 1 pvid untagged"),
    (
        "not in its bridge",
        both(lambda c: c.stations.pop(2), lambda c: c.way.promised.update({"br-dual": "bridge"})),
        *("peer", "no port of the bridge br-dual", "ip link set veth2 master br-dual"),
    ),
    (
        "queue",
        lambda c: c.queues.append(("", "veth2", "tbf", 9)),
        *("peer", "stopped", "tc qdisc del dev veth2 root"),
    ),
    ("nft", dropped, "host firewall", f"ip saddr {OWN} drop", "nft delete rule ip f c handle 4"),
    ("legacy", legacy, "host firewall", "FORWARD", "iptables-legacy -t filter -D FORWARD 2"),
    (
        "ip_forward",
        lambda c: c.host.settings.update({"ipv4/ip_forward": "0"}),
        *("host", "ip_forward", "sysctl -w net.ipv4.ip_forward=1"),
    ),
    ("no host route", lambda c: c.host.routes.clear(), "host route", "no route", ""),
    (
        "rp_filter",
        both(
            lambda c: setattr(c, "back", Path("", error=errno.EXDEV)),
            lambda c: c.host.settings.update({"ipv4/conf/up0/rp_filter": "1"}),
        ),
        *("host", "rp_filter", "net.ipv4.conf.up0.rp_filter=2"),
    ),
    (
        "rp_filter elsewhere",
        lambda c: c.astray.update({"up1": [Sighting("arp-request", False, WEB, "198.51.100.1")]}),
        *("host", "sends in at up1", "net.ipv4.conf.up1.rp_filter=2"),
    ),
    (
        "duplicate MAC",
        lambda c: c.learned_before.append((pictures.MAC, "veth7")),
        *("bridge", "duplicate MAC address", ""),
    ),
    ("switched", switched, "target", "leaves it at veth9, and nothing comes back", ""),
    ("refused routers", refused_routers, "guest", "refuses the router", "eth0.accept_ra=2"),
    (
        "conntrack",
        both(
            lambda c: setattr(c.host, "connections", 100),
            lambda c: setattr(c.host, "most_connections", 100),
        ),
        *("host", "table of connections is full", "nf_conntrack_max=200"),
    ),
    ("MTU of the TAP", lambda c: mtu(c, way.TAP), "tap", "MTU", "tap2_kata mtu 1500"),
    ("MTU of the peer", lambda c: mtu(c, way.PEER), "peer", "MTU", "veth2 mtu 1500"),
    (
        "masquerade",
        both(lambda c: left(c), lambda c: setattr(c, "by_host", True)),
        *("NAT", "no masquerade", "-o up0 -j MASQUERADE"),
    ),
    ("nobody there", lambda c: left(c, "198.51.100.1"), "beyond", "nothing comes back", ""),
    ("nothing listens", lambda c: towards(c, 80), "guest", "nothing listens", ""),
    (
        "on loopback",
        lambda c: towards(c, 80, ["tcp", "0100007F", 80]),
        *("guest", "127.0.0.1 only", ""),
    ),
    (
        "neighbour",
        both(
            lambda c: c.seen.update({TAP: [Sighting("arp-request", False, OWN, "10.91.0.1")]}),
            lambda c: c.neighbours.append(
                {"address": "10.91.0.1", "mac": "", "device": 2, "state": "incomplete"}
            ),
        ),
        *("peer", "last seen at tap2_kata", ""),
    ),
    ("nothing known", lambda c: None, "tap", "last seen at guest", ""),
]


@pytest.mark.parametrize(
    ("change", "hop", "why", "remedy"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_fault_has_its_verdict(change: Change, hop: str, why: str, remedy: str) -> None:
    found = case()
    change(found)
    verdict = judging.judge(found)
    assert verdict
    assert verdict.hop == hop
    assert why in verdict.why
    assert remedy in "\n".join(verdict.remedy)
    assert verdict.remedy or verdict.advice or not remedy


def test_the_kernels_reasons_for_drops_are_printed() -> None:
    found = case()
    found.reasons = {"NETFILTER_DROP": 2, "IP_RPFILTER": 1}
    verdict = judging.judge(found)
    assert verdict
    assert verdict.evidence[-1].endswith("of any sender: IP_RPFILTER (1), NETFILTER_DROP (2)")


def test_what_arrives_has_none() -> None:
    found = case()
    found.probes = {"echo": probe("answered"), "large": probe("answered")}
    assert judging.judge(found) is None


def test_a_path_that_says_how_much_it_takes_is_well() -> None:
    found = case()
    told = probe("failed", error=errno.EMSGSIZE, origin="icmp", mtu=1400, size=1500)
    found.probes = {"echo": probe("answered"), "large": told}
    assert judging.judge(found) is None


def test_a_port_that_answers_is_enough_where_echo_is_filtered() -> None:
    found = case()
    found.wish = Wish(WEB, 80)
    found.probes["tcp"] = probe("answered")
    assert judging.judge(found) is None


def test_words_become_a_question() -> None:
    assert wish_of("192.0.2.1:80", None, False) == Wish("192.0.2.1", 80)
    assert wish_of("[fd00::1]:53", None, True) == Wish("fd00::1", 53, udp=True)
    assert wish_of("fd00::1", "host", False) == Wish("fd00::1", towards=True)
    assert split("example.org") == ("example.org", 0)
    assert split(":80") == ("", 80)
    for wrong in ("192.0.2.1:", "192.0.2.1:0", "[fd00::1]80", "example.org:http", "[::1]:"):
        with pytest.raises(UsageError):
            split(wrong)


def test_the_answer_is_printed_in_lines() -> None:
    found = case()
    link(found, up=False)
    told = lines(Explanation("box", "from the guest to x", False, judging.judge(found), ["tap"]))
    assert told[0] == "box: from the guest to x"
    assert any(line.startswith("  to mend   tapwright sandbox exec box") for line in told)


def frame(kind: int, packet: bytes) -> bytes:
    macs = pack_mac("02:00:00:00:00:01") + pack_mac("02:00:00:00:00:02")
    return macs + struct.pack("!H", kind) + packet


def ip(protocol: int, content: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 0, 0, 64, protocol, 0)
    return head + pack_address(OWN) + pack_address(WEB) + content


SYN = struct.pack("!HHIIBBHHH", 4000, 80, 0, 0, 0x50, 0x02, 0, 0, 0)


@pytest.mark.parametrize(
    ("packet", "what", "marked"),
    [
        (ip(1, struct.pack("!BBHHH", 8, 0, 0, 1, 1) + TOKEN), "echo-request", True),
        (ip(1, struct.pack("!BBHHH", 0, 0, 0, 1, 1) + b"else"), "echo-reply", False),
        (ip(6, SYN), "syn", False),
        (ip(17, struct.pack("!HHHH", 4000, 53, 16, 0) + TOKEN), "udp", True),
        (ip(1, struct.pack("!BBHI", 3, 1, 0, 0) + ip(6, SYN)), "icmp-error", False),
    ],
)
def test_a_frame_is_read(packet: bytes, what: str, marked: bool) -> None:
    seen = sightings.read(frame(0x0800, packet), True, TOKEN)
    assert seen
    assert (seen.what, seen.marked, seen.source, seen.destination) == (what, marked, OWN, WEB)


def test_a_torn_frame_is_no_other_mistake() -> None:
    whole = frame(0x0800, ip(1, struct.pack("!BBHI", 3, 1, 0, 0) + ip(6, SYN)))
    for length in range(len(whole)):
        with suppress(struct.error, IndexError, ValueError):
            sightings.read(whole[:length], False, TOKEN)
