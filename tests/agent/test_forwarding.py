"""What the agent reports of listeners, in a namespace instead of a guest, and without its kernel's
news: tests/sandbox/test_forwarding.py tests the whole from the host, with a guest."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.agent.guest import forwarding
from tapwright.agent.guest.events import Watcher
from tapwright.agent.guest.streams import Answer
from tapwright.linux import netns

# Listens where it is told to, until its stdin ends.
_LISTEN = """
import socket, sys
listeners = []
for line in sys.stdin:
    address, port = line.split()
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0) if ":" in address else None
    listener.bind((address, int(port)))
    listener.listen()
    listeners.append(listener)
    print(flush=True)
"""


class Told:
    """The last list that a follower has reported."""

    def __init__(self) -> None:
        self.listeners: list[Any] = []
        self.left_out = 0

    def send(self, kind: int, payload: bytes) -> None:
        assert kind == protocol.STDOUT
        content = json.loads(payload)
        self.listeners, self.left_out = content["listeners"], content["left_out"]


class Listening:
    """A process of the "guest"."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._running = subprocess.Popen(
            [sys.executable, "-c", _LISTEN], stdin=pipe, stdout=pipe, text=True
        )

    def at(self, *places: str) -> None:
        assert self._running.stdin
        assert self._running.stdout
        for place in places:
            self._running.stdin.write(f"{place}\n")
        self._running.stdin.flush()
        for _ in places:
            assert self._running.stdout.readline()

    def end(self) -> None:
        self._running.communicate()


@contextmanager
def followed(path: str) -> Iterator[tuple[Told, Callable[[Callable[[], bool]], None], Listening]]:
    """(the reports, a function that waits until a condition holds, a process that listens)."""
    with netns.entered(path):
        watch, told, listening = Watcher(), Told(), Listening()
        answer = Answer(told.send, lambda _: None, lambda _: None)
        forwarding.Forwarding(watch).operations["follow_listeners"]({}, answer)

        def wait(until: Callable[[], bool]) -> None:
            for _ in range(500):
                if until():
                    return
                watch.run_once(0.05)
            pytest.fail(f"told {told.listeners}")

        try:
            yield told, wait, listening
        finally:
            listening.end()


@pytest.fixture(autouse=True)
def without_news(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> int:
        raise FileNotFoundError

    monkeypatch.setattr(forwarding, "_trace", nothing)
    monkeypatch.setattr(forwarding, "_POLL_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("place", "listeners"),
    [
        ("127.0.0.1 65535", [[4, 65535]]),
        ("0.0.0.0 1", [[4, 1]]),
        ("::1 80", [[6, 80]]),
        (":: 80", [[4, 80], [6, 80]]),
        ("::ffff:127.0.0.1 80", [[4, 80]]),
        ("::ffff:0.0.0.0 80", [[4, 80]]),
        ("127.0.0.2 80", []),
        ("10.1.2.3 80", []),
        ("fd00::1 80", []),
    ],
)
def test_where_it_is_reached(scratch_netns: str, place: str, listeners: list[Any]) -> None:
    _addressed(scratch_netns)
    with followed(scratch_netns) as (told, wait, process):
        process.at("127.0.0.1 9", place)
        wait(lambda: told.listeners == sorted([*listeners, [4, 9]]))
        process.end()
        wait(lambda: told.listeners == [])


def test_its_own_are_left_out(scratch_netns: str) -> None:
    """A name server for the guest that asks the host would be asked by the host."""
    _addressed(scratch_netns)
    with (
        followed(scratch_netns) as (told, wait, process),
        socket.create_server(("127.0.0.1", 53)),
    ):
        process.at("127.0.0.1 54")
        wait(lambda: [4, 54] in told.listeners)
        assert told.listeners == [[4, 54]]


def test_more_than_are_reported(scratch_netns: str) -> None:
    _addressed(scratch_netns)
    with followed(scratch_netns) as (told, wait, process):
        process.at(*(f"0.0.0.0 {port}" for port in range(1000, 1300)))
        wait(lambda: told.left_out == 300 - protocol.MAX_LISTENERS)
        assert told.listeners == [[4, port] for port in range(1000, 1256)]


def _addressed(path: str) -> None:
    name = path.rpartition("/")[2]
    for command in (
        *("link set lo up", "address add 10.1.2.3/32 dev lo"),
        "address add fd00::1/128 dev lo nodad",
    ):
        subprocess.run(["ip", "-n", name, *command.split()], check=True)
