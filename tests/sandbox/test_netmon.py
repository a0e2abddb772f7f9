"""The network monitor: what happens to a namespace afterwards arrives in the running guest, with no
command given to Tapwright."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tapwright.endpoint import discovery
from tapwright.linux import addresses, neighbours, netns, routes
from tapwright.linux.netlink import Netlink
from tests.amounts import amount
from tests.host import Host, answers_ping, eventually
from tests.sandboxes import Tapwright, ended, pids_of

VM = "watched"
BRIDGE, HOST4, HOST6 = "br-mon", "10.77.0.1", "fd77::1"
LOOK = """
import sys, json
sys.path.append("/usr/lib/tapwright")
from tapwright.linux.netlink import Netlink
from tapwright.agent.guest.network import list_network
with Netlink() as nl:
    for line in sys.stdin:
        print(json.dumps([line, list_network(nl, {})]), flush=True)
"""
JOIN = """
import fcntl, socket, struct
request = struct.pack("16sH14s8x", b"eth1", 0, bytes.fromhex("01005e000077"))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
    fcntl.ioctl(opened, 0x8931, request)  # SIOCADDMULTI
"""

Json = Any
State = dict[str, Any]
Look = Callable[[], Json]


@pytest.fixture(scope="module")
def configuration(tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return configured(tapwright, tmp_path_factory.mktemp("config"))


def configured(tapwright: Tapwright, directory: Path, monitor: str = "") -> Path:
    path = directory / "configuration.toml"
    line = f'path = "{monitor}"\n' if monitor else ""
    path.write_text(f"{tapwright.config.read_text()}\n[netmon]\nenable_netmon = true\n{line}")
    return path


@pytest.fixture(scope="module")
def vm(tapwright: Tapwright, configuration: Path) -> Iterator[Json]:
    """A sandbox on an empty namespace, beside a bridge of the host's."""
    for command in (
        # With an address of its own, which otherwise changes with the bridge's ports.
        f"link add {BRIDGE} address 02:00:00:00:77:fe type bridge",
        f"address add {HOST4}/24 dev {BRIDGE}",
        f"address add {HOST6}/64 dev {BRIDGE} nodad",
        f"link set {BRIDGE} up",
    ):
        ip(command)
    done = tapwright.run("--log-level", "info", "sandbox", "run", VM, config=configuration)
    assert done.returncode == 0, done.stderr
    yield tapwright.json("sandbox", "inspect", VM)
    tapwright.delete(VM)
    ip(f"link delete {BRIDGE}")


@pytest.fixture(scope="module")
def look(vm: Json, tapwright: Tapwright) -> Iterator[Look]:
    """The guest's network, as its agent would list it. One program looks all the time: an
    interpreter would take longer to start than to look."""
    command = tapwright.command("sandbox", "exec", VM, "--", "python3", "-I", "-S", "-c", LOOK)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as looking:
        asked, told = looking.stdin, looking.stdout
        assert asked
        assert told
        numbers = itertools.count()

        def ask() -> Json:
            mark = f"{next(numbers)}\n"
            asked.write(mark)
            asked.flush()
            while True:  # the answer to a test that did not wait for it may come first
                marked, listed = json.loads(told.readline())
                if marked == mark:
                    return listed

        yield ask
        asked.close()


class Space:
    """The namespace of a sandbox, changed from outside as a platform does it."""

    def __init__(self, vm: Json) -> None:
        self.path = vm["netns"]
        self.name = Path(self.path).name

    def ip(self, command: str) -> str:
        return ip(f"-n {self.name} {command}")

    def batch(self, *commands: str) -> None:
        text = "".join(f"{command}\n" for command in commands)
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input=text, text=True, check=True)

    def add_veth(self, name: str, *configured: str, up: bool = True) -> None:
        """With its other end in the bridge; `configured` are addresses."""
        ip(f"link add h-{name} type veth peer name {name} netns {self.name}")
        ip(f"link set h-{name} master {BRIDGE} up")
        for address in configured:
            self.ip(f"address add {address} dev {name} nodad")
        if up:
            self.ip(f"link set {name} up")


class Namespace(Space):
    """That of the VM, and its guest."""

    def __init__(self, vm: Json, tapwright: Tapwright, look: Look) -> None:
        super().__init__(vm)
        self._tapwright = tapwright
        self._look = look
        self._vm = vm

    def state(self) -> State:
        """What the guest should be."""
        with netns.entered(self.path), Netlink() as nl:
            found = discovery.scan(nl)
            static = neighbours.listing(nl)
        carried = [i for i in found.interfaces if i.link.is_up]
        names = {interface.link.index: interface.link.name for interface in carried}
        return described(
            {i.link.name: (i.link.mac, i.link.mtu, i.addresses) for i in carried},
            [(names[r.device], r) for r in found.routes() if r.device in names],
            [(names[n.device], n) for n in static if n.device in names],
        )

    def guest(self) -> State:
        """What the guest is."""
        listed = self._look()
        ethernet = [i for i in listed["interfaces"] if i["mac"].strip("0:") and i["up"]]
        return described(
            {
                i["name"]: (
                    i["mac"],
                    i["mtu"],
                    [
                        address
                        for item in i["addresses"]
                        if not (address := addresses.Address(**item)).is_made_from(i["mac"])
                    ],
                )
                for i in ethernet
            },
            [
                (item["device"], routes.Route(**{**item, "device": 0}))
                for item in listed["routes"]
                if item["protocol"] not in (routes.RTPROT_KERNEL, 1, 9) and item["device"] != "lo"
            ],
            [
                (item["device"], neighbours.Neighbour(**{**item, "device": 0}))
                for item in listed["neighbours"]
                if item["device"] != "lo"
            ],
        )

    def settles(self) -> None:
        """The guest becomes what the namespace is."""
        if not eventually(lambda: self.guest() == self.state()):
            assert self.guest() == self.state(), self.log()

    def log(self) -> str:
        return (self._tapwright.root / "sandboxes" / VM / "log").read_text()

    def monitor(self) -> int:
        """The pid of the monitor."""
        return monitor_of(self._vm)


def described(interfaces: Json, found_routes: Json, found_neighbours: Json) -> State:
    """The same form for namespace and guest. Of IPv4 routes that differ in nothing but where they
    lead the order is kept, for the kernel takes the first."""
    found = [
        (device, r.destination, r.gateway or "", r.source or "", r.metric, r.onlink, r.mtu)
        for device, r in found_routes
    ]
    return {
        "interfaces": {
            name: (mac, mtu, [(a.address, a.prefix_length, a.peer) for a in found])
            for name, (mac, mtu, found) in interfaces.items()
        },
        "routes": sorted(
            found, key=lambda route: (route[1], route[4], route if ":" in route[1] else ())
        ),
        "neighbours": sorted((device, n.address, n.mac) for device, n in found_neighbours),
    }


def monitor_of(vm: Json) -> int:
    pids: list[int] = []

    def found() -> bool:
        children = Path(f"/proc/{vm['supervisor_pid']}/task/{vm['supervisor_pid']}/children")
        with suppress(FileNotFoundError):  # a child that has just ended
            pids[:] = [
                int(pid)
                for pid in children.read_text().split()
                if b"netmon" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
        return bool(pids)

    assert eventually(found)
    return pids[0]


def is_in_poll(pid: int) -> bool:
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == "7"  # on x86-64


def ip(command: str) -> str:
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"
    return done.stdout


@pytest.fixture
def namespace(vm: Json, tapwright: Tapwright, look: Look, host: Host) -> Iterator[Namespace]:
    """Empty before and after, with a guest that has no NIC then, and nothing else on the host."""
    space = Namespace(vm, tapwright, look)
    before = host.snapshot()
    # The supervisor may just be writing the record of what came before.
    before["files"] = [path for path in before["files"] if not path.endswith("/.record.json")]
    yield space
    for link in json.loads(ip("-json link show type veth")):
        if link["ifname"].startswith("h-"):
            ip(f"link delete {link['ifname']}")
    space.settles()
    assert space.guest()["interfaces"] == {}
    # The supervisor hears of it from QEMU, when the guest has let go.
    assert eventually(lambda: tapwright.json("sandbox", "inspect", VM)["interfaces"] == [])
    host.assert_same(before)


def test_an_interface_comes_and_goes(namespace: Namespace, tapwright: Tapwright) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24", "fd77::9/64")
    namespace.settles()
    assert "eth1" in namespace.guest()["interfaces"]
    assert tapwright.reaches(VM, HOST4)
    assert tapwright.reaches(VM, HOST6)
    for address in ("10.77.0.9", "fd77::9"):
        assert answers_ping(address)
    ip("link delete h-eth1")
    assert eventually(lambda: namespace.guest()["interfaces"] == {})


def test_what_arrives_later_and_changes(namespace: Namespace, tapwright: Tapwright) -> None:
    namespace.add_veth("eth1")
    assert eventually(lambda: "eth1" in namespace.guest()["interfaces"])
    for step in (
        ["address add 10.77.0.9/24 dev eth1", "address add fd77::9/64 dev eth1 nodad"],
        ["route add default via 10.77.0.1", "route add 10.200.0.0/16 via 10.77.0.2 metric 7"],
        ["route add 10.201.0.0/16 dev eth1", "route add fd99::/64 via fd77::1"],
        ["neigh add 10.77.0.77 lladdr 02:00:00:00:00:77 dev eth1 nud permanent"],
        ["link set eth1 mtu 1400", "address add fe80::77/64 dev eth1 nodad"],
        ["address add 10.77.0.10/24 dev eth1", "route change default via 10.77.0.3"],
        # The kernel drops all that leads through the last address, here as there.
        ["address flush dev eth1", "address add 10.77.0.11/24 dev eth1"],
        ["route add default via 10.77.0.1", "neigh flush dev eth1 nud permanent"],
        ["link set eth1 mtu 9000"],
    ):
        namespace.batch(*step)
        namespace.settles()
        if "fe80::77" in step[-1]:
            assert "fe80::77" in tapwright.exec(VM, "ip", "address", "show", "eth1")


def test_rules_next_hops_and_settings(namespace: Namespace, tapwright: Tapwright) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()

    def guest(*command: str) -> str:
        return tapwright.exec(VM, *command)

    def arrives(command: str, text: str) -> None:
        assert eventually(lambda: text in guest(*command.split())), guest(*command.split())

    def is_so(path: str, value: str) -> bool:
        return guest("cat", path).strip() == value

    def goes(command: str, text: str) -> None:
        assert eventually(lambda: text not in guest(*command.split())), guest(*command.split())

    namespace.ip("rule add from 10.77.0.9 lookup 100 pref 7")
    arrives("ip rule", "from 10.77.0.9 lookup 100")
    namespace.ip("rule delete pref 32767")
    goes("ip rule", "lookup default")
    namespace.ip("route add blackhole 10.201.0.0/16")
    arrives("ip route", "blackhole 10.201.0.0/16")
    namespace.ip("nexthop add id 3 via 10.77.0.1 dev eth1")
    namespace.ip("route add 10.202.0.0/16 nhid 3")
    arrives("ip route", "10.202.0.0/16 via 10.77.0.1 dev eth1")
    namespace.ip("nexthop replace id 3 via 10.77.0.2 dev eth1")
    arrives("ip route", "10.202.0.0/16 via 10.77.0.2 dev eth1")
    for path, value, before in (
        ("ipv6/conf/eth1/accept_ra", "0", "1"),
        ("ipv4/conf/eth1/rp_filter", "2", "0"),
        ("ipv4/neigh/eth1/gc_stale_time", "77", "60"),
        ("ipv4/conf/all/forwarding", "1", "0"),
        ("core/somaxconn", "77", "4096"),
    ):
        file = Path("/proc/sys/net", path)
        # As the guest has it, where this host's new namespaces begin with something else.
        for wanted in (value, before):
            with netns.entered(namespace.path):
                file.write_text(wanted)
            assert eventually(partial(is_so, str(file), wanted)), file
    # What was made here goes.
    namespace.ip("nexthop delete id 3")
    namespace.ip("route delete blackhole 10.201.0.0/16")
    namespace.ip("rule delete pref 7")
    namespace.ip("rule add lookup default pref 32767 protocol kernel")
    goes("ip rule", "from 10.77.0.9")
    arrives("ip rule", "lookup default")
    goes("ip route", "10.20")


@pytest.mark.large
def test_ten_thousand_routes_and_then_too_many(namespace: Namespace, tapwright: Tapwright) -> None:
    """What is too much is said, and all else goes on as it was."""
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    several = [
        f"route add 10.{n // 65536 + 100}.{n // 256 % 256}.{n % 256} via 10.77.0.2"
        for n in range(amount(35_000, 100_000))
    ]

    def count() -> int:
        return int(tapwright.exec(VM, "sh", "-c", "ip route | wc -l"))

    namespace.batch(*several[:10_000])
    assert eventually(lambda: count() > 10_000), count()
    namespace.batch(*several[10_000:])
    assert eventually(lambda: "more than 32768 routes" in namespace.log())
    assert tapwright.reaches(VM, HOST4)
    namespace.ip("route flush root 10.0.0.0/8 protocol boot")
    assert eventually(lambda: count() < 10), count()


def test_the_first_of_several_routes_is_the_first(
    namespace: Namespace, tapwright: Tapwright
) -> None:
    """Also where it comes last: CNI's reference plugins add theirs before those that are there, as
    `ip route prepend` does."""
    for number in (1, 2, 3):
        namespace.add_veth(f"eth{number}", f"10.77.{number}.9/24")
    namespace.settles()
    for number, verb in ((2, "add"), (1, "prepend"), (3, "prepend"), (2, "delete"), (2, "append")):
        namespace.ip(f"route {verb} default via 10.77.{number}.1 dev eth{number}")
        namespace.settles()
    assert "dev eth3" in tapwright.exec(VM, "ip", "route", "get", "192.0.2.1")
    namespace.ip("link set eth3 mtu 1400")
    namespace.ip("address add 10.77.3.10/24 dev eth3")
    namespace.settles()


def test_calico_shaped(namespace: Namespace, tapwright: Tapwright) -> None:
    """A /32 address, a gateway outside its subnet, and that gateway's entry as a neighbour."""
    namespace.add_veth("eth1", "10.99.0.5/32")
    mac = json.loads(ip(f"-json link show {BRIDGE}"))[0]["address"]
    namespace.batch(
        "route add 169.254.1.1 dev eth1 scope link",
        "route add default via 169.254.1.1 dev eth1",
        f"neigh add 169.254.1.1 lladdr {mac} dev eth1 nud permanent",
    )
    namespace.settles()
    ip(f"route add 10.99.0.5 dev {BRIDGE}")
    try:
        assert tapwright.reaches(VM, HOST4)
    finally:
        ip("route delete 10.99.0.5")


def test_renamed_swapped_and_given_another_mac(namespace: Namespace) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.add_veth("eth2", "10.77.0.10/24", "fd77::10/64")
    namespace.ip("route add 10.200.0.0/16 via 10.77.0.2 dev eth2")
    namespace.settles()
    namespace.ip("link set eth1 name wan0")
    namespace.settles()
    namespace.batch(
        "link set wan0 name spare", "link set eth2 name wan0", "link set spare name eth2"
    )
    namespace.settles()
    namespace.ip("link set eth2 address 02:00:00:00:77:01")
    namespace.settles()
    # And now both have the same one.
    namespace.ip("link set wan0 address 02:00:00:00:77:01")
    namespace.settles()
    namespace.ip("address add 10.77.0.12/24 dev wan0")
    namespace.settles()


def test_a_mac_address_that_a_program_of_the_guest_has_set(
    namespace: Namespace, tapwright: Tapwright
) -> None:
    """It stays, and the NIC goes on following."""
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    changed = "02:00:00:00:77:99"
    tapwright.exec(VM, "ip", "link", "set", "eth1", "address", changed)
    namespace.batch("address add 10.77.0.10/24 dev eth1", "link set eth1 name wan1")

    def shown(name: str) -> str:
        return tapwright.run("sandbox", "exec", VM, "--", "ip", "address", "show", name).stdout

    assert eventually(lambda: "10.77.0.10" in shown("wan1")), namespace.log()
    assert changed in shown("wan1")
    assert answers_ping("10.77.0.10")


def test_another_mac_address_from_outside(namespace: Namespace, tapwright: Tapwright) -> None:
    """The NIC stays, with all that is bound to it, and frames find it."""
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()

    def guest(command: str) -> str:
        return tapwright.exec(VM, "sh", "-c", command)

    tapwright.exec(VM, "python3", "-I", "-S", "-c", JOIN)
    guest("echo 1 >/proc/sys/net/ipv4/conf/eth1/arp_ignore")
    index = guest("cat /sys/class/net/eth1/ifindex")
    first = namespace.ip("-o link show eth1").split("link/ether ")[1].split()[0]
    for mac in ("02:00:00:00:77:41", "02:00:00:00:77:42"):
        namespace.ip(f"link set eth1 address {mac}")
        namespace.settles()
        ip(f"neigh flush dev {BRIDGE}")
        assert answers_ping("10.77.0.9")
    assert guest("cat /sys/class/net/eth1/ifindex") == index
    assert "01005e000077" in guest("cat /proc/net/dev_mcast")
    assert guest("cat /proc/sys/net/ipv4/conf/eth1/arp_ignore").strip() == "1"
    # Another interface with the address by which the NIC is still known.
    namespace.add_veth("eth2", "10.77.0.10/24", up=False)
    namespace.batch(f"link set eth2 address {first}", "link set eth2 up")
    namespace.settles()
    assert answers_ping("10.77.0.10")


def test_what_programs_of_the_guest_have_set_stays(
    namespace: Namespace, tapwright: Tapwright
) -> None:
    """As in a namespace: the address of keepalived, an MTU."""
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    for command in ("address add 10.77.0.99/32 dev eth1", "link set eth1 mtu 1400"):
        tapwright.exec(VM, "ip", *command.split())
    ip("link set h-eth1 down")
    namespace.ip("address add 10.77.0.10/24 dev eth1")

    def shown() -> str:
        return tapwright.exec(VM, "ip", "address", "show", "eth1")

    assert eventually(lambda: "10.77.0.10" in shown()), namespace.log()
    assert "10.77.0.99" in shown()
    assert "mtu 1400" in shown()


def test_down_and_up_again(namespace: Namespace) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.ip("route add default via 10.77.0.1")
    namespace.settles()
    namespace.ip("link set eth1 down")
    namespace.settles()
    namespace.batch("link set eth1 up", "route add default via 10.77.0.1")
    namespace.settles()
    assert namespace.guest()["routes"]


def test_carrier(namespace: Namespace, tapwright: Tapwright) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()

    def carrier() -> str:
        return tapwright.exec(VM, "cat", "/sys/class/net/eth1/carrier").strip()

    assert eventually(lambda: carrier() == "1")
    ip("link set h-eth1 down")
    assert eventually(lambda: carrier() == "0")
    ip("link set h-eth1 up")
    assert eventually(lambda: carrier() == "1")
    assert answers_ping("10.77.0.9")


def test_not_before_it_is_running(namespace: Namespace) -> None:
    namespace.add_veth("eth1", up=False)
    namespace.add_veth("eth2", up=False)
    ip("link set h-eth2 down")
    namespace.ip("link set eth2 up")
    namespace.add_veth("eth3", "10.77.0.10/24")
    assert eventually(lambda: "eth3" in namespace.guest()["interfaces"])
    assert namespace.guest()["interfaces"].keys() == {"eth3"}
    namespace.ip("link set eth1 up")
    ip("link set h-eth2 up")
    namespace.settles()
    assert namespace.guest()["interfaces"].keys() == {"eth1", "eth2", "eth3"}


def test_out_of_the_namespace_and_back(namespace: Namespace) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    namespace.ip(f"link set eth1 netns {os.getpid()}")
    assert eventually(lambda: namespace.guest()["interfaces"] == {})
    ip(f"link set eth1 netns {namespace.name}")
    namespace.batch("address add 10.77.0.12/24 dev eth1", "link set eth1 up")
    namespace.settles()
    assert answers_ping("10.77.0.12")


def test_what_joined_it_was_taken_away(namespace: Namespace, tapwright: Tapwright) -> None:
    """By somebody's hands, or (depending on the kernel) by a way out of the namespace and back: the
    interface is joined again, and the log says so."""
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    words = "qdisc", "delete", "dev", "eth1", "ingress"
    subprocess.run(["tc", "-n", namespace.name, *words], check=True)
    assert tapwright.reaches(VM, HOST4)
    namespace.settles()
    assert "eth1 is not joined with its NIC any more" in namespace.log()


def test_flapping_while_another_carries_traffic(namespace: Namespace, tmp_path: Path) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    said = tmp_path / "said"

    def answered() -> list[int]:
        return [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", said.read_text())]

    with said.open("w") as file:
        pinging = subprocess.Popen(["ping", "-i", "0.05", "10.77.0.9"], stdout=file)
    try:
        for number in range(100):
            namespace.add_veth("eth2", f"10.77.0.{100 + number}/24")
            ip("link delete h-eth2")
        namespace.add_veth("eth2", "10.77.0.50/24")
        namespace.settles()
        before = len(answered())
        assert eventually(lambda: len(answered()) > before + 1)
    finally:
        pinging.kill()
        pinging.wait()
    # Those that were on their way at the end are no loss; a slow host has several.
    assert (numbers := answered()) == list(range(1, numbers[-1] + 1))


def test_a_thousand_changes_at_once(namespace: Namespace) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    namespace.batch(
        *(f"address add 10.77.1.{n}/24 dev eth1" for n in range(1, 101)),
        *(f"route add 10.{100 + n // 200}.{n % 200}.0/24 via 10.77.0.2" for n in range(800)),
        # Last one first, for with the first of a network go all others.
        *(f"address delete 10.77.1.{n}/24 dev eth1" for n in range(100, 0, -1)),
    )
    namespace.settles()
    assert len(namespace.guest()["routes"]) == 800
    namespace.ip("route flush root 10.0.0.0/8 protocol boot")
    namespace.settles()


def test_more_than_the_kernel_keeps_for_us(namespace: Namespace) -> None:
    """While the monitor stands still its buffer overruns: it must look again, not give up."""
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    monitor = namespace.monitor()
    os.kill(monitor, signal.SIGSTOP)
    try:
        added = [f"route add 10.150.{n % 250}.0/24 via 10.77.0.2" for n in range(250)]
        removed = [line.replace("add", "delete") for line in added]
        for _ in range(12):
            namespace.batch(*added, *removed)
        namespace.batch(*added[:7])
        drops = Path("/proc/net/netlink").read_text
        with netns.entered(namespace.path):
            dropped = [
                int(line.split()[8])
                for line in drops().splitlines()[1:]
                if int(line.split()[2]) == monitor
            ]
        assert any(dropped), "the buffer did not overrun, so this tests nothing"
    finally:
        os.kill(monitor, signal.SIGCONT)
    namespace.settles()
    assert namespace.monitor() == monitor


def test_killed_at_random(namespace: Namespace) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    chance = random.Random(77)  # noqa: S311 - the same each time
    for number in range(6):
        monitor = namespace.monitor()
        kill = threading.Timer(chance.uniform(0, 0.3), os.kill, (monitor, signal.SIGKILL))
        kill.start()
        namespace.add_veth(f"eth{number + 2}", f"10.77.0.{20 + number}/24")
        namespace.ip(f"route add 10.{200 + number}.0.0/16 via 10.77.0.2 dev eth{number + 2}")
        kill.join()
        assert ended(monitor)
    namespace.settles()
    for number in range(6):
        ip(f"link delete h-eth{number + 2}")
    namespace.settles()


def test_what_was_asked_for_is_left_alone(namespace: Namespace, kata: Callable[..., Json]) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    ip("tuntap add dev tap-mon mode tap")
    try:
        ip(f"link set tap-mon master {BRIDGE} up")
        kata(
            "add-iface",
            {
                "device": "tap-mon",
                "name": "hot0",
                "hwAddr": "02:00:00:00:77:aa",
                "IPAddresses": [{"address": "10.77.0.40", "mask": "24"}],
            },
        )
        kata("add-route", [{"dest": "10.210.0.0/16", "gateway": "10.77.0.2", "device": "eth1"}])
        namespace.ip("route add 10.211.0.0/16 via 10.77.0.2")
        assert eventually(lambda: "10.211.0.0/16" in destinations(kata))
        assert "10.210.0.0/16" in destinations(kata)
        namespace.ip("route delete 10.211.0.0/16")
        assert eventually(lambda: "10.211.0.0/16" not in destinations(kata))
        assert "10.210.0.0/16" in destinations(kata)
        assert {nic["name"] for nic in kata("list-ifaces")} == {"eth1", "hot0"}
        kata("del-iface", {"name": "hot0"})
    finally:
        ip("link delete tap-mon")


def test_removed_by_request_stays_away(namespace: Namespace, kata: Callable[..., Json]) -> None:
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()
    kata("del-iface", {"name": "eth1"})
    namespace.add_veth("eth2", "10.77.0.10/24")
    assert eventually(lambda: "eth2" in namespace.guest()["interfaces"])
    assert "eth1" not in namespace.guest()["interfaces"]
    ip("link delete h-eth1")
    namespace.add_veth("eth1", "10.77.0.9/24")
    namespace.settles()


def test_a_failed_interface_is_reported_and_tried_again(
    namespace: Namespace, kata: Callable[..., Json]
) -> None:
    ip("tuntap add dev tap-mon mode tap")
    try:
        kata("add-iface", {"device": "tap-mon", "name": "eth1", "hwAddr": "02:00:00:00:77:ab"})
        namespace.add_veth("eth1", "10.77.0.9/24")
        namespace.add_veth("eth2", "10.77.0.10/24")
        assert eventually(lambda: "eth2" in namespace.guest()["interfaces"])
        assert eventually(lambda: "'eth1' is taken in this sandbox" in namespace.log())
        kata("del-iface", {"name": "eth1"})
        namespace.settles()
    finally:
        ip("link delete tap-mon")


@pytest.fixture
def kata(tapwright: Tapwright) -> Callable[..., Json]:
    def call(verb: str, content: Json = None) -> Json:
        words = ["kata-network", verb, VM, *(["-"] if content is not None else [])]
        done = tapwright.run(*words, input=json.dumps(content) if content is not None else None)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def destinations(kata: Callable[..., Json]) -> list[str]:
    return [route["dest"] for route in kata("list-routes") or []]


# --- a monitor's life ------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["delete", "kill"])
def test_ends_with_its_sandbox(
    way: str, tapwright: Tapwright, configuration: Path, nothing_left: None
) -> None:
    done = tapwright.run("sandbox", "run", "mortal", "--json", config=configuration)
    assert done.returncode == 0, done.stderr
    sandbox = json.loads(done.stdout)
    monitor = monitor_of(sandbox)
    if way == "kill":
        # Not while it speaks with the supervisor, which would end it too.
        assert eventually(lambda: is_in_poll(monitor))
        os.kill(pids_of(sandbox)[0], signal.SIGKILL)
        assert ended(monitor)
    tapwright.delete("mortal")
    assert ended(monitor)


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "is missing"), ("plain", "is not executable"), (".", "is not")]
)
def test_monitor_that_can_not_be(
    name: str, reason: str, tapwright: Tapwright, tmp_path: Path, nothing_left: None
) -> None:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    config = configured(tapwright, tmp_path, str(tmp_path / name))
    done = tapwright.run("sandbox", "run", "never", config=config)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "enable_netmon = false" in done.stderr


def test_monitor_that_can_not_be_executed(
    tapwright: Tapwright, tmp_path: Path, nothing_left: None
) -> None:
    """Only the kernel knows."""
    monitor = tmp_path / "monitor"
    monitor.write_text("#!/nonexistent/interpreter\n")
    monitor.chmod(0o755)
    done = tapwright.run(
        "sandbox", "run", "never", config=configured(tapwright, tmp_path, str(monitor))
    )
    assert done.returncode == 1
    assert "can't be started" in done.stderr


FOREIGN = """#!/bin/sh
# A monitor by Kata's contract: plugs what it is told to, once it has appeared.
echo "$@" >{directory}/arguments
runtime=$4
until ip -o link show eth1 2>/dev/null | grep -q LOWER_UP; do sleep 0.05; done
cat >{directory}/interface.json <<END
{{"Device":"eth1","Name":"eth1","HwAddr":"$(cat /sys/class/net/eth1/address 2>/dev/null ||
    ip -o link show eth1 | sed 's/.*ether \\([0-9a-f:]*\\).*/\\1/')","Mtu":1500,"LinkType":"veth",
"IPAddresses":[{{"Family":2,"Address":"10.77.0.9","Mask":"24"}}]}}
END
"$runtime" kata-network add-iface "$2" {directory}/interface.json >{directory}/answer 2>&1
# kata-netmon has no destination for a default route.
echo '[{{"Dest":"","Gateway":"10.77.0.1","Device":"eth1"}}]' >{directory}/routes.json
"$runtime" kata-network update-routes "$2" {directory}/routes.json >>{directory}/answer 2>&1
exec sleep 1000
"""


def test_a_foreign_monitor_drives_our_command(
    tapwright: Tapwright, tmp_path: Path, vm: Json, nothing_left: None
) -> None:
    """Started with Kata's flags in the namespace, it calls what -r names."""
    monitor = tmp_path / "kata-netmon"
    monitor.write_text(FOREIGN.format(directory=tmp_path))
    monitor.chmod(0o755)
    config = configured(tapwright, tmp_path, str(monitor))
    done = tapwright.run("sandbox", "run", "foreign", "--json", config=config)
    assert done.returncode == 0, done.stderr
    sandbox = json.loads(done.stdout)
    try:
        space = Space(sandbox)
        space.add_veth("eth1", "10.77.0.9/24")
        answer = tmp_path / "answer"
        assert eventually(lambda: answer.exists() and answer.read_text().count("\n") == 2)
        assert '"pciAddr"' in answer.read_text()
        assert '{"dest":"default","gateway":"10.77.0.1","device":"eth1"}' in answer.read_text()
        assert tapwright.reaches("foreign", HOST4)
        arguments = (tmp_path / "arguments").read_text().split()
        assert arguments[:3] == ["-s", "foreign", "-r"]
        assert arguments[4:] == ["-log", "warning"]
    finally:
        ip("link delete h-eth1")
        tapwright.delete("foreign")
