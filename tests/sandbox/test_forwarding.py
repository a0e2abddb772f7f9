"""Who connects to loopback in a sandbox's network namespace reaches the program in the guest."""

import hashlib
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO

import pytest

from tapwright.linux import netns
from tests.host import eventually
from tests.sandboxes import Networks, Tapwright, ended, pids_of

_MIB = 1 << 20
_RESET = struct.pack("ii", 1, 0)  # struct linger (socket(7))
_LOOPBACK = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}

# What each port does is in `SERVICES`; what it tells goes to stdout, a line each.
SERVER = r"""
import socket, struct, sys, threading

def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)

def peer(connection):
    connection.sendall(connection.getpeername()[0].encode())

def first(connection):
    "Ends its own direction first, and tells how much came then."
    connection.sendall(b"that is all")
    connection.shutdown(socket.SHUT_WR)
    count = 0
    while data := connection.recv(65536):
        count += len(data)
    print("came", count, flush=True)

def reset(connection):
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

def listen(connection):
    try:
        while connection.recv(65536):
            pass
        print("ended", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)

def flood(connection):
    while True:
        connection.sendall(bytes(65536))

def idle(connection):
    "Never reads."
    threading.Event().wait()

def serve(connection, service):
    try:
        service(connection)
    except OSError:
        pass
    connection.close()

def accept(listener, service):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, service), daemon=True).start()

for word in sys.argv[1:]:
    address, port, service = word.split(",")
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, int(port)))
    listener.listen(200)
    threading.Thread(target=accept, args=(listener, globals()[service]), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""
ANY, SIX, FOUR, PEER, FIRST, RESET, LISTEN, FLOOD, IDLE, LAST = (1, *range(8001, 8009), 65535)
SERVICES = (
    *(f"::,{ANY},echo", f"::1,{SIX},echo", f"127.0.0.1,{FOUR},echo", f"0.0.0.0,{PEER},peer"),
    *(f"127.0.0.1,{FIRST},first", f"127.0.0.1,{RESET},reset", f"127.0.0.1,{LISTEN},listen"),
    *(f"127.0.0.1,{FLOOD},flood", f"127.0.0.1,{IDLE},idle", f"127.0.0.1,{LAST},echo"),
)


class Program:
    """The server that runs in a guest, and what it has reported."""

    def __init__(self, tapwright: Tapwright, sandbox: str, *services: str) -> None:
        argv = ("python3", "-I", "-S", "-c", SERVER, *services)
        self._running = tapwright.start("sandbox", "exec", sandbox, "--", *argv)
        assert self._running.stdout
        self.stdout: IO[str] = self._running.stdout
        assert self.told() == "ready"

    def told(self) -> str:
        return self.stdout.readline().strip()

    def end(self) -> None:
        self._running.terminate()
        self._running.communicate(timeout=60)


class Guest:
    def __init__(self, tapwright: Tapwright, name: str) -> None:
        self.tapwright = tapwright
        self.name = name
        self.path = netns.path_of(f"tapwright-{name}")

    def dial(self, port: int, version: int = 4, address: str = "") -> socket.socket:
        """As containerd does: connect in the namespace. Raises ConnectionRefusedError."""
        family, loopback = _LOOPBACK[version]
        with netns.entered(self.path):
            connection = socket.socket(family)
        connection.settimeout(60)
        try:
            connection.connect((address or loopback, port))
        except BaseException:
            connection.close()
            raise
        return connection

    def listens(self, port: int, version: int = 4) -> bool:
        return (_LOOPBACK[version][1], port) in self.listening()

    def listening(self) -> set[tuple[str, int]]:
        """(address, port) of what listens in the namespace by TCP."""
        with netns.entered(self.path):
            listed = subprocess.run(
                ["ss", "-Htln"], check=True, capture_output=True, text=True
            ).stdout
        places = [line.split()[3].rpartition(":") for line in listed.splitlines()]
        return {(address.strip("[]"), int(port)) for address, _, port in places}


@pytest.fixture(scope="module")
def guest(tapwright: Tapwright) -> Iterator[Guest]:
    tapwright.json("sandbox", "run", "loop", "--network", "dual")
    yield Guest(tapwright, "loop")
    tapwright.delete("loop")


@pytest.fixture(scope="module")
def program(guest: Guest) -> Iterator[Program]:
    program = Program(guest.tapwright, guest.name, *SERVICES)
    # Each is listened to on its own.
    four = {(_LOOPBACK[4][1], port) for port in (ANY, *range(FOUR, IDLE + 1), LAST)}
    six = {(_LOOPBACK[6][1], port) for port in (ANY, SIX)}
    assert eventually(lambda: four | six <= guest.listening()), guest.listening()
    yield program
    program.end()


def received(connection: socket.socket) -> bytes:
    """All until the end."""
    found = bytearray()
    while data := connection.recv(_MIB):
        found += data
    return bytes(found)


@pytest.mark.parametrize(("port", "version"), [(ANY, 4), (ANY, 6), (SIX, 6), (FOUR, 4), (LAST, 4)])
def test_is_reached_where_it_listens(
    guest: Guest, program: Program, port: int, version: int
) -> None:
    with guest.dial(port, version) as connection:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert received(connection) == b"hello"


def test_name_as_containerd_dials_it(guest: Guest, program: Program) -> None:
    with netns.entered(guest.path):
        connection = socket.create_connection(("localhost", FOUR), timeout=60)
    with connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"


@pytest.mark.parametrize(("port", "version"), [(SIX, 4), (FOUR, 6), (9999, 4), (9999, 6)])
def test_is_refused_where_nothing_listens(
    guest: Guest, program: Program, port: int, version: int
) -> None:
    with pytest.raises(ConnectionRefusedError):
        guest.dial(port, version)


def test_program_sees_loopback(guest: Guest, program: Program) -> None:
    with guest.dial(PEER) as connection:
        assert received(connection) == b"127.0.0.1"


def test_only_loopback_is_listened_on(guest: Guest, program: Program) -> None:
    assert {address for address, _ in guest.listening()} == {"127.0.0.1", "::1"}
    with pytest.raises(ConnectionRefusedError):
        guest.dial(PEER, address="127.0.0.2")


def test_other_addresses_go_by_the_nic(guest: Guest, program: Program, networks: Networks) -> None:
    (address,) = [address for address in networks.leased("dual") if "." in address]
    with socket.create_connection((address, PEER), timeout=60) as connection:
        assert received(connection) == b"10.91.0.1"


def test_hundred_at_once(guest: Guest, program: Program) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(guest.dial(ANY)) for _ in range(100)]
        for number, connection in enumerate(connections):
            connection.sendall(b"number %d" % number)
        for number, connection in enumerate(connections):
            assert connection.recv(100) == b"number %d" % number


def test_program_ends_its_direction_first(guest: Guest, program: Program) -> None:
    with guest.dial(FIRST) as connection:
        assert received(connection) == b"that is all"
        connection.sendall(bytes(300_000))
    assert program.told() == "came 300000"


@pytest.mark.parametrize("version", [4, 6])
def test_much_passes_whole_both_ways_at_once(guest: Guest, program: Program, version: int) -> None:
    data = os.urandom(20 * _MIB)

    def send() -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    with guest.dial(ANY, version) as connection:
        sending = threading.Thread(target=send)
        sending.start()
        answer = received(connection)
        sending.join()
    assert len(answer) == len(data)
    assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()


def test_program_resets(guest: Guest, program: Program) -> None:
    with guest.dial(RESET) as connection:
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


@pytest.mark.parametrize("is_reset", [True, False])
def test_program_learns_how_a_connection_ends(
    guest: Guest, program: Program, is_reset: bool
) -> None:
    connection = guest.dial(LISTEN)
    connection.sendall(b"x")
    if is_reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
    assert program.told() == ("reset" if is_reset else "ended")


def test_nobody_reads(guest: Guest, program: Program) -> None:
    """What nobody reads stays where it is, and others go on."""
    supervisor, _ = pids_of(guest.tapwright.json("sandbox", "inspect", guest.name))
    before = _memory(supervisor)
    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(guest.dial(FLOOD))
        unread = stack.enter_context(guest.dial(IDLE))
        unread.settimeout(3)
        with pytest.raises(TimeoutError):
            _send_for_good(unread)
        assert guest.tapwright.exec(guest.name, "echo", "there") == "there\n"
        # A window each, and what asyncio has for a connection.
        assert _memory(supervisor) - before < 12 * _MIB
        # Reset while nothing moves.
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    assert eventually(lambda: not _established(guest))


def test_what_the_namespace_has_is_its_own(guest: Guest) -> None:
    with netns.entered(guest.path):
        own = socket.create_server(("127.0.0.1", 8100))
    with own:
        program = Program(guest.tapwright, guest.name, "127.0.0.1,8100,echo", "127.0.0.1,8101,echo")
        try:
            assert eventually(lambda: guest.listens(8101))
            with guest.dial(8100) as connection, closing(own.accept()[0]) as accepted:
                accepted.sendall(b"ours")
                assert connection.recv(100) == b"ours"
            own.close()
            assert eventually(lambda: _echoes(guest, 8100))
        finally:
            program.end()
    assert eventually(lambda: not guest.listens(8100) and not guest.listens(8101))


def test_agent_that_dies_ends_connections(guest: Guest) -> None:
    program = Program(guest.tapwright, guest.name, "127.0.0.1,8200,echo")
    assert eventually(lambda: _echoes(guest, 8200))
    with guest.dial(8200) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        guest.tapwright.run("sandbox", "exec", guest.name, "--", "sh", "-c", "kill -9 $PPID")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    program.end()
    # What is sent before the next agent has begun ends with the one before it.
    begins = "sandbox", "exec", guest.name, "--", "true"
    assert eventually(lambda: guest.tapwright.run(*begins).returncode == 0)
    program = Program(guest.tapwright, guest.name, "127.0.0.1,8201,echo")
    assert eventually(lambda: _echoes(guest, 8201))
    program.end()


def test_end_with_a_killed_supervisor(
    tapwright: Tapwright, networks: Networks, nothing_left: None
) -> None:
    tapwright.json("sandbox", "run", "killed")
    guest = Guest(tapwright, "killed")
    program = Program(tapwright, "killed", "127.0.0.1,8300,echo")
    assert eventually(lambda: _echoes(guest, 8300))
    supervisor, _ = pids_of(tapwright.json("sandbox", "inspect", "killed"))
    os.kill(supervisor, signal.SIGKILL)
    assert ended(supervisor)
    assert eventually(lambda: not guest.listening())
    program.end()
    tapwright.delete("killed")


def _send_for_good(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(_MIB))


def _echoes(guest: Guest, port: int) -> bool:
    try:
        with guest.dial(port) as connection:
            connection.sendall(b"x")
            return connection.recv(1) == b"x"
    except ConnectionError:
        return False


def _memory(pid: int) -> int:
    """Bytes that a process has for itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kib,) = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    return int(kib) * 1024


def _established(guest: Guest) -> str:
    """Connections in the namespace of which both ends are there."""
    with netns.entered(guest.path):
        command = ["ss", "-Htn", "state", "established"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
