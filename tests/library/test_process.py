"""A command in a guest, with a supervisor that is ours to play."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tapwright
from tapwright.agent import protocol
from tapwright.agent.protocol import Frame
from tapwright.sandbox import wire
from tapwright.sandbox.execution import Process
from tapwright.state import registry

pytestmark = pytest.mark.unit


class Played:
    """The supervisor's end of the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._decoder = protocol.Decoder()
        self._frames: list[Frame] = []
        with connection.makefile("rb", buffering=0) as lines:
            self.request = json.loads(lines.readline())

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.connection.sendall(protocol.encode(Frame(kind, 0, 0, payload)))

    def end(self, **how: Any) -> None:
        self.connection.sendall(protocol.message(protocol.REPLY, 0, 0, how))

    def refuse(self, **why: Any) -> None:
        self.connection.sendall(protocol.message(protocol.ERROR, 0, 0, why))

    def hear(self) -> Frame | None:
        while not self._frames:
            data = self.connection.recv(1 << 16)
            if not data:
                return None
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Process, Played]]:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(wire, "connected", lambda *_: ours)
    sandbox = registry.Sandbox("web", "running", Path("/nowhere"), None)
    process = Process(sandbox, ["run"], stdin=True)
    with theirs, process:
        yield process, Played(theirs)


def test_output_as_it_comes(both: tuple[Process, Played]) -> None:
    process, played = both
    assert played.request["argv"] == ["run"]
    played.send(protocol.STDOUT, b"one\ntw")
    assert process.stdout.readline() == b"one\n"
    with pytest.raises(TimeoutError, match="nothing came within 0 s"):
        process.stderr.read1(timeout=0)
    played.send(protocol.STDOUT, b"o\nthree")
    played.send(protocol.STDOUT)
    assert list(process.stdout) == [b"two\n", b"three"]
    assert process.status is None
    played.end(status=3)
    assert process.wait() == 3
    assert process.stderr.read() == b""
    # What was read is counted, and no more.
    credit = 0
    while credit < len("one\ntwo\nthree"):
        frame = played.hear()
        assert frame is not None
        assert frame.kind == protocol.CREDIT
        credit += protocol.read_credit(frame.payload)[1]
    assert credit == len("one\ntwo\nthree")


def test_two_readers_and_a_writer_at_once(both: tuple[Process, Played]) -> None:
    process, played = both
    size = 3 * protocol.WINDOW
    said = {"stdout": b"", "stderr": b""}

    def guest() -> None:
        windows = {protocol.STDOUT: protocol.WINDOW, protocol.STDERR: protocol.WINDOW}
        left = dict.fromkeys(windows, size)
        received, ended = 0, False
        while not ended or any(left.values()):
            for kind in windows:
                if count := min(left[kind], windows[kind], protocol.MAX_PAYLOAD):
                    played.send(kind, bytes(count))
                    left[kind] -= count
                    windows[kind] -= count
            frame = played.hear()
            assert frame is not None
            if frame.kind == protocol.CREDIT:
                channel, count = protocol.read_credit(frame.payload)
                windows[channel] += count
            elif frame.payload:
                received += len(frame.payload)
                credit = protocol.credit(protocol.STDIN, len(frame.payload))
                played.send(protocol.CREDIT, credit)
            else:
                ended = True
        for kind in windows:
            played.send(kind)
        played.end(status=0 if received == size else 1)

    def read(name: str) -> None:
        said[name] = getattr(process, name).read()

    threads = [threading.Thread(target=read, args=[name]) for name in said]
    threads.append(threading.Thread(target=guest))
    for thread in threads:
        thread.start()
    process.write(bytes(size))
    process.close_stdin()
    assert process.wait() == 0
    for thread in threads:
        thread.join()
    assert {name: len(text) for name, text in said.items()} == {"stdout": size, "stderr": size}


def test_a_timeout_has_what_came(both: tuple[Process, Played]) -> None:
    process, played = both
    played.send(protocol.STDOUT, b"some")
    with pytest.raises(tapwright.CommandTimeoutError) as caught:
        process.finish("", 0.01, False, "utf-8")
    assert (caught.value.stdout, caught.value.stderr) == ("some", "")
    assert caught.value.sandbox == "web"
    kinds = []
    while (frame := played.hear()) and frame.kind != protocol.SIGNAL:
        kinds.append(frame.kind)
    assert frame is not None
    assert frame.payload == b"\x09"


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(2, 127, b"run: nothing there\n"), (13, 126, b"run: nothing there\n")],
)
def test_a_command_that_can_not_be_run(
    both: tuple[Process, Played], number: int, status: int, said: bytes
) -> None:
    process, played = both
    played.refuse(message="nothing there", errno=number)
    done = process.communicate()
    assert (done.status, done.stderr) == (status, said)
    with pytest.raises(tapwright.CommandError, match="nothing there"):
        done.check()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (protocol.encode(Frame(protocol.CREDIT, 0, 0, b"x")), tapwright.AgentError),
        (protocol.message(protocol.REPLY, 0, 0, {}), tapwright.AgentError),
        (protocol.message(protocol.REPLY, 0, 0, {"status": [1]}), tapwright.AgentError),
        (protocol.message(protocol.ERROR, 0, 0, {"message": "no"}), tapwright.AgentError),
        (b"", tapwright.SandboxStateError),
    ],
)
def test_ends_that_are_none(
    both: tuple[Process, Played], sent: bytes, error: type[tapwright.Error]
) -> None:
    process, played = both
    if sent:
        played.connection.sendall(sent)
    else:
        played.connection.shutdown(socket.SHUT_RDWR)
    for _ in range(2):
        with pytest.raises(error):
            process.wait()


def test_more_than_is_wanted(both: tuple[Process, Played]) -> None:
    process, played = both
    played.send(protocol.STDOUT, bytes(101))
    with pytest.raises(tapwright.AgentError, match="has more than 100 bytes"):
        process.communicate(limit=100)


def test_closing_ends_what_another_thread_waits_for(both: tuple[Process, Played]) -> None:
    process, played = both
    raised: list[Exception] = []

    def wait() -> None:
        try:
            process.wait()
        except tapwright.Error as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not process._is_pumping:
        os.sched_yield()
    process.close()
    waiting.join()
    assert isinstance(raised[0], tapwright.SandboxStateError)
    assert played.hear() is None


def test_words_that_are_no_command(both: tuple[Process, Played]) -> None:
    process, _ = both
    sandbox = registry.Sandbox("web", "running", Path("/nowhere"), None)
    for argv in ("ls -l", ()):
        with pytest.raises(tapwright.UsageError, match="must be a list of words"):
            Process(sandbox, argv)
    with pytest.raises(tapwright.UsageError, match="65 is not a signal"):
        process.signal(65)
