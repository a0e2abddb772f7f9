"""Rates that the kernel holds a NIC's frames to, in each model and for a TAP of the host's."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.host import eventually
from tests.namespaces import Namespace, namespace
from tests.sandbox.test_kata_network import Kata, interface, tap_state
from tests.sandboxes import Tapwright

SANDBOX = "limited"
RX, TX = 24_000_000, 8_000_000  # far apart, so that neither can be taken for the other
SECONDS = 0.6
PORT = 8098
TAP, OTHER_TAP, BRIDGE = "tap-lim", "tap-lim2", "br-lim"

host = Namespace()


class Limited:
    """A sandbox with limits, in a namespace with an interface `lan0`, and a TAP of the host's
    plugged. In the namespace are others, which are down."""

    def __init__(self, tapwright: Tapwright, kata: Kata, ns: Namespace, model: str) -> None:
        self.tapwright = tapwright
        self.kata = kata
        self.ns = ns
        self.model = model

    def prepare(self) -> None:
        for command in (
            f"link add outlim0 type veth peer name lan0 netns {self.ns.name}",
            "address add 10.83.0.1/24 dev outlim0",
            "link set outlim0 up",
            f"link add outlim1 type veth peer name lan1 netns {self.ns.name}",
            "link set outlim1 up",
            f"link add link outlim1 name mv0 netns {self.ns.name} type macvlan mode bridge",
            f"link add link outlim1 name mt0 netns {self.ns.name} type macvtap mode bridge",
            # Or it takes the least of its ports' addresses, whichever those are.
            f"link add {BRIDGE} address 02:00:00:84:00:01 type bridge",
            f"address add 10.84.0.1/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ):
            host.ip(command)
        for tap in (TAP, OTHER_TAP):
            host.ip(f"tuntap add dev {tap} mode tap")
            host.ip(f"link set {tap} master {BRIDGE} up")
        self.ns.ip("address add 10.83.0.2/24 dev lan0")
        self.ns.ip("link set lan0 up")
        self.ns.settles()
        self.before = self.ns.state()
        self.tap_before = tap_state(TAP), host.state()[TAP]["qdiscs"]

    def start(self) -> None:
        config = self.tapwright.configuration(
            {"internetworking_model": self.model},
            template=self.tapwright.templates,
            rx_rate_limiter_max_rate=RX,
            tx_rate_limiter_max_rate=TX,
            file_mem_backend="/dev/shm",
        )
        words = "sandbox", "run", SANDBOX, "--netns", self.ns.path
        done = self.tapwright.run(*words, config=config)
        assert done.returncode == 0, done.stderr
        address = {"address": "10.84.0.2", "mask": "24"}
        self.kata("add-iface", interface(TAP, IPAddresses=[address]))
        if self.model == "none":
            for command in (
                "link add brnone type bridge",
                "link set brnone arp off up",
                "link set lan0 address 02:00:00:83:00:01 master brnone",
                f"link set {self.beside} master brnone",
            ):
                self.ns.ip(command)

    @property
    def index(self) -> int:
        return int(self.before["lan0"]["links"][0]["ifindex"])

    @property
    def beside(self) -> str:
        return f"tap{self.index}_kata"

    def received(self, host_address: str) -> float:
        """Bits a second at which the guest receives."""
        return self._measured(host_address, "cat > /dev/null", b"\0" * int(RX * SECONDS / 8))

    def sent(self, host_address: str) -> float:
        """Bits a second at which the guest sends."""
        return self._measured(host_address, f"head -c {int(TX * SECONDS / 8)} /dev/zero")

    def end(self) -> None:
        self.tapwright.run("sandbox", "delete", "--force", SANDBOX)

    def _measured(self, host_address: str, command: str, payload: bytes = b"") -> float:
        """What the host sends from its first byte to the guest's end of it; or what it receives
        after the first, until then."""
        with socket.create_server((host_address, PORT)) as listener:
            listener.settimeout(60)
            words = "sandbox", "exec", SANDBOX, "--", "nc", host_address, str(PORT)
            guest = self.tapwright.start(*words, "-e", "sh", "-c", command)
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(60)
                bits, start = 0, time.monotonic()
                if not payload:
                    start = emptied(connection)
                connection.sendall(payload)
                connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(1 << 16):
                    bits += 8 * len(data)
                took = time.monotonic() - start
            guest.communicate(timeout=60)
        return (bits + 8 * len(payload)) / took


def emptied(connection: socket.socket) -> float:
    """Take what has come so far, and something must have; a time before which all of that came. On
    a busy host much may have come before this process got to it."""
    connection.recv(1)
    connection.setblocking(False)
    is_over = False
    while not is_over:
        now = time.monotonic()
        try:
            is_over = not connection.recv(1 << 20)
        except BlockingIOError:
            is_over = True
    connection.settimeout(60)
    return now


@pytest.fixture(scope="module", params=["tcfilter", "macvtap", "none"])
def limited(
    request: pytest.FixtureRequest,
    tapwright: Tapwright,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Limited]:
    kata = Kata(tapwright, tmp_path_factory.mktemp("bin"), SANDBOX)
    with ExitStack() as undo:
        undo.callback(remove_from_host)
        ns = undo.enter_context(namespace(f"twtest-limits-{os.getpid()}"))
        sandbox = Limited(tapwright, kata, ns, request.param)
        sandbox.prepare()
        undo.callback(sandbox.end)
        sandbox.start()
        yield sandbox


def remove_from_host() -> None:
    for name in (TAP, OTHER_TAP, BRIDGE, "outlim0", "outlim1"):
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def is_held(measure: Callable[[str], float], address: str, limit: int) -> bool:
    """Never more, and not much less on a machine that has the time for it."""
    for _ in range(10):
        measured = measure(address)
        if measured >= 1.2 * limit:
            return False
        if measured > 0.5 * limit:
            return True
    return False


def is_free(measure: Callable[[str], float], address: str, limit: int) -> bool:
    """More than a limit would let through, in one of a few tries."""
    return any(measure(address) > 1.5 * limit for _ in range(10))


def test_rates_are_held(limited: Limited) -> None:
    assert is_held(limited.received, "10.83.0.1", RX)
    assert is_held(limited.sent, "10.83.0.1", TX)


def queues(ns: Namespace, *names: str) -> dict[str, set[str]]:
    state = ns.state()
    return {
        name: {qdisc["kind"] for qdisc in state[name]["qdiscs"]} & {"htb", "ingress"}
        for name in names
    }


def test_kernel_holds_them(limited: Limited) -> None:
    beside, ifb = limited.beside, f"ifb{limited.index}_kata"
    expected = {
        "tcfilter": {beside: {"htb", "ingress"}, "lan0": {"htb", "ingress"}},
        "macvtap": {beside: {"htb"}, "lan0": {"ingress"}, ifb: {"htb"}},
        "none": {beside: {"htb", "ingress"}, "lan0": set[str](), ifb: {"htb"}},
    }[limited.model]
    assert queues(limited.ns, *expected) == expected
    ifb = f"ifb{host.index(TAP)}_kata"
    assert queues(host, TAP, ifb) == {TAP: {"htb", "ingress"}, ifb: {"htb"}}
    assert f"rate {RX // 1_000_000}Mbit" in limited.ns.tc(f"class show dev {beside}") or (
        limited.model == "macvtap"
    )


ROOT, INGRESS, CLSACT = "root handle 1: pfifo", "ingress", "clsact"
IN_THE_WAY: dict[str, dict[str, tuple[str, ...]]] = {
    "tcfilter": {"lan1": (ROOT, INGRESS, CLSACT), OTHER_TAP: (ROOT, INGRESS, CLSACT)},
    "macvtap": {"lan1": (INGRESS, CLSACT), OTHER_TAP: (ROOT, INGRESS, CLSACT)},
    "none": {OTHER_TAP: (ROOT, INGRESS, CLSACT)},
}


@pytest.mark.parametrize("device", ["lan1", OTHER_TAP])
def test_traffic_control_of_others_stays(limited: Limited, device: str) -> None:
    place = limited.ns if device == "lan1" else host

    def seen() -> object:
        state = place.state()[device]
        return [state[what] for what in ("links", "qdiscs", "filters")]

    for at in IN_THE_WAY[limited.model].get(device, ()):
        place.tc(f"qdisc add dev {device} {at}")
        if at != ROOT:
            place.tc(f"filter add dev {device} ingress protocol all u32 match u8 0 0 flowid :1")
        before = seen()
        request = interface(device, name="eth-no", hwAddr="02:00:00:83:00:09")
        said = limited.kata.refused("add-iface", request)
        assert "traffic control" in said
        assert f"(tc qdisc show dev {device}); remove it first" in said
        assert eventually(lambda: seen() == before), at  # noqa: B023 - called at once
        assert f"ifb{place.index(device)}_kata" not in place.state()
        place.tc(f"qdisc delete dev {device} {at.partition(' ')[0]}")


def test_what_the_kernel_does_not_see(limited: Limited) -> None:
    request = interface("vhu0", name="eth-no", hwAddr="02:00:00:83:00:09")
    said = limited.kata.refused("add-iface", {**request, "vhostUserSocket": "/run/twtest.sock"})
    assert "set rx_rate_limiter_max_rate and tx_rate_limiter_max_rate to 0" in said


def test_what_a_macvtap_receives(limited: Limited) -> None:
    """Beside a macvlan it has no device before it at which to limit that."""
    refused = {"mt0": "limit it at its parent, and set rx_rate_limiter_max_rate = 0"}
    if limited.model == "macvtap":
        refused["mv0"] = "use the model tcfilter, or rx_rate_limiter_max_rate = 0"
    for device, reason in refused.items():
        request = interface(device, name="eth-no", hwAddr=limited.ns.mac(device))
        assert reason in limited.kata.refused("add-iface", request)
        assert limited.ns.state()[device] == limited.before[device]


def test_tap_of_the_host(limited: Limited) -> None:
    """And that nothing but the limits is slow."""
    assert is_held(limited.received, "10.84.0.1", RX)
    assert is_held(limited.sent, "10.84.0.1", TX)
    for which in ("root", "ingress"):
        host.tc(f"qdisc delete dev {TAP} {which}")
    assert is_free(limited.received, "10.84.0.1", RX)
    assert is_free(limited.sent, "10.84.0.1", TX)


def test_nothing_is_left(limited: Limited) -> None:
    """Also where somebody has taken a limit away, or the interface. The last one, for it ends the
    sandbox."""
    limited.ns.ip("link set lan1 up")
    for number, (device, peer) in enumerate({"lan1": "outlim1", OTHER_TAP: OTHER_TAP}.items()):
        request = interface(device, name=f"gone{number}", hwAddr=f"02:00:00:83:01:0{number}")
        limited.kata("add-iface", {**request, "IPAddresses": []})
        host.ip(f"link delete {peer}")
    limited.tapwright.delete(SANDBOX)
    if limited.model == "none":
        limited.ns.ip("link delete brnone")
        limited.ns.ip(f"link set lan0 address {limited.before['lan0']['links'][0]['address']}")
    before = {name: limited.before[name] for name in ("lo", "lan0")}
    eventually(lambda: limited.ns.state() == before)
    assert limited.ns.state() == before
    # A port of a bridge takes a moment.
    eventually(lambda: tap_state(TAP) == limited.tap_before[0])
    assert (tap_state(TAP), host.state()[TAP]["qdiscs"]) == limited.tap_before
    assert not [name for name in host.state() if name.startswith("ifb")]
