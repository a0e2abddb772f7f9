"""What two guests of one template must not have in common, though all that can be the same is: MAC
address, addresses, and what they do."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent.requests import of
from tapwright.hypervisor.backends import Tap
from tapwright.hypervisor.machine import Machine
from tapwright.linux import addresses, links, netns, tuntap
from tapwright.linux.addresses import Address
from tapwright.linux.netlink import Netlink
from tests.guests import MAC, Alone, restored, run
from tests.hypervisor.test_template import made

TICK = 64e-9  # seconds a sequence number of TCP (net/core/secure_seq.c)

# Prints what the guest draws, a JSON object.
LOOK = """
import json, os, socket, sys, time
sys.path.append("/usr/lib/tapwright")
from tapwright.linux import addresses, links
from tapwright.linux.addresses import Address
from tapwright.linux.netlink import Netlink

IPV6 = "/proc/sys/net/ipv6/conf/lan0/"
MANAGETEMPADDR = 0x100  # include/uapi/linux/if_addr.h


def write(path, content):
    with open(path, "w") as file:
        file.write(content)


def identifiers():
    with open("/proc/net/if_inet6") as file:
        lines = [line.split() for line in file]
    return sorted(line[0] for line in lines if line[5] == "lan0")


def connected(port, own_port=0):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("10.1.0.2", own_port)) if own_port else None
        s.setblocking(False)
        s.connect_ex(("10.1.0.1", port))
        return s.getsockname()[1]


def bound():
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        s.bind(("", 0))
        return s.getsockname()[1]


found = {"tcp ports": [connected(port) for port in (9, 10, 11)]}
for own in range(40000, 40004):
    for _ in range(2):
        connected(9, own)  # whose sequence numbers are looked at
found["udp ports"] = [bound() for _ in range(3)]
found["random numbers"] = os.getrandom(16).hex()
with open("/proc/sys/kernel/random/boot_id") as file:
    found["boot id"] = file.read()
write(IPV6 + "addr_gen_mode", "3")  # a secret of its own (RFC 7217)
deadline = time.monotonic() + 60
while not (stable := [one for one in identifiers() if not one.endswith("fffe00005a")]):
    assert time.monotonic() < deadline
    time.sleep(0.02)  # until the kernel has taken note of the carrier
found["stable identifier"] = stable
write(IPV6 + "use_tempaddr", "2")
with Netlink() as nl:
    (index,) = [link.index for link in links.listing(nl) if link.name == "lan0"]
    addresses.add(nl, index, Address("fd77::2", 64, flags=MANAGETEMPADDR))
    found["temporary address"] = [
        one for one in identifiers() if one.startswith("fd77") and not one.endswith("02")
    ]
print(json.dumps(found))
"""


@dataclass
class Twin:
    """What was seen of one: what it drew itself, and the sequence numbers of two connections from
    each of some ports."""

    drawn: dict[str, Any]
    sequence: dict[int, list[int]]


async def look_at(machine: Machine, templates: Path, holders: Alone) -> Twin:
    space = netns.nameless()
    path = f"/proc/self/fd/{space}"
    with netns.entered(path), Netlink() as nl:
        tap = tuntap.create("twt0")
        link = links.named(nl, "twt0")
        addresses.add(nl, link.index, Address("10.1.0.1", 24))
        links.set_up(nl, link.index)
        links.set_up(nl, 1)
        capture = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    address = {"address": "10.1.0.2", "prefix_length": 24}
    with contextlib.closing(capture):
        async with restored(machine, templates, holders) as (qemu, agent):
            await qemu.nics.plug(Tap([tap]), MAC)
            for fd in (tap, space):
                os.close(fd)
            await agent.call(of("set_interface", mac=MAC, name="lan0", addresses=[address]))
            await agent.call(of("set_clock", seconds=time.time()))
            reply, output = await run(agent, "python3", "-I", "-S", "-c", LOOK)
            assert reply == {"status": 0}, output
            return Twin(json.loads(output), sequence_numbers(capture))


def sequence_numbers(capture: socket.socket) -> dict[int, list[int]]:
    """Of the SYNs from each of those ports."""
    capture.setblocking(False)
    found: dict[int, list[int]] = {}
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, sender = capture.recvfrom(2000)
            if sender[2] == socket.PACKET_HOST and packet[9] == socket.IPPROTO_TCP:
                port, _, number = struct.unpack_from("!HHI", packet, 20)
                if 40000 <= port < 40004 and packet[33] == 2:
                    found.setdefault(port, []).append(number)
    return found


def distance(earlier: int, later: int) -> int:
    return (later - earlier) % 2**32


@pytest.fixture(scope="module")
def twins(machine: Machine, session_templates: Path) -> tuple[Twin, Twin, float]:
    """Two of them, and how many ticks have passed at most between what they did."""
    asyncio.run(made(machine, session_templates))
    holders = Alone()

    async def of_two() -> list[Twin]:
        return [await look_at(machine, session_templates, holders) for _ in range(2)]

    start = time.monotonic()
    one, other = asyncio.run(of_two())
    return one, other, (time.monotonic() - start) / TICK


@pytest.mark.parametrize(
    "what",
    [
        "random numbers",
        "boot id",
        "tcp ports",
        "udp ports",
        "stable identifier",
        "temporary address",
    ],
)
def test_drawn_by_each(twins: tuple[Twin, Twin, float], what: str) -> None:
    one, other, _ = twins
    print(one.drawn[what], other.drawn[what])
    assert one.drawn[what]
    assert len(one.drawn[what]) == len(other.drawn[what])
    assert one.drawn[what] != other.drawn[what]


def test_sequence_numbers_of_tcp(twins: tuple[Twin, Twin, float]) -> None:
    """Between the same addresses and ports they come of different secrets. So the two are far from
    each other, but for one port in thirty, by chance; not for all."""
    one, other, most = twins
    for earlier, later in (*one.sequence.values(), *other.sequence.values()):
        assert 0 < distance(earlier, later) < most  # of one secret: only time has passed
    pairs = [(one.sequence[port][0], other.sequence[port][0]) for port in range(40000, 40004)]
    assert any(most < distance(*pair) < 2**32 - most for pair in pairs)
