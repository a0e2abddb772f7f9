"""The kernel's table of connections, with real ones in a namespace."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tapwright.linux import conntrack, netns
from tapwright.linux.conntrack import ASSURED, SEEN_REPLY, Connection
from tests.host import eventually

ADDRESSES = "10.9.0.1", "10.9.0.2", "fd00::1"
PORT = 8080
_RULES = "table inet t { chain c { type filter hook input priority 0; ct state new accept; }; }"
_ESTABLISHED = 3


@pytest.fixture
def connections(scratch_netns: str) -> Iterator[None]:
    """This thread is in a namespace with a connection to each address, and datagrams to the
    first."""
    with netns.entered(scratch_netns), ExitStack() as opened:
        for words in (
            "ip link set lo up",
            *(f"ip address add {address} dev lo" for address in ADDRESSES[:2]),
            f"ip address add {ADDRESSES[2]} dev lo nodad",
        ):
            subprocess.run(words.split(), check=True)
        # The kernel tracks connections where a rule asks for their state.
        subprocess.run(["nft", _RULES], check=True)
        for address in ADDRESSES:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            opened.enter_context(socket.create_server((address, PORT), family=family))
            opened.enter_context(connected(address))
        for port in (5001, 5002):
            sending = opened.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            sending.sendto(b"x", (ADDRESSES[0], port))
        yield


def connected(address: str) -> socket.socket:
    """A connection. The kernel makes the route to an address of IPv6's a moment after that."""
    found: list[socket.socket] = []

    def connect() -> bool:
        with suppress(OSError):
            found.append(socket.create_connection((address, PORT)))
        return bool(found)

    assert eventually(connect)
    return found[0]


def ports(found: list[Connection]) -> list[int]:
    return sorted(connection.original.destination_port for connection in found)


def test_connections_to_an_address_go(connections: None) -> None:
    (gone,) = conntrack.remove(ADDRESSES[0], socket.IPPROTO_TCP)
    assert (gone.protocol, gone.state) == (socket.IPPROTO_TCP, _ESTABLISHED)
    assert gone.status & SEEN_REPLY
    assert gone.status & ASSURED
    assert gone.seconds > 3600
    there, back = gone.original, gone.reply
    assert (there.destination, there.destination_port) == (ADDRESSES[0], PORT)
    assert (back.source, back.source_port) == (ADDRESSES[0], PORT)
    assert (back.destination, back.destination_port) == (there.source, there.source_port)
    assert conntrack.remove(ADDRESSES[0], socket.IPPROTO_TCP) == []
    # And all others are there.
    assert ports(conntrack.remove(ADDRESSES[0], socket.IPPROTO_UDP)) == [5001, 5002]
    assert ports(conntrack.remove(ADDRESSES[1], socket.IPPROTO_TCP)) == [PORT]


def test_of_ipv6_however_it_is_written(connections: None) -> None:
    (gone,) = conntrack.remove("fd00:0::01", socket.IPPROTO_TCP)
    assert gone.original.destination == ADDRESSES[2]


def test_without_any(scratch_netns: str) -> None:
    with netns.entered(scratch_netns):
        assert conntrack.remove("10.0.0.1", socket.IPPROTO_TCP) == []
