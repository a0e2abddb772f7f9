"""What a namespace has when a sandbox starts on it, its guest has when the start returns; what
follows later is in test_netmon, and each kind of thing in tests/parity."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright import config
from tapwright.linux import links, netns
from tapwright.sandbox import planning
from tests.host import answers_ping
from tests.namespaces import Namespace, namespace
from tests.sandboxes import Tapwright

VM = "carried"


@pytest.fixture
def place(nothing_left: None) -> Iterator[Namespace]:
    """A namespace with an eth0 that is not up so far, 10.79.0.1 at its other end."""
    with namespace(f"tapwright-{VM}-net") as made:
        made.ip("link set lo up")
        ip(f"link add h-carried type veth peer name eth0 netns {made.name}")
        ip("address add 10.79.0.1/24 dev h-carried")
        ip("address add fd79::1/64 dev h-carried nodad")
        ip("link set h-carried up")
        yield made
        subprocess.run(["ip", "link", "delete", "h-carried"], check=False, capture_output=True)


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def write(place: Namespace, path: str, value: str) -> None:
    with netns.entered(place.path):
        Path("/proc/sys/net", path).write_text(value)


def addressed(place: Namespace) -> None:
    place.ip("address add 10.79.0.2/24 dev eth0")
    place.ip("address add fd79::2/64 dev eth0 nodad")
    place.ip("link set eth0 up")
    place.ip("route add default via 10.79.0.1")


def test_all_of_it_at_the_start(place: Namespace, tapwright: Tapwright) -> None:
    write(place, "ipv6/conf/eth0/accept_ra", "0")
    write(place, "ipv4/conf/all/forwarding", "1")
    write(place, "core/somaxconn", "77")
    write(place, "ipv4/neigh/eth0/gc_stale_time", "7")
    addressed(place)
    place.ip("address add 10.88.0.1/32 dev lo")
    place.ip("link set eth0 promisc on allmulticast on")
    place.ip("route delete 10.79.0.0/24 dev eth0")
    place.ip("route add 10.79.0.1 dev eth0 scope link")
    place.ip("route add prohibit 10.80.0.0/16 table 7")
    place.ip("rule add from 10.79.0.2 lookup 7 pref 5")
    done = tapwright.run("sandbox", "run", VM, "--netns", place.path)
    assert done.returncode == 0, done.stderr
    try:
        script = (
            "cat /proc/sys/net/ipv6/conf/eth0/accept_ra /proc/sys/net/ipv4/conf/eth0/forwarding"
            " /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/neigh/eth0/gc_stale_time;"
            "ip route; ip route show table 7; ip rule; ip address show lo;"
            "echo flags $(cat /sys/class/net/eth0/flags)"
        )
        told = tapwright.exec(VM, "sh", "-c", script)
        assert told.split()[:4] == ["0", "1", "77", "7"]
        assert "10.79.0.0/24" not in told
        assert "10.79.0.1 dev eth0" in told
        assert "prohibit 10.80.0.0/16" in told
        assert "from 10.79.0.2 lookup 7" in told
        assert "10.88.0.1/32" in told
        flags = int(told.split("flags ")[1], 16)
        assert flags & links.FLAGS_OF_RECEPTION == links.FLAGS_OF_RECEPTION
        assert tapwright.reaches(VM, "10.79.0.1")
    finally:
        tapwright.delete(VM)


def test_sizes_of_loopback_alone(place: Namespace, tapwright: Tapwright) -> None:
    """Nothing else of it is special."""
    place.ip("link set lo mtu 1500 txqueuelen 7")
    done = tapwright.run("sandbox", "run", VM, "--netns", place.path)
    assert done.returncode == 0, done.stderr
    try:
        told = tapwright.exec(
            VM, "sh", "-c", "cat /sys/class/net/lo/mtu /sys/class/net/lo/tx_queue_len"
        )
        assert told.split() == ["1500", "7"]
    finally:
        tapwright.delete(VM)


def test_one_mac_address_twice(place: Namespace, tapwright: Tapwright) -> None:
    """As of two ipvlans of one device: each is a NIC, by itself reached and reaching."""
    addressed(place)
    place.ip("link set eth0 address 02:00:00:00:79:01")
    ip(f"link add h-carried-2 type veth peer name eth1 netns {place.name}")
    ip("address add 10.78.0.1/24 dev h-carried-2")
    ip("link set h-carried-2 up")
    try:
        # With a queue longer than a TAP's can be, which is left out.
        place.ip("link set eth1 address 02:00:00:00:79:01 txqueuelen 1000000")
        place.ip("address add 10.78.0.2/24 dev eth1")
        place.ip("link set eth1 up")
        done = tapwright.run("sandbox", "run", VM, "--netns", place.path)
        assert done.returncode == 0, done.stderr
        for name, address in (("eth0", "10.79.0.2"), ("eth1", "10.78.0.2")):
            assert address in tapwright.exec(VM, "ip", "address", "show", name)
            mac = tapwright.exec(VM, "cat", f"/sys/class/net/{name}/address")
            assert mac.strip() == "02:00:00:00:79:01"
            assert answers_ping(address)
    finally:
        tapwright.delete(VM)
        ip("link delete h-carried-2")


def test_what_is_on_a_nic_and_has_its_mac_address_is_refused(
    place: Namespace, tapwright: Tapwright
) -> None:
    """A VLAN is another; this kernel may have none. In words that name both interfaces."""
    addressed(place)
    place.ip("link set eth0 address 02:00:00:00:79:01")
    place.ip("link add eth1 link eth0 type macvlan mode passthru")
    place.ip("link set eth1 up")
    done = tapwright.run("sandbox", "run", VM, "--netns", place.path)
    assert done.returncode != 0
    assert "eth1 has the MAC address of eth0, 02:00:00:00:79:01, and one" in done.stderr


def test_there_is_room_for_all_that_are_there(
    place: Namespace, scratch_netns: str, tapwright: Tapwright
) -> None:
    """And no more is made of it where there are fewer than usual: a template for each number would
    be many."""
    loaded, made = config.load(str(tapwright.config)), 1
    beyond = Path(scratch_netns).name
    for count in (loaded.qemu.slots, loaded.qemu.slots + 1, 40):
        for number in range(made, count):
            place.ip(f"link add net{number} type veth peer name far{number} netns {beyond}")
        made = count
        spec = planning.plan(loaded, planning.Wish(netns=place.path), print)
        assert count <= spec.machine.slots < count + 8
        usual = planning.plan(loaded, planning.Wish(), print).machine.slots
        assert usual == loaded.qemu.slots


def test_too_many_routes_are_refused(place: Namespace, tapwright: Tapwright) -> None:
    addressed(place)
    batch = "".join(
        f"route add blackhole 10.{n // 65536 + 100}.{n // 256 % 256}.{n % 256}\n"
        for n in range(100_000)
    )
    words = ["ip", "-n", place.name, "-batch", "-"]
    subprocess.run(words, input=batch, text=True, check=True)
    done = tapwright.run("sandbox", "run", VM, "--netns", place.path)
    assert done.returncode == 1
    assert "the network namespace has more than 32768 routes" in done.stderr


def test_a_guest_without_ipv6(place: Namespace, tapwright: Tapwright) -> None:
    """It can become a template, has its IPv4, and the log says what it can't have."""
    addressed(place)
    place.ip("route add default via fd79::1")
    config = tapwright.configuration(template=tapwright.templates, kernel_params="ipv6.disable=1")
    done = tapwright.run("sandbox", "run", VM, "--netns", place.path, config=config)
    assert done.returncode == 0, done.stderr
    try:
        assert tapwright.reaches(VM, "10.79.0.1")
        assert tapwright.exec(VM, "ls", "/proc/sys/net").split().count("ipv6") == 0
        log = (tapwright.root / "sandboxes" / VM / "log").read_text()
        assert "add address fd79::2/64" in log
        assert "route ::/0 via fd79::1" in log
        assert "booted, because" not in log
        warnings = "\n".join(tapwright.json("sandbox", "inspect", VM)["warnings"])
        assert "add address fd79::2/64" in warnings
        assert "route ::/0 via fd79::1" in warnings
    finally:
        tapwright.delete(VM)
