"""Many sandboxes of one template at once, and what distinguishes them on their network."""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.amounts import amount
from tests.host import answers_ping
from tests.sandbox.test_template import is_restored
from tests.sandboxes import Tapwright

COUNT, AT_ONCE = amount(8, 50), 4
NETWORK, BRIDGE = "small", "br-small"
ETH_P_ALL, ETH_P_ARP, ETH_P_RARP = 3, 0x0806, 0x8035
DISCOVER = b"\x35\x01\x01"  # option 53, DHCP message type

IDENTITY = (
    "cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; od -An -tx1 -N16 /dev/urandom"
)
# Nobody answers. The script would set the address.
ASK = "udhcpc -f -n -q -t 2 -T 1 -i eth0 -s /bin/true"

Sandbox = dict[str, Any]


@pytest.fixture
def cleared(nothing_left: None, tapwright: Tapwright) -> Iterator[None]:
    yield
    tapwright.delete_all()


def run(tapwright: Tapwright, name: str) -> Sandbox:
    done = tapwright.run("sandbox", "run", name, "--network", NETWORK, "--json")
    assert done.returncode == 0, done.stderr
    sandbox: Sandbox = json.loads(done.stdout)
    return sandbox


def address_of(sandbox: Sandbox) -> str:
    (address,) = sandbox["interfaces"][0]["addresses"]
    return str(address.partition("/")[0])


def macs_of(sandboxes: list[Sandbox]) -> set[str]:
    return {sandbox["interfaces"][0]["mac"] for sandbox in sandboxes}


@pytest.mark.large
def test_many_at_once(tapwright: Tapwright, cleared: None) -> None:
    names = [f"many-{number}" for number in range(COUNT)]
    with ThreadPoolExecutor(AT_ONCE) as workers:
        sandboxes = list(workers.map(lambda name: run(tapwright, name), names))
        assert all(map(is_restored, sandboxes))
        assert len(set(map(address_of, sandboxes))) == len(macs_of(sandboxes)) == COUNT
        assert all(workers.map(answers_ping, map(address_of, sandboxes)))
        said = workers.map(lambda name: tapwright.exec(name, "sh", "-c", IDENTITY), names)
        boot_ids, machine_ids, hostnames, drawn = zip(
            *(text.splitlines() for text in said), strict=True
        )
        assert hostnames == tuple(names)
        assert len(set(boot_ids)) == len(set(machine_ids)) == len(set(drawn)) == COUNT
        assert all(
            re.fullmatch("[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", i) for i in machine_ids
        )
        list(workers.map(tapwright.delete, names))


def test_identities_on_the_wire(tapwright: Tapwright, cleared: None) -> None:
    """What the guests announce of themselves, and say to a DHCP server."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as capture:
        capture.bind((BRIDGE, ETH_P_ALL))
        sandboxes = [run(tapwright, name) for name in ("alpha", "beta")]
        for sandbox in sandboxes:
            asked = tapwright.exec_with_status(sandbox["id"], *ASK.split())
            assert "broadcasting discover" in asked.stderr, asked
        frames = list(captured(capture))
    macs = {bytes.fromhex(mac.replace(":", "")) for mac in macs_of(sandboxes)}
    ips = {socket.inet_aton(address_of(sandbox)) for sandbox in sandboxes}
    assert len(macs) == len(ips) == 2
    announced = {(frame[22:28], frame[28:32]) for frame in frames if is_announcement(frame)}
    assert {mac for mac, _ in announced} == macs
    assert {ip for _, ip in announced} == ips
    assert len(announced) == 2
    assert ETH_P_RARP not in map(ethertype, frames)  # QEMU's own announcements
    discovers = [Discover(frame) for frame in frames if DISCOVER in frame[278:]]
    assert {discover.hardware for discover in discovers} == macs
    assert {discover.client for discover in discovers} == {b"\x01" + mac for mac in macs}
    assert len({discover.transaction for discover in discovers}) == 2


class Discover:
    """A DHCPDISCOVER (RFC 2131, section 2): Ethernet, IPv4 without options, UDP, then the message,
    whose options follow its cookie."""

    def __init__(self, frame: bytes) -> None:
        message = frame[14 + 20 + 8 :]
        self.transaction = message[4:8]
        self.hardware = message[28:34]
        options = message[240:]
        self.client = b""
        while options and options[0] != 255:
            code, length = options[:2]
            if code == 61:
                self.client = options[2 : 2 + length]
            options = options[2 + length :]


def is_announcement(frame: bytes) -> bool:
    """Whether a guest announces its own address (RFC 5227, section 3)."""
    return ethertype(frame) == ETH_P_ARP and frame[28:32] == frame[38:42]


def ethertype(frame: bytes) -> int:
    return int.from_bytes(frame[12:14], "big")


def captured(capture: socket.socket) -> Iterator[bytes]:
    capture.setblocking(False)
    while True:
        try:
            frame, sender = capture.recvfrom(2000)
        except BlockingIOError:
            return
        if sender[2] != socket.PACKET_OUTGOING:
            yield frame
