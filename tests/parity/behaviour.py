"""What works on a network, and how: a program in a namespace and one in its guest try the same,
with the same partners. The answers are compared field by field."""

import errno
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.namespaces import Namespace
from tests.parity import station
from tests.parity.networked import BRIDGE, ip

Json = Any

PROGRAM = ["python3", "-I", "-S", "-c", Path(station.__file__).read_text()]
COLUMNS = ("reaching", "being reached", "groups", "sizes", "errors", "discovery")
PORT, CLOSED, PUBLISHED = 7777, 7, 8080
GROUPS = {4: "239.7.7.7", 6: "ff02::7777"}
HOST = {4: "192.0.2.1", 6: "fd02::1"}
NODE, ROUTER = {4: "10.81.0.2", 6: "fd81::2"}, {4: "10.80.0.2", 6: "fd80::2"}
PREFIX = "fd7a::"
_LONG, _FIRST, _SILENT = 60.0, 2.0, 0.3
_BULK = 300_000

Found = dict[str, Json]

_EACH_ERROR = {"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0"}
_NO_WAIT = {f"ipv6/conf/{scope}/accept_dad": "0" for scope in ("all", "default")}
_SETTINGS = {
    "ipv4/conf/all/forwarding": "1",
    "ipv6/conf/all/forwarding": "1",
    **_EACH_ERROR,
    **_NO_WAIT,
}


class Station:
    """A sender and receiver: `station` as a process."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        # A reader of its own would only have to be waited for.
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, what: str, **arguments: Json) -> Json:
        self.begin(what, **arguments)
        return self.end()

    def begin(self, what: str, **arguments: Json) -> None:
        """Without waiting for the answer, which is for `end`."""
        assert self._process.stdin
        print(json.dumps([what, arguments]), file=self._process.stdin, flush=True)

    def end(self) -> Json:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"the station has ended: {self._process.poll()}"
        answer = json.loads(line)
        if isinstance(answer, dict):
            assert "failed" not in answer, answer
        return answer

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def running(command: Sequence[str]) -> Iterator[Station]:
    """A station that is started by the command."""
    one = Station(command)
    try:
        yield one
    finally:
        one.close()


def at(netns: str = "") -> AbstractContextManager[Station]:
    """One in the namespace of that name, or in this one."""
    return running([*(["ip", "netns", "exec", netns] if netns else []), *PROGRAM])


@dataclass
class Party:
    """Who takes part: the station, the addresses by version of IP, the interface, its MAC."""

    name: str
    station: Station
    addresses: dict[int, str] = field(default_factory=dict)
    device: str = ""
    mac: str = ""

    def ask(self, what: str, **arguments: Json) -> Json:
        return self.station.ask(what, **arguments)


@dataclass
class Others:
    """The host, a neighbour in its bridge, and a node behind a router, to which the last link has
    an MTU of 1300."""

    host: Party
    neighbour: Party
    node: Party


@contextmanager
def others() -> Iterator[Others]:
    """The host's side must be there. The host has the first addresses of its bridge."""
    with ExitStack() as stack:
        for line in (
            f"address add 10.70.0.1/24 dev {BRIDGE}",
            f"address add fd70::1/64 dev {BRIDGE} nodad",
            f"address add {HOST[4]}/32 dev lo",
            f"address add {HOST[6]}/128 dev lo",
        ):
            ip(line)
            stack.callback(ip, line.replace(" add ", " delete ").removesuffix(" nodad"))
        for path, value in _SETTINGS.items():
            file = Path("/proc/sys/net", path)
            stack.callback(file.write_text, file.read_text())
            file.write_text(value)
        places = {
            name: stack.enter_context(_quiet(name)) for name in ("neighbour", "router", "node")
        }
        neighbour, router, node = places.values()
        ip(f"link add o-nb type veth peer name eth0 netns {neighbour.name}")
        ip(f"link set o-nb master {BRIDGE} up")
        stack.callback(ip, "link delete o-nb")
        _configure(
            neighbour, "eth0", {4: "10.70.0.2", 6: "fd70::2"}, {4: "10.70.0.1", 6: "fd70::1"}
        )
        ip(f"link add o-router type veth peer name eth0 netns {router.name}")
        stack.callback(ip, "link delete o-router")
        ip("address add 10.80.0.1/24 dev o-router")
        ip("address add fd80::1/64 dev o-router nodad")
        ip("link set o-router up")
        _configure(router, "eth0", ROUTER, {4: "10.80.0.1", 6: "fd80::1"})
        router.ip(f"link add eth1 mtu 1300 type veth peer name eth0 mtu 1300 netns {node.name}")
        _configure(router, "eth1", {4: "10.81.0.1", 6: "fd81::1"}, {})
        _configure(node, "eth0", NODE, {4: "10.81.0.1", 6: "fd81::1"})
        for line in ("unreachable 10.99.0.0/16", "prohibit 10.98.0.0/16"):
            router.ip(f"route add {line}")
        router.ip("-6 route add unreachable fd99::/32")
        router.ip("-6 route add prohibit fd98::/32")
        for line in ("10.81.0.0/24", "10.99.0.0/16", "10.98.0.0/16"):
            ip(f"route add {line} via {ROUTER[4]}")
        for line in ("fd81::/64", "fd99::/32", "fd98::/32"):
            ip(f"route add {line} via {ROUTER[6]}")
        yield Others(
            Party("host", stack.enter_context(at()), dict(HOST)),
            _party(stack, "neighbour", neighbour),
            _party(stack, "node", node),
        )


@contextmanager
def _quiet(name: str) -> Iterator[Namespace]:
    """A namespace that forwards, and whose addresses are there at once."""
    full = f"twtest-{name}-{os.getpid()}"
    ip(f"netns add {full}")
    try:
        found = Namespace(full)
        found.ip("link set lo up")
        settings = _SETTINGS if name == "router" else _EACH_ERROR
        settings = {**settings, **_NO_WAIT, "ipv6/conf/default/accept_ra": "0"}
        words = [f"{path}={value}" for path, value in settings.items()]
        words = [f"net/{word}" for word in words]
        subprocess.run(["ip", "netns", "exec", full, "sysctl", "-qw", *words], check=True)
        yield found
    finally:
        ip(f"netns delete {full}")


def _configure(
    place: Namespace, device: str, addresses: dict[int, str], gateways: dict[int, str]
) -> None:
    place.ip(f"address add {addresses[4]}/24 dev {device}")
    place.ip(f"address add {addresses[6]}/64 dev {device} nodad")
    place.ip(f"link set {device} up")
    for gateway in gateways.values():
        place.ip(f"route add default via {gateway}")


def _party(stack: ExitStack, name: str, place: Namespace) -> Party:
    one = stack.enter_context(at(place.name))
    return party(name, one, place.name, "eth0")


def party(name: str, one: Station, netns: str, device: str) -> Party:
    """Who lives in a namespace of that name, with the first addresses of an interface there."""
    (link,) = json.loads(ip(f"-n {netns} -json address show dev {device}"))
    found: dict[int, str] = {}
    for address in link["addr_info"]:
        if address["scope"] == "global":
            found.setdefault(4 if address["family"] == "inet" else 6, address["local"])
    of_ipv6 = [a["local"] for a in link["addr_info"] if a["family"] == "inet6"]
    assert one.ask("settled", device=device, addresses=of_ipv6, seconds=_LONG), of_ipv6
    return Party(name, one, found, device, link["address"])


class Trial:
    """What is tried on one network by `own`, and found: by COLUMN: what. `expected` is what has
    been found by another before, so that what does not come is not waited for long; nor is that
    whose name begins with one of `silent`."""

    def __init__(
        self,
        own: Party,
        others: Others,
        gateways: dict[int, str],
        expected: Found,
        silent: tuple[str, ...] = (),
    ) -> None:
        self.own, self.others = own, others
        self.gateways = gateways
        self.found: Found = {}
        self._expected = expected
        self._silent = silent
        self._names: dict[str, str] = {}
        for one in (own, others.host, others.neighbour, others.node):
            for version, address in one.addresses.items():
                self._names[address] = f"{one.name}'s IPv{version}"
            if one.mac:
                self._names[one.mac] = f"{one.name}'s MAC"
                self._names[_link_local(one.mac)] = f"{one.name}'s link-local address"
        for version, address in gateways.items():
            self._names[address] = f"gateway's IPv{version}"

    def peers(self, version: int) -> Iterator[tuple[str, Party, str]]:
        """(name, station, address)"""
        if version in self.gateways:
            yield "gateway", self.others.host, self.gateways[version]
        for one in (self.others.neighbour, self.others.host, self.others.node):
            if version in one.addresses:
                yield one.name, one, one.addresses[version]

    def name(self, text: str, name: str) -> None:
        """Say `name` where an address or the like is found."""
        self._names[text] = name

    def note(
        self, column: str, what: str, ask: Callable[[float], Json], silent: bool = False
    ) -> None:
        """Ask, with the seconds to wait; `silent` where there will be no answer."""
        key = f"{column}: {what}"
        if key in self._expected:
            silent = is_silent(self._expected[key])
            seconds = _SILENT if silent else _LONG
        else:
            silent = silent or key.startswith(self._silent)
            seconds = _SILENT if silent else _FIRST
        self.found[key] = self._named(ask(seconds))

    def _named(self, answer: Json) -> Json:
        if isinstance(answer, dict):
            return {key: self._named(one) for key, one in answer.items() if key != "port"}
        if isinstance(answer, list):
            return [self._named(one) for one in answer]
        return self._names.get(answer, answer) if isinstance(answer, str) else answer


def is_silent(answer: Json) -> bool:
    if isinstance(answer, dict):
        return any(map(is_silent, answer.values()))
    return answer is None


def _link_local(mac: str) -> str:
    """The address that a kernel makes of it (RFC 4291, appendix A)."""
    first, *rest = bytes.fromhex(mac.replace(":", ""))
    packed = bytes((first ^ 2, *rest[:2], 0xFF, 0xFE, *rest[2:]))
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex("fe80") + bytes(6) + packed)


Trying = Callable[[Trial], None]


def reaching(trial: Trial) -> None:
    """All that is sent to others, and what comes back."""
    own = trial.own
    for version in (4, 6):
        own.ask("udp", name="out", version=version)
        for name, peer, address in trial.peers(version):
            peer.ask("udp", name="in", version=version, port=PORT)
            peer.ask("listen", name="tcp", version=version, port=PORT)

            def ping(seconds: float, to: str = address) -> Json:
                return own.ask("ping", to=to, seconds=seconds)

            def udp(seconds: float, peer: Party = peer, to: str = address) -> Json:
                return _there_and_back(own, peer, to, seconds)

            def tcp(seconds: float, peer: Party = peer, to: str = address) -> Json:
                return _connected(own, peer, to, PORT, seconds)

            def source(_: float, to: str = address) -> Json:
                return own.ask("source", to=to)

            trial.note("reaching", f"{name} by ICMP, IPv{version}", ping)
            trial.note("reaching", f"source to {name}, IPv{version}", source)
            if name != "gateway":  # that is the host
                trial.note("reaching", f"{name} by UDP, IPv{version}", udp)
                trial.note("reaching", f"{name} by TCP, IPv{version}", tcp)
        if version in own.addresses:
            own.ask("udp", name="self", version=version, port=PORT)
            to = own.addresses[version]

            def itself(seconds: float, to: str = to) -> Json:
                own.ask("send", name="out", to=to, port=PORT)
                return own.ask("receive", name="self", seconds=seconds)

            trial.note("reaching", f"itself by UDP, IPv{version}", itself)
            own.ask("close", name="self")


def _there_and_back(one: Party, other: Party, to: str, seconds: float, size: int = 16) -> Json:
    """A datagram, and an answer."""
    sent = one.ask("send", name="out", to=to, port=PORT, size=size)
    if sent != "sent":
        return sent
    there = other.ask("receive", name="in", seconds=seconds)
    if not there or "from" not in there:
        return {"there": there}
    other.ask("send", name="in", to=there["from"], port=there["port"], size=size)
    return {"there": there, "back": one.ask("receive", name="out", seconds=seconds)}


def _connected(
    one: Party, other: Party, to: str, port: int, seconds: float, there: int = 1, back: int = 1
) -> Json:
    """A connection that carries that many bytes."""
    if (address := one.ask("source", to=to)) in errno.errorcode.values():
        return address
    other.station.begin("accept", name="tcp", seconds=seconds, size=back)
    here = one.ask("connect", to=to, port=port, seconds=seconds, size=there)
    return {"here": here, "there": other.station.end()}


def being_reached(trial: Trial) -> None:
    own = trial.own
    for version, to in own.addresses.items():
        own.ask("udp", name="in", version=version, port=PORT)
        own.ask("listen", name="tcp", version=version, port=PORT)
        for name, peer, _ in trial.peers(version):
            if name == "gateway":
                continue  # that is the host, which chooses
            peer.ask("udp", name="out", version=version)

            def ping(seconds: float, peer: Party = peer, to: str = to) -> Json:
                return peer.ask("ping", to=to, seconds=seconds)

            def udp(seconds: float, peer: Party = peer, to: str = to) -> Json:
                return _there_and_back(peer, own, to, seconds)

            def tcp(seconds: float, peer: Party = peer, to: str = to) -> Json:
                return _connected(peer, own, to, PORT, seconds)

            def closed(seconds: float, peer: Party = peer, to: str = to) -> Json:
                return peer.ask("connect", to=to, port=CLOSED, seconds=seconds)

            def closed_udp(seconds: float, peer: Party = peer, to: str = to) -> Json:
                peer.ask("send", name="out", to=to, port=CLOSED)
                return peer.ask("receive", name="out", seconds=seconds)

            trial.note("being reached", f"by ICMP from the {name}, IPv{version}", ping)
            trial.note("being reached", f"by UDP from the {name}, IPv{version}", udp)
            trial.note("being reached", f"by TCP from the {name}, IPv{version}", tcp)
            if name != "neighbour":
                continue
            trial.note("being reached", f"a closed TCP port from the {name}, IPv{version}", closed)
            trial.note(
                "being reached", f"a closed UDP port from the {name}, IPv{version}", closed_udp
            )


def published(trial: Trial) -> None:
    """The port of the host that leads to one of its own: from outside, and from itself."""
    own = trial.own
    for version in own.addresses:
        own.ask("listen", name="tcp", version=version, port=PORT)
        for peer in (trial.others.neighbour, trial.others.host, trial.others.node):

            def tcp(seconds: float, peer: Party = peer, to: str = HOST[version]) -> Json:
                return _connected(peer, own, to, PUBLISHED, seconds)

            trial.note(
                "being reached", f"its published port from the {peer.name}, IPv{version}", tcp
            )

        def hairpin(seconds: float, to: str = HOST[version]) -> Json:
            # Who accepts is who connects, so the connection alone is looked at.
            return own.ask("connect_to_itself", to=to, port=PUBLISHED, name="tcp", seconds=seconds)

        trial.note("being reached", f"its published port from itself, IPv{version}", hairpin)


def groups(trial: Trial) -> None:
    own, neighbour = trial.own, trial.others.neighbour
    for version, group in GROUPS.items():
        if version not in own.addresses:
            continue
        for one, other, told in (
            (own, neighbour, "sending to a group"),
            (neighbour, own, "hearing a group"),
        ):
            one.ask("udp", name="out", version=version)
            other.ask("udp", name="in", version=version, port=PORT)
            other.ask("join", name="in", group=group, device=other.device)

            def send(
                seconds: float, one: Party = one, other: Party = other, group: str = group
            ) -> Json:
                device = one.device if ":" in group else ""
                sent = one.ask("send", name="out", to=group, port=PORT, device=device)
                return _heard(sent, other, seconds)

            trial.note("groups", f"{told}, IPv{version}", send)
            other.ask("udp", name="in", version=version, port=PORT)
            trial.note(
                "groups", f"{told} without having joined it, IPv{version}", send, silent=True
            )
    own.ask("listen_for_frames", name="frames", device=own.device)

    def others(seconds: float) -> Json:
        neighbour.ask("send_frame", device=neighbour.device, to="020000000088")
        return own.ask("hear_frame", name="frames", seconds=seconds)

    trial.note("groups", "hearing frames for another station", others)
    if 4 not in own.addresses:
        return
    for to in ("255.255.255.255", own.addresses[4].rpartition(".")[0] + ".255"):
        trial.name(to, "broadcast")
        for one, other, told in ((own, neighbour, "sending"), (neighbour, own, "hearing")):
            one.ask("udp", name="out", version=4, device=one.device)
            other.ask("udp", name="in", version=4, port=PORT)

            def broadcast(
                seconds: float, one: Party = one, other: Party = other, to: str = to
            ) -> Json:
                sent = one.ask("send", name="out", to=to, port=PORT)
                return _heard(sent, other, seconds)

            kind = "limited" if to == "255.255.255.255" else "of the subnet"
            trial.note("groups", f"{told} a broadcast, {kind}", broadcast)
    trial.note(
        "groups",
        "answering to ICMP for all",
        lambda seconds: neighbour.ask("ping", to="224.0.0.1", seconds=seconds),
        silent=True,
    )


def _heard(sent: str, other: Party, seconds: float) -> Json:
    """What has become of something that was sent, in the word `sent`."""
    if sent != "sent":
        return sent
    return {"there": other.ask("receive", name="in", seconds=seconds)}


def sizes(trial: Trial) -> None:
    own = trial.own
    for version in own.addresses:
        own.ask("udp", name="out", version=version)
        own.ask("udp", name="in", version=version, port=PORT)
        own.ask("listen", name="tcp", version=version, port=PORT)

        def path(seconds: float, to: str = NODE[version]) -> Json:
            return own.ask("path_mtu", to=to, size=1400, seconds=seconds)

        trial.note("sizes", f"the path's MTU to the node, IPv{version}", path)
        for peer in (trial.others.neighbour, trial.others.node):
            if version not in peer.addresses:
                continue
            to = peer.addresses[version]
            peer.ask("udp", name="in", version=version, port=PORT)
            peer.ask("udp", name="out", version=version)
            peer.ask("listen", name="tcp", version=version, port=PORT)

            def fragments(seconds: float, peer: Party = peer, to: str = to) -> Json:
                return _there_and_back(own, peer, to, seconds, size=5000)

            def bulk(seconds: float, peer: Party = peer, to: str = to) -> Json:
                return _connected(own, peer, to, PORT, seconds, there=_BULK)

            def fetched(seconds: float, peer: Party = peer, to: str = to) -> Json:
                return _connected(own, peer, to, PORT, seconds, back=_BULK)

            def asked(seconds: float, peer: Party = peer, to: str = own.addresses[version]) -> Json:
                return _connected(peer, own, to, PORT, seconds, there=_BULK, back=_BULK // 10)

            where = f"{peer.name}, IPv{version}"
            trial.note("sizes", f"fragments to the {where}, and back", fragments)
            trial.note("sizes", f"much by TCP to the {where}", bulk)
            trial.note("sizes", f"much by TCP from the {where}", fetched)
            trial.note("sizes", f"much by a connection of the {where}", asked)


def packets(trial: Trial) -> None:
    """Of sizes about the MTU, that may not be fragmented."""
    own, neighbour = trial.own, trial.others.neighbour
    for version, to in own.addresses.items():
        most = {4: 1472, 6: 1452}[version]
        for size in (1200, most, most + 1, 8900):

            def whole(
                seconds: float, size: int = size, to: str = neighbour.addresses[version]
            ) -> Json:
                return own.ask("ping", to=to, seconds=seconds, size=size - 8, whole=True)

            def heard(seconds: float, size: int = size, to: str = to) -> Json:
                return neighbour.ask("ping", to=to, seconds=seconds, size=size - 8)

            trial.note("sizes", f"{size} bytes whole by ICMP, IPv{version}", whole)
            trial.note("sizes", f"{size} bytes by ICMP from the neighbour, IPv{version}", heard)


def errors(trial: Trial) -> None:
    own, node = trial.own, trial.others.node
    far = {
        4: {"prohibited": "10.98.0.1"},
        6: {"unreachable": "fd99::1", "prohibited": "fd98::1"},
    }
    for version in own.addresses:
        own.ask("udp", name="out", version=version)
        for hops in (1, 2, 3):

            def exceeded(seconds: float, hops: int = hops, version: int = version) -> Json:
                return own.ask("ping", to=node.addresses[version], seconds=seconds, ttl=hops)

            trial.note("errors", f"{hops} hops towards the node, IPv{version}", exceeded)
        for name, _, address in trial.peers(version):
            if name == "host":
                continue

            def closed(seconds: float, to: str = address) -> Json:
                return own.ask("connect", to=to, port=CLOSED, seconds=seconds)

            def closed_udp(seconds: float, to: str = address) -> Json:
                own.ask("send", name="out", to=to, port=CLOSED)
                return own.ask("receive", name="out", seconds=seconds)

            trial.note("errors", f"a closed TCP port of the {name}, IPv{version}", closed)
            trial.note("errors", f"a closed UDP port of the {name}, IPv{version}", closed_udp)
        for what, to in far[version].items():

            def refused(seconds: float, to: str = to, version: int = version) -> Json:
                if version == 4:  # the kernel of a router tells nobody in the first second
                    return own.ask("connect", to=to, port=PORT, seconds=seconds)
                own.ask("send", name="out", to=to, port=PORT)
                return own.ask("receive", name="out", seconds=seconds)

            trial.note("errors", f"{what} by a router, IPv{version}", refused)


def absent(trial: Trial) -> None:
    """A neighbour that is not there, and what no route, or none for traffic, leads to."""
    own = trial.own
    for to in (
        "10.70.0.99",
        "fd70::99",
        "10.100.0.1",
        "10.101.0.1",
        "10.102.0.1",
        "10.103.0.1",
        "fd00:100::1",
        "fd00:101::1",
        "fd00:102::1",
        "172.31.0.1",
        "2001:db8::1",
    ):

        def refused(seconds: float, to: str = to) -> Json:
            return own.ask("connect", to=to, port=PORT, seconds=max(seconds, _LONG))

        def source(_: float, to: str = to) -> Json:
            return own.ask("source", to=to)

        trial.note("errors", f"{to} by TCP", refused)
        trial.note("errors", f"source to {to}", source)


def neighbourhood(trial: Trial) -> None:
    """Who answers to ARP and neighbour solicitations, and for what."""
    own, neighbour = trial.own, trial.others.neighbour
    for to in (own.addresses.get(4), "10.70.0.88", "10.88.0.1"):
        if to and 4 in neighbour.addresses:

            def arp(seconds: float, to: str = to) -> Json:
                sender = neighbour.addresses[4]
                return neighbour.ask(
                    "arp", device=neighbour.device, sender=sender, address=to, seconds=seconds
                )

            told = "its address" if to == own.addresses.get(4) else to
            trial.note("discovery", f"ARP for {told}", arp, silent=told != "its address")
    for to in (own.addresses.get(6), "fd70::88"):
        if to and 6 in neighbour.addresses:

            def solicit(seconds: float, to: str = to) -> Json:
                sender = neighbour.addresses[6]
                return neighbour.ask(
                    "solicit", device=neighbour.device, sender=sender, address=to, seconds=seconds
                )

            told = "its address" if to == own.addresses.get(6) else to
            trial.note("discovery", f"solicitation for {told}", solicit, silent=to == "fd70::88")


def advertised(trial: Trial) -> None:
    """A router advertisement of the neighbour's."""
    own, neighbour = trial.own, trial.others.neighbour

    def advertise(seconds: float) -> Json:
        neighbour.ask("advertise", device=neighbour.device, prefix=PREFIX, mtu=1400)
        return own.ask("autoconfigured", device=own.device, prefix=PREFIX, seconds=seconds)

    trial.note("discovery", "a router advertisement", advertise)


def leased(trial: Trial) -> None:
    own, neighbour = trial.own, trial.others.neighbour
    neighbour.ask("udp", name="dhcp", version=4, port=67, device=neighbour.device)

    def discover(seconds: float) -> Json:
        neighbour.station.begin("offer", name="dhcp", address="10.70.0.55", seconds=seconds)
        here = own.ask("discover", device=own.device, seconds=seconds)
        return {"here": here, "there": neighbour.station.end()}

    trial.note("discovery", "DHCP", discover)
    neighbour.ask("close", name="dhcp")


def forwarding(trial: Trial) -> None:
    """The neighbour sends to the host by way of the program under test."""
    own, neighbour, host = trial.own, trial.others.neighbour, trial.others.host
    for version in own.addresses:
        to = {4: "192.0.2.2", 6: "fd02::2"}[version]
        length = {4: 32, 6: 128}[version]
        place = f"-n twtest-neighbour-{os.getpid()} -{version}"
        ip(f"address add {to}/{length} dev lo")
        ip(f"{place} route replace {to}/{length} via {own.addresses[version]}")
        try:
            host.ask("udp", name="in", version=version, port=PORT)
            neighbour.ask("udp", name="out", version=version)

            def forwarded(seconds: float, to: str = to) -> Json:
                return _there_and_back(neighbour, host, to, seconds)

            trial.note("reaching", f"what it forwards, IPv{version}", forwarded, silent=True)
        finally:
            ip(f"{place} route delete {to}/{length}")
            ip(f"{place} route flush cache")
            ip(f"address delete {to}/{length} dev lo")


def differences(here: Found, there: Found) -> dict[str, list[str]]:
    """In words, by column."""
    found: dict[str, list[str]] = {}
    for key in here:
        column, _, _ = key.partition(":")
        told = found.setdefault(column, [])
        if here[key] != there.get(key):
            told.append(f"{key}: {_text(here[key])}, in the guest {_text(there.get(key))}")
    return found


def _text(answer: Json) -> str:
    return re.sub(r'["{}]', "", json.dumps(answer))
