"""Sockets of the host that are mounts of a container, by runc and by Tapwright: no difference."""

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.host import eventually
from tests.oci.conftest import Run

pytestmark = pytest.mark.usefixtures("nothing_left")

PROGRAMS = [
    {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
    for path in ("/usr", "/lib", "/lib64")
]
SECONDS = 60
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h

Deed = Callable[[socket.socket], object]


class Server:
    """A socket of the host. It does a deed for each connection, and notes what came of it."""

    def __init__(self, path: Path, deed: Deed, mode: int = 0o666) -> None:
        self.path = path
        self.noted: list[Any] = []
        self._deed = deed
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        path.chmod(mode)
        # With timeouts, a connection to a full queue fails at once.
        self._socket.listen(16)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        serving = []
        with suppress(OSError):  # nobody listens any more
            while True:
                connection, _ = self._socket.accept()
                connection.settimeout(SECONDS)
                serving.append(threading.Thread(target=self._do, args=(connection,)))
                serving[-1].start()
        for each in serving:
            each.join()

    def _do(self, connection: socket.socket) -> None:
        with connection:
            try:
                self.noted.append(self._deed(connection))
            except OSError as error:
                self.noted.append(type(error).__name__)

    def listen_no_more(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def close(self) -> None:
        self.listen_no_more()
        self._thread.join()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def count(connection: socket.socket) -> int:
    """Say at the end how much came, which is known only if the end was heard."""
    length = 0
    while data := connection.recv(1 << 16):
        length += len(data)
    connection.sendall(str(length).encode())
    return length


def hang_up(connection: socket.socket) -> None:
    """Take one byte, and leave the rest."""
    connection.recv(1)


def say_all(connection: socket.socket) -> None:
    """Say an end, and listen on."""
    connection.sendall(b"said")
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(100) == b"heard"


def talk(connection: socket.socket) -> None:
    """To somebody who does not listen."""
    while True:
        connection.sendall(bytes(1 << 16))


def notice(connection: socket.socket) -> bytes:
    """Reads only when the other has gone."""
    looking = select.poll()
    looking.register(connection, 0)
    looking.poll(SECONDS * 1000)
    return connection.recv(100)


def ask_who(connection: socket.socket) -> tuple[int, ...]:
    """The user, the group, and further groups."""
    connection.recv(1)
    _, *ids = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 100)
    return (*ids, *struct.unpack(f"{len(groups) // 4}I", groups))


CLIENT = """
import errno, hashlib, os, select, socket, stat, sys, threading, time

def connected(name):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect("/run/" + name)
    return connection

def received(connection):
    found = b""
    while data := connection.recv(1 << 16):
        found += data
    return found

def failure(deed):
    try:
        deed()
    except OSError as error:
        return errno.errorcode[error.errno]

def gone(connection):
    looking = select.poll()
    looking.register(connection, 0)
    return bool(looking.poll(60000)[0][1] & select.POLLHUP)

for name in sorted(os.listdir("/run")):
    found = os.stat("/run/" + name)
    print(name, stat.S_ISSOCK(found.st_mode), oct(found.st_mode), found.st_uid, found.st_gid)

content = os.urandom(1000) * 600
echoed = []

def echo():
    with connected("echo") as connection:
        writing = threading.Thread(
            target=lambda: (connection.sendall(content), connection.shutdown(socket.SHUT_WR))
        )
        writing.start()
        echoed.append(received(connection) == content)
        writing.join()

several = [threading.Thread(target=echo) for _ in range(3)]
[each.start() for each in several]
[each.join() for each in several]
print("echoed", echoed)

with connected("count") as connection:
    connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)
    print("counted", received(connection))
with connected("count") as connection:
    connection.sendall(b"gone at once")

with connected("hang_up") as connection:
    connection.sendall(b"1")
    print("hung up", gone(connection), received(connection))
    print(failure(lambda: connection.sendall(b"more")))

with connected("say_all") as connection:
    print(received(connection))
    connection.sendall(b"heard")
    print(gone(connection))

with connected("talk") as connection:
    connection.sendall(b"?")
    connection.recv(100)
with connected("notice") as connection:
    connection.sendall(b"said")

print(failure(lambda: connected("dead")), failure(lambda: connected("echo").connect("/run/log")))
with connected("ask_who") as connection:
    connection.sendall(b"?")
    received(connection)
if not os.fork():
    os.setgroups([7, 8])
    os.setgid(1001)
    os.setuid(1000)
    print("another user", [failure(lambda: connected(name)) for name in ("secret", "hang_up")])
    with connected("ask_who") as connection:
        connection.sendall(b"?")
        received(connection)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        print(failure(lambda: log.sendto(b"by another", "/run/log")))
    sys.exit()
os.wait()

with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
    log.connect("/run/log")
    for size in (5, 0, 100_000, 1):
        log.send(bytes(size))
    for number in range(300):
        log.send(b"%d" % number)
    print(failure(lambda: log.send(bytes(1 << 20))))

with connected("last") as connection:
    received(connection)
# The first ones after the end of a listener may still be taken, and end at once.
while failure(lambda: received(connected("last"))) != "ECONNREFUSED":
    pass
print(failure(lambda: connected("last")))

# What is on its way when a container ends is lost with its VM.
with connected("wait") as connection:
    print(received(connection))
"""


@contextmanager
def _log(path: Path) -> Iterator[list[tuple[int, ...]]]:
    """The sizes of datagrams that have come, with their senders' users and groups."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(path))
        path.chmod(0o622)
        log.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sizes: list[tuple[int, ...]] = []

        def hear() -> None:
            while True:
                data, sent_with, *_ = log.recvmsg(1 << 20, 100)
                if data == b"end":
                    break
                _, *ids = struct.unpack("iII", sent_with[0][2])
                sizes.append((len(data), *ids))

        hearing = threading.Thread(target=hear)
        hearing.start()
        try:
            yield sizes
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ending:
                ending.sendto(b"end", str(path))
            hearing.join()


# How many connections each server has had at the end.
EXPECTED = {
    "echo": 4,
    "count": 2,
    "hang_up": 2,
    "say_all": 1,
    "talk": 1,
    "notice": 1,
    "ask_who": 2,
}
DATAGRAMS = 305


@contextmanager
def served(directory: Path) -> Iterator[dict[str, Any]]:
    """What comes to the sockets in a directory, by their names."""
    deeds = (echo, count, hang_up, say_all, talk, notice, ask_who)
    servers = {deed.__name__: Server(directory / deed.__name__, deed) for deed in deeds}
    os.chown(servers["say_all"].path, 12, 34)
    Server(directory / "dead", echo).close()
    with _log(directory / "log") as sizes:

        def wait(_: socket.socket) -> None:
            """Until all that was sent has come."""

            def is_all() -> bool:
                counts = {name: len(servers[name].noted) for name in EXPECTED}
                return counts == EXPECTED and len(sizes) == DATAGRAMS

            assert eventually(is_all)

        servers["secret"] = Server(directory / "secret", echo, mode=0o600)
        servers["wait"] = Server(directory / "wait", wait)
        servers["last"] = Server(
            directory / "last", lambda _: servers["last"].listen_no_more(), mode=0o666
        )
        found: dict[str, Any] = {"log": sizes}
        try:
            yield found
        finally:
            for name, server in servers.items():
                server.close()
                found[name] = server.noted


IN_A_DIRECTORY = """
import errno, functools, os, socket, stat, time

print = functools.partial(print, flush=True)

def asked(name):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        try:
            connection.connect(name)
            connection.sendall(b"?")
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(100)
        except OSError as error:
            return errno.errorcode[error.errno]

def wait(name, answer):
    end = time.monotonic() + 60
    while asked(name) != answer and time.monotonic() < end:
        time.sleep(0.01)
    print(name, asked(name))

def tell(name):
    open(name, "w").close()

for name in ("first", "deep/first", "dead", "read-only/first"):
    found = os.stat("/srv/" + name)
    print(name, stat.S_ISSOCK(found.st_mode), oct(found.st_mode), found.st_uid, found.st_gid)
os.chdir("/srv")
print(asked("first"), asked("deep/first"), asked("dead"), asked("read-only/first"))
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
    log.sendto(b"datagram", "log")
if not os.fork():
    os.setuid(1000)
    print("another user", asked("secret"), asked("first"))
    os._exit(0)
os.wait()

# A container's own sockets are its own, also where another one was.
os.unlink("dead")
for name in ("mine", "dead"):
    own = socket.socket(socket.AF_UNIX)
    own.bind(name)
    own.listen()
    if not os.fork():
        own.accept()[0].send(b"own")
        os._exit(0)
    print(name, asked(name), os.wait()[1])

tell("deep/wanted")
wait("deep/later", b"later")
wait("new/later", b"later")
wait("first", b"second")
wait("secret", b"secret")
os.chdir("/")
print("its mode", oct(os.stat("/srv/secret").st_mode))
tell("/srv/deep/over")
wait("/srv/deep/later", "ENOENT")
print(sorted(os.listdir("/srv/deep")))
"""


def say(word: str) -> Deed:
    """One word."""

    def deed(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(word.encode())

    return deed


@contextmanager
def changing(directory: Path) -> Iterator[list[bytes]]:
    """Sockets in a directory, of which a container at work there gets new ones; the datagrams that
    have come to one of them."""
    came: list[bytes] = []
    with ExitStack() as serving:

        def serve(name: str, word: str, mode: int = 0o666) -> Server:
            server = Server(directory / name, say(word), mode)
            serving.callback(server.close)
            return server

        (directory / "deep").mkdir()
        (directory / "read-only").mkdir()
        first = serve("first", "first")
        serve("deep/first", "deep", 0o640)
        serve("read-only/first", "read-only")
        secret = serve("secret", "secret", 0o600)
        Server(directory / "dead", echo).close()
        log = serving.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        log.bind(str(directory / "log"))
        log.settimeout(SECONDS)

        def change() -> None:
            came.append(log.recv(100))
            assert eventually((directory / "deep/wanted").exists)
            (directory / "new").mkdir()
            later = serve("deep/later", "later")
            serve("new/later", "later")
            first.path.unlink()
            first.listen_no_more()
            serve("first", "second")
            secret.path.chmod(0o606)
            assert eventually((directory / "deep/over").exists)
            later.path.unlink()

        changes = threading.Thread(target=change)
        changes.start()
        try:
            yield came
        finally:
            changes.join()


def test_sockets_of_the_host(by_runc: Run, by_us: Run, tmp_path: Path) -> None:
    came = []
    for name, run in (("runc", by_runc), ("us", by_us)):
        directory, whole = tmp_path / name, tmp_path / f"{name}-whole"
        directory.mkdir()
        whole.mkdir()
        with served(directory) as found, changing(whole) as datagrams:
            mounts = [
                {
                    "destination": f"/run/{each.name}",
                    "type": "bind",
                    "source": str(each),
                    "options": ["rbind", "ro"] if each.name == "count" else ["rbind"],
                }
                for each in directory.iterdir()
            ]
            mounts += [
                {
                    "destination": f"/srv{below}",
                    "type": "bind",
                    "source": f"{whole}{below}",
                    "options": ["rbind", access],
                }
                for below, access in (("", "rw"), ("/read-only", "ro"))
            ]
            # What is on its way when a container ends is lost with its VM: the second one waits.
            said = run("python3", "-c", IN_A_DIRECTORY + CLIENT, mounts=[*PROGRAMS, *mounts])
        came.append((said, found, datagrams))
    (expected, found_by_runc, _), (said, found_by_us, datagrams) = came
    assert expected.startswith("0 "), expected
    assert found_by_runc["ask_who"] == [(0, 0), (1000, 1001, 7, 8)]
    assert (10, 1000, 1001) in found_by_runc["log"]
    assert said == expected
    assert found_by_us == found_by_runc
    assert datagrams == [b"datagram"]
