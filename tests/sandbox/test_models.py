"""Each internetworking model with each kind of interface that the kernel has: frames both ways, all
that an interface carries, and everything as before in the end."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from socket import AF_INET6
from typing import Any

import pytest

from tapwright.linux import netns, tuntap
from tests.host import answers_ping, eventually
from tests.namespaces import Namespace, State, give_ip, guest_ip, namespace
from tests.sandbox.test_kata_network import Kata
from tests.sandboxes import Tapwright, ended, pids_of

SANDBOX = "models"
PAYLOAD = os.urandom(1 << 18)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
HOST_PORT, GUEST_PORT = 8099, 8080
GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"
STATIC_MAC = "02:00:00:00:00:77"

Json = Any
host = Namespace()

Make = Callable[[Namespace, "Kind"], None]


@dataclass(frozen=True)
class Kind:
    """An interface called `inside` in the namespace, and `outside` (or a bridge) on the host. Both
    have addresses of the subnet `number`, 1 on the host and 2 in the namespace."""

    name: str
    number: int
    mtu: int
    make: Make = field(compare=False)
    refused_by: dict[str, str] = field(default_factory=dict, compare=False)
    """The models that can't, and what they say to it."""

    @property
    def inside(self) -> str:
        return f"in{self.number}"

    @property
    def outside(self) -> str:
        return f"out{self.number}"

    def addresses(self, last: int) -> tuple[str, str]:
        return f"10.81.{self.number}.{last}", f"fd81:{self.number}::{last}"


def address_of_host(kind: Kind, device: str = "") -> None:
    four, six = kind.addresses(1)
    host.ip(f"address add {four}/24 dev {device or kind.outside}")
    host.ip(f"address add {six}/64 dev {device or kind.outside} nodad")
    host.ip(f"link set {device or kind.outside} up")


def address_inside(ns: Namespace, kind: Kind) -> None:
    four, six = kind.addresses(2)
    ns.ip(f"address add {four}/24 broadcast + dev {kind.inside}")
    ns.ip(f"address add {six}/64 dev {kind.inside} nodad")
    ns.ip(f"link set {kind.inside} up")


def pair(ns: Namespace, kind: Kind, inside: str = "") -> None:
    """A veth from the host into the namespace."""
    host.ip(
        f"link add {kind.outside} mtu {kind.mtu} type veth "
        f"peer name {inside or kind.inside} mtu {kind.mtu} netns {ns.name}"
    )


def lower(kind: Kind) -> str:
    """A veth of the host's whose other end, `outside`, is the host's too; up."""
    name = f"low{kind.number}"
    host.ip(f"link add {kind.outside} mtu {kind.mtu} type veth peer name {name} mtu {kind.mtu}")
    host.ip(f"link set {name} up")
    address_of_host(kind)
    return name


def veth(ns: Namespace, kind: Kind) -> None:
    pair(ns, kind)
    address_of_host(kind)
    address_inside(ns, kind)


def bridged_veth(ns: Namespace, kind: Kind) -> None:
    """As plugins make it, with much that an interface can have."""
    pair(ns, kind)
    host.ip(f"link add brmod{kind.number} type bridge")
    host.ip(f"link set {kind.outside} master brmod{kind.number} up")
    address_of_host(kind, f"brmod{kind.number}")
    # One of them, `home`, is the source that IPv6 prefers.
    host.ip(f"route add fd82::/16 dev brmod{kind.number}")
    address_inside(ns, kind)
    four, six = kind.addresses(1)
    for command in (
        f"address add 10.81.{kind.number}.3/24 dev {kind.inside}",
        f"address add 10.182.0.9/32 dev {kind.inside}",
        f"address add 10.182.1.1 peer 10.182.1.2/32 dev {kind.inside}",
        f"address add fd82::9/128 dev {kind.inside} nodad",
        f"address add fd82:1::9/64 dev {kind.inside} nodad noprefixroute",
        f"address add fd82:2::9/64 dev {kind.inside} nodad home",
        f"route add 10.183.0.0/16 via {four} dev {kind.inside} src 10.81.{kind.number}.3",
        f"route add 10.184.0.0/16 dev {kind.inside} scope link metric 9",
        f"route add 10.185.0.0/16 via {four} dev {kind.inside} proto static mtu 1300",
        f"route add 10.186.0.0/16 via {four} dev {kind.inside} table 77",
        f"route add 10.187.0.0/16 via 203.0.113.1 dev {kind.inside} onlink",
        f"route add fd83::/48 via {six} dev {kind.inside} metric 5",
        f"route add fd82:1::/64 dev {kind.inside}",
        f"neighbour add 10.81.{kind.number}.77 lladdr {STATIC_MAC} dev {kind.inside} nud permanent",
        f"neighbour add fd81:{kind.number}::77 lladdr {STATIC_MAC} dev {kind.inside} nud permanent",
    ):
        ns.ip(command)


def calico(ns: Namespace, kind: Kind) -> None:
    """A /32 address, and a gateway that only an on-link route and a static neighbour lead to."""
    pair(ns, kind)
    four, six = kind.addresses(2)
    for command in (
        f"link set {kind.outside} address {GATEWAY_MAC} addrgenmode none up",
        f"address add fe80::ecee:eeff:feee:eeee/64 dev {kind.outside} nodad",
        f"route add {four}/32 dev {kind.outside} scope link",
        f"-6 route add {six}/128 dev {kind.outside}",
        f"address add {kind.addresses(1)[0]}/32 dev lo",
        f"address add {kind.addresses(1)[1]}/128 dev lo nodad",
    ):
        host.ip(command)
    for command in (
        f"address add {four}/32 dev {kind.inside}",
        f"address add {six}/128 dev {kind.inside} nodad",
        f"link set {kind.inside} up",
        f"route add 169.254.1.1 dev {kind.inside} scope link",
        f"neighbour add 169.254.1.1 lladdr {GATEWAY_MAC} dev {kind.inside} nud permanent",
        f"route add default via 169.254.1.1 dev {kind.inside}",
        f"-6 route add default via fe80::ecee:eeff:feee:eeee dev {kind.inside}",
    ):
        ns.ip(command)


def flannel(ns: Namespace, kind: Kind) -> None:
    """A small MTU, and routes to the networks of all nodes through the bridge."""
    bridged = f"brmod{kind.number}"
    pair(ns, kind)
    host.ip(f"link add {bridged} type bridge")
    host.ip(f"link set {kind.outside} master {bridged} up")
    address_of_host(kind, bridged)
    host.ip("address add 10.244.2.1/32 dev lo")
    address_inside(ns, kind)
    ns.ip(f"route add 10.244.0.0/16 via {kind.addresses(1)[0]} dev {kind.inside}")


def macvlan(mode: str) -> Make:
    def make(ns: Namespace, kind: Kind) -> None:
        on = f"link add link {lower(kind)} name {kind.inside} mtu {kind.mtu} netns {ns.name}"
        host.ip(f"{on} type macvlan mode {mode}")
        address_inside(ns, kind)
        four, _ = kind.addresses(77)
        ns.ip(f"neighbour add {four} lladdr {STATIC_MAC} dev {kind.inside} nud permanent")

    return make


def macvtap(ns: Namespace, kind: Kind) -> None:
    on = f"link add link {lower(kind)} name {kind.inside} mtu {kind.mtu} netns {ns.name}"
    host.ip(f"{on} type macvtap mode bridge")
    address_inside(ns, kind)


def tap(ns: Namespace, kind: Kind) -> None:
    """Joined by somebody's filters with the uplink of a bridge, whose ports are left alone."""
    uplink(ns, kind, f"up{kind.number}")
    host.ip(f"tuntap add dev {kind.inside} mode tap")
    host.ip(f"link set {kind.inside} mtu {kind.mtu} netns {ns.name}")
    address_inside(ns, kind)
    # What the kernel gives it at its first carrier, a link-local address, stays.
    with netns.entered(ns.path):
        fd = tuntap.attach(kind.inside, tuntap.Tap(False, False, True, False), 1)[0]
        assert eventually(lambda: "state UP" in ns.ip(f"link show {kind.inside}"))
        os.close(fd)
    assert eventually(lambda: "state DOWN" in ns.ip(f"link show {kind.inside}"))
    ns.join(kind.inside, f"up{kind.number}")


_CABLE = """
import os, select, sys
from tapwright.linux import netns, tuntap
path, inside, outside = sys.argv[1:]
with netns.entered(path):
    here = tuntap.create(inside)
there = tuntap.create(outside)
print(flush=True)
while True:
    for fd in select.select([here, there], [], [])[0]:
        frame = os.read(fd, 1 << 16)
        try:
            os.write(there if fd == here else here, frame)
        except OSError:  # the other one is down
            pass
"""
programs: list[subprocess.Popen[bytes]] = []


def program(ns: Namespace, kind: Kind) -> None:
    """A TAP that a program holds, which is the network behind it, as slirp4netns and pasta are:
    here one that passes frames on to a TAP on the host."""
    words = [sys.executable, "-c", _CABLE, ns.path, kind.inside, kind.outside]
    programs.append(subprocess.Popen(words, stdout=subprocess.PIPE))
    assert (stdout := programs[-1].stdout)
    assert stdout.readline() == b"\n"
    for place, name in ((ns, kind.inside), (host, kind.outside)):
        place.ip(f"link set {name} mtu {kind.mtu}")
    address_of_host(kind)
    address_inside(ns, kind)


def bridge_port(ns: Namespace, kind: Kind) -> None:
    uplink(ns, kind, kind.inside)


def uplink(ns: Namespace, kind: Kind, port: str) -> None:
    pair(ns, kind, port)
    address_of_host(kind)
    ns.ip(f"link add brmod{kind.number} type bridge")
    ns.ip(f"link set {port} master brmod{kind.number} up")
    ns.ip(f"link set brmod{kind.number} up")


def vlan(ns: Namespace, kind: Kind) -> None:
    below = lower(kind)
    host.ip(f"link add link {below} name {kind.inside} netns {ns.name} type vlan id 5")
    host.ip(f"address flush dev {kind.outside}")
    host.ip(f"link add link {kind.outside} name tag{kind.number} type vlan id 5")
    address_of_host(kind, f"tag{kind.number}")
    address_inside(ns, kind)


def bond(ns: Namespace, kind: Kind) -> None:
    ns.ip(f"link add {kind.inside} type bond mode active-backup")
    pair(ns, kind, f"slave{kind.number}")
    address_of_host(kind)
    ns.ip(f"link set slave{kind.number} master {kind.inside}")
    address_inside(ns, kind)


def ipvlan(ns: Namespace, kind: Kind) -> None:
    on = f"link add link {lower(kind)} name {kind.inside} netns {ns.name}"
    host.ip(f"{on} type ipvlan mode l2")
    address_inside(ns, kind)


def dummy(ns: Namespace, kind: Kind) -> None:
    ns.ip(f"link add {kind.inside} type dummy")
    address_inside(ns, kind)


KINDS = [
    Kind("veth", 1, 1400, bridged_veth),
    Kind("veth-jumbo", 2, 9000, veth),
    Kind("calico", 3, 1440, calico),
    Kind("flannel", 4, 1450, flannel),
    Kind("macvlan", 5, 1500, macvlan("bridge")),
    Kind("macvlan-private", 6, 9000, macvlan("private")),
    Kind(
        "macvlan-passthru",
        7,
        1500,
        macvlan("passthru"),
        {"macvtap": "device: in7 is a macvlan of mode passthru, beside which no macvtap can be"},
    ),
    Kind("tap", 8, 1400, tap),
    Kind("macvtap", 9, 9000, macvtap),
    Kind(
        "bridge-port",
        10,
        1500,
        bridge_port,
        {"macvtap": "device: in10 is a port of a bridge or bond, and no macvtap can be on it"},
    ),
    Kind("vlan", 11, 1500, vlan),
    Kind("bond", 12, 1500, bond),
    Kind("ipvlan", 13, 1500, ipvlan),
    Kind("dummy", 14, 1500, dummy),
    Kind("program", 15, 1400, program),
]
EXISTING = "tap", "macvtap"
MAYBE_LACKING = {
    "vlan": "link add link lo name probe type vlan id 5",
    "bond": "link add probe type bond",
    "ipvlan": "link add link lo name probe type ipvlan mode l2",
    "dummy": "link add probe type dummy",
}


class World:
    """A sandbox of a model, in a namespace with an interface of each kind."""

    def __init__(self, tapwright: Tapwright, kata: Kata, ns: Namespace, model: str) -> None:
        self.tapwright = tapwright
        self.kata = kata
        self.ns = ns
        self.model = model
        self.lacking: dict[str, str] = {}
        self._moved: list[Kind] = []

    def prepare(self) -> None:
        for kind in KINDS:
            if reason := self._lacks(kind):
                self.lacking[kind.name] = reason
                continue
            kind.make(self.ns, kind)
            if self.model in kind.refused_by and kind.name != "bridge-port":
                self.ns.ip(f"link set {kind.inside} down")
        assert eventually(lambda: "state DOWN" not in self.ns.ip("link show type bridge"))
        self.ns.settles()
        self.before = self.ns.state()

    def start(self) -> None:
        config = self.tapwright.configuration(
            {"internetworking_model": self.model},
            template=self.tapwright.templates,
            default_bridges=1,
        )
        words = "sandbox", "run", SANDBOX, "--netns", self.ns.path, "--json"
        done = self.tapwright.run(*words, config=config)
        assert done.returncode == 0, done.stderr
        give_ip(self.tapwright, SANDBOX)
        serve = f"mkdir /www && cat > /www/payload && httpd -p {GUEST_PORT} -h /www"
        serving = "sandbox", "exec", SANDBOX, "--", "sh", "-c", serve
        assert self.tapwright.run(*serving, input=PAYLOAD, text=False).returncode == 0

    def plug(self, kind: Kind, mac: str) -> dict[str, Json]:
        """The interface for add-iface."""
        addresses = [
            {"address": address, "mask": mask}
            for address, mask in zip(kind.addresses(2), ("24", "64"), strict=True)
        ]
        return {
            "device": kind.inside,
            "name": kind.inside,
            "IPAddresses": addresses,
            "hwAddr": mac,
            "mtu": kind.mtu,
        }

    def connect(self) -> None:
        """What is left to the user by the model `none`."""
        for kind in self.present():
            beside = self.beside(kind)
            if kind.name.startswith("macvlan"):
                self.ns.ip(f"link set {kind.inside} allmulticast on")
            if kind.name == "bridge-port":
                self.ns.ip(f"link set {beside} master brmod{kind.number}")
            elif kind.name == "veth-jumbo":
                # A port's own MAC and addresses are taken for the bridge's.
                self.ns.ip(f"link set {kind.inside} address 02:00:00:81:00:01")
                self.ns.ip(f"link add brnone mtu {kind.mtu} type bridge")
                for port in (kind.inside, beside):
                    self.ns.ip(f"link set {port} master brnone")
                self.ns.ip("link set brnone arp off up")
            elif kind.name not in EXISTING:
                self.ns.join(kind.inside, beside)

    def disconnect(self) -> None:
        """Take back what `connect` did to the interfaces."""
        for kind in self.present():
            if kind.name == "veth-jumbo":
                self.ns.ip("link delete brnone")
                mac = self.before[kind.inside]["links"][0]["address"]
                self.ns.ip(f"link set {kind.inside} address {mac}")
            elif kind.name not in (*EXISTING, "bridge-port"):
                self.ns.tc(f"qdisc delete dev {kind.inside} ingress")
                self.ns.ip(f"link set {kind.inside} allmulticast off")

    def present(self) -> list[Kind]:
        return [
            kind
            for kind in KINDS
            if kind.name not in self.lacking and self.model not in kind.refused_by
        ]

    def beside(self, kind: Kind) -> str:
        return f"tap{self.before[kind.inside]['links'][0]['ifindex']}_kata"

    def in_guest(self, script: str) -> str:
        return self.tapwright.exec(SANDBOX, "sh", "-c", script)

    def assert_as_before(self, *names: str) -> None:
        """Carriers, and the routes that hang on them, take their time."""
        before = {name: self.before[name] for name in names}

        def now() -> State:
            state = self.ns.state()
            return {name: state[name] for name in names}

        eventually(lambda: now() == before)
        found = now()
        for name in names:
            assert found[name] == before[name]

    def end(self) -> None:
        self.tapwright.run("sandbox", "delete", "--force", SANDBOX)

    def _lacks(self, kind: Kind) -> str:
        if kind.name not in MAYBE_LACKING:
            return ""
        command = ["ip", "-n", self.ns.name, *MAYBE_LACKING[kind.name].split()]
        probe = subprocess.run(command, capture_output=True, text=True, check=False)
        subprocess.run(
            ["ip", "-n", self.ns.name, "link", "delete", "probe"], check=False, capture_output=True
        )
        return probe.stderr.strip() if "Unknown device type" in probe.stderr else ""


@pytest.fixture(scope="module")
def served() -> Iterator[None]:
    """The payload, to whoever connects to this host."""
    with socket.create_server(("::", HOST_PORT), family=AF_INET6, dualstack_ipv6=True) as listener:

        def serve() -> None:
            with suppress(OSError):  # the end
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(PAYLOAD)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(scope="module", params=["tcfilter", "macvtap", "none"])
def world(
    request: pytest.FixtureRequest,
    tapwright: Tapwright,
    served: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    kata = Kata(tapwright, tmp_path_factory.mktemp("bin"), SANDBOX)
    with ExitStack() as undo:
        undo.callback(remove_from_host)
        ns = undo.enter_context(namespace(f"twtest-models-{os.getpid()}"))
        world = World(tapwright, kata, ns, request.param)
        world.prepare()
        undo.callback(world.end)
        world.start()
        port = next(kind for kind in KINDS if kind.name == "bridge-port")
        if world.model not in port.refused_by:
            mac = ns.mac(port.inside) if world.model == "tcfilter" else "02:00:00:81:00:10"
            kata("add-iface", world.plug(port, mac))
        if world.model == "none":
            world.connect()
        yield world


def remove_from_host() -> None:
    while programs:
        with programs.pop() as ended_with_its_taps:
            ended_with_its_taps.kill()
    links = {name for kind in KINDS for name in (kind.outside, f"brmod{kind.number}")}
    for name in links:
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)
    subprocess.run(["ip", "address", "flush", "dev", "lo", "scope", "global"], check=False)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest, world: World) -> Kind:
    found: Kind = request.param
    if found.name in world.lacking:
        pytest.skip(f"this kernel has no {found.name}: {world.lacking[found.name]}")
    return found


def download(address: str) -> str:
    target = f"[{address}]" if ":" in address else address
    url = f"http://{target}:{GUEST_PORT}/payload"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return hashlib.sha256(answer.read()).hexdigest()


def test_traffic_both_ways(world: World, kind: Kind) -> None:
    """Connections, bulk and frames of full size, from and to the guest, of both families."""
    if world.model in kind.refused_by:
        request = world.plug(kind, "02:00:00:81:00:20")
        assert kind.refused_by[world.model] in world.kata.refused("add-iface", request)
        assert world.ns.state()[kind.inside] == world.before[kind.inside]
        return
    if kind.name == "dummy":
        assert f"mtu {kind.mtu}" in world.in_guest(f"ip link show {kind.inside}")
        return
    for address, header in zip(kind.addresses(2), (28, 48), strict=True):
        assert answers_ping(address, "-M", "do", "-s", str(kind.mtu - header))
        assert download(address) == DIGEST
    words = []
    for address, header in zip(kind.addresses(1), (28, 48), strict=True):
        assert world.tapwright.reaches(SANDBOX, address, "-s", str(kind.mtu - header))
        words.append(f"nc {address} {HOST_PORT} -e sh -c 'sha256sum > /tmp/sum'")
        words.append("cat /tmp/sum")
    sums = world.in_guest(" && ".join(words))
    assert [line.split()[0] for line in sums.splitlines()] == [DIGEST, DIGEST]
    if kind.name != "calico":  # whose host has no route to more
        # Who asks for it asks a group that nobody in the namespace has joined.
        _, six = kind.addresses(99)
        world.in_guest(f"ip address add {six}/64 dev {kind.inside}")
        assert answers_ping(six)
        world.in_guest(f"ip address delete {six}/64 dev {kind.inside}")


def test_route_of_flannel_leads_there(world: World) -> None:
    assert world.tapwright.reaches(SANDBOX, "10.244.2.1")


def carried(state: dict[str, Json]) -> dict[str, Json]:
    """What is the same on both sides, of an interface's state."""

    def some(entries: list[Json], *keys: str) -> list[Json]:
        found = [{key: entry.get(key) for key in keys} for entry in entries]
        return sorted(found, key=str)

    (link,), (addresses,) = state["links"], state["addresses"]
    routes = [
        # Whether there is a carrier is another matter.
        {**route, "onlink": "onlink" in route["flags"]}
        for route in state["routes"] + state["routes6"]
        if route.get("table") != "local" and not str(route["dst"]).startswith("fe80:")
    ]
    return {
        "mtu": link["mtu"],
        "mac": link["address"],
        "up": "UP" in link["flags"],
        "addresses": some(
            [entry for entry in addresses["addr_info"] if entry["scope"] != "link"],
            *("local", "address", "prefixlen", "broadcast", "scope"),
            *("noprefixroute", "nodad", "home", "deprecated", "tentative", "valid_life_time"),
        ),
        "routes": some(
            routes,
            *("dst", "gateway", "prefsrc", "scope", "metric", "protocol", "table", "metrics"),
            *("type", "onlink"),
        ),
        "neighbours": some(state["neighbours"], "dst", "lladdr", "state"),
    }


def test_guest_has_all_that_interfaces_carry(world: World) -> None:
    commands = {
        "links": "link show",
        "addresses": "address show",
        "routes": "-4 route show table all",
        "routes6": "-6 route show table all",
        "neighbours": "neighbour show nud permanent",
    }
    listed = guest_ip(world.tapwright, SANDBOX, *commands.values())
    for kind in world.present():
        if kind.name == "bridge-port":
            continue  # it has what add-iface was told
        state = {
            key: [e for e in entries if kind.inside in (e.get("ifname"), e.get("dev"))]
            for key, entries in zip(commands, listed, strict=True)
        }
        assert carried(state) == carried(world.before[kind.inside]), kind.name


def test_interfaces_keep_what_they_have(world: World) -> None:
    """Whoever looks at the namespace later finds the same."""
    now = world.ns.state()
    for kind in world.present():
        if (world.model, kind.name) == ("none", "veth-jumbo"):
            continue  # the user's by now
        mac = {"mac": ""}
        assert carried(now[kind.inside]) | mac == carried(world.before[kind.inside]) | mac, kind


def test_device_beside_is_known_as_ours(world: World) -> None:
    state = world.ns.state()
    for kind in world.present():
        if kind.name in EXISTING:
            assert world.beside(kind) not in state
            continue
        beside = state[world.beside(kind)]["links"][0]
        assert (beside["ifalias"], beside["mtu"]) == ("tapwright", kind.mtu)
        if world.model == "macvtap":
            below = world.before[kind.inside]["links"][0]["linkinfo"].get("info_data", {})
            mode = below.get("mode") or "passthru"
            assert beside["linkinfo"]["info_kind"] == "macvtap"
            assert beside["linkinfo"]["info_data"]["mode"] == mode
        else:
            assert beside["linkinfo"]["info_kind"] == "tun"


def test_everything_is_as_before(world: World) -> None:
    """After del-iface, and after a kill. The last one, for it ends the sandbox."""
    if world.model == "none":
        world.disconnect()
    for kind in world.present():
        if kind.name not in ("macvlan", "macvtap", "tap"):
            continue
        world.kata("del-iface", {"name": kind.inside})
        world.assert_as_before(kind.inside)
        world.kata("add-iface", world.plug(kind, world.ns.mac(kind.inside)))
    sandbox = world.tapwright.json("sandbox", "inspect", SANDBOX)
    supervisor, qemu = pids_of(sandbox)
    assert world.ns.state() != world.before
    os.kill(supervisor, signal.SIGKILL)
    assert ended(supervisor)
    assert ended(qemu)
    world.tapwright.delete(SANDBOX)
    assert eventually(lambda: world.ns.state().keys() == world.before.keys())
    world.assert_as_before(*world.before)
