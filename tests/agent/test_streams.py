"""Processes on a stream, with pipes of the test's in place of those of a process in a guest."""

import os
import select
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.agent.guest.container_process import ContainerProcess
from tapwright.agent.guest.events import Watcher
from tapwright.agent.guest.streams import Answer, Process

pytestmark = pytest.mark.unit

EXIT_3 = 3 << 8


class Heard:
    """A process that `lingers`, and all that it has said; `stdout` is where it prints."""

    def __init__(self, lingers: bool, made: Callable[[Watcher, Answer], Process] = Process) -> None:
        self.watch = Watcher()
        self.said = said = list[tuple[int, Any]]()
        # Without this object in them, whose descriptors are closed when nobody has it any more.
        answer = Answer(
            lambda kind, payload: said.append((kind, payload)),
            lambda content: said.append((protocol.REPLY, content)),
            lambda content: said.append((protocol.ERROR, content)),
        )
        self.process = made(self.watch, answer)
        self.process.lingers = lingers
        read, self.stdout = os.pipe()
        self.process.attach(-1, {protocol.STDOUT: read})

    def heard(self) -> list[tuple[int, Any]]:
        """What is new, when all that is ready has been seen to."""
        self.watch.run_once(0)
        news = list(self.said)
        self.said.clear()
        return news

    def close(self) -> None:
        if self.stdout >= 0:
            os.close(self.stdout)
        self.process.cancel()  # so the watch has no callback of the process's any more


@pytest.fixture(params=[True, False])
def lingers(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def heard(lingers: bool) -> Iterator[Heard]:
    with closing(Heard(lingers)) as found:
        yield found


def of_crun(watch: Watcher, answer: Answer) -> Process:
    nobody: Any = None  # makes it
    return ContainerProcess(watch, nobody, nobody, answer, "/t")


@pytest.fixture
def heard_of_crun(lingers: bool) -> Iterator[Heard]:
    with closing(Heard(lingers, of_crun)) as found:
        yield found


def test_what_is_printed_after_the_end(heard: Heard, lingers: bool) -> None:
    """By what the process has left behind, which has its output open."""
    os.write(heard.stdout, b"own")
    heard.process.exited(EXIT_3)
    if not lingers:
        end = [(protocol.STDOUT, b""), (protocol.REPLY, {"status": 3})]
        assert heard.heard() == [(protocol.STDOUT, b"own"), *end]
        return
    assert heard.heard() == [(protocol.STDOUT, b"own"), (protocol.EXITED, b'{"status": 3}')]
    os.write(heard.stdout, b"late")
    assert heard.heard() == [(protocol.STDOUT, b"late")]
    os.close(heard.stdout)
    heard.stdout = -1
    assert heard.heard() == [(protocol.STDOUT, b""), (protocol.REPLY, {"status": 3})]


@pytest.mark.parametrize("lingers", [True])
def test_the_end_comes_after_the_process_s_own_output(heard: Heard) -> None:
    """However much more is printed meanwhile, and though the window is shut."""
    heard.process.credit(protocol.STDOUT, -protocol.WINDOW)
    os.write(heard.stdout, b"own")
    heard.process.exited(EXIT_3)
    os.write(heard.stdout, b"late")
    assert heard.heard() == []
    heard.process.credit(protocol.STDOUT, 2)
    assert heard.heard() == [(protocol.STDOUT, b"ow")]
    heard.process.credit(protocol.STDOUT, 2)
    assert heard.heard() == [(protocol.STDOUT, b"nl"), (protocol.EXITED, b'{"status": 3}')]
    heard.process.credit(protocol.STDOUT, 100)
    assert heard.heard() == [(protocol.STDOUT, b"ate")]


@pytest.mark.parametrize("lingers", [True])
def test_who_no_longer_reads_lets_go(heard: Heard) -> None:
    """So the ones left behind get SIGPIPE, as by a pipe of their own."""
    heard.process.exited(EXIT_3)
    assert heard.heard() == [(protocol.EXITED, b'{"status": 3}')]
    heard.process.unread(protocol.STDOUT)
    assert heard.heard() == [(protocol.REPLY, {"status": 3})]
    poll = select.poll()
    poll.register(heard.stdout, select.POLLERR)
    assert poll.poll(0)
    assert heard.process.is_over


CRUNS_LINE = (
    b'{"msg":"exec container process (missing dynamic library?) `/script`: No such file or '
    b'directory","level":"error","time":"2026-11-30T01:02:03.123456Z"}\n'
)


def test_a_line_of_crun_in_pieces(heard_of_crun: Heard) -> None:
    """crun 1.21 writes it so."""
    os.write(heard_of_crun.stdout, CRUNS_LINE[:128])
    assert heard_of_crun.heard() == []
    os.write(heard_of_crun.stdout, CRUNS_LINE[128:])
    expected = b"exec /script: no such file or directory\n"
    assert heard_of_crun.heard() == [(protocol.STDOUT, expected)]
    os.write(heard_of_crun.stdout, CRUNS_LINE)
    assert heard_of_crun.heard() == [(protocol.STDOUT, CRUNS_LINE)]


def test_a_program_that_prints_like_crun(heard_of_crun: Heard) -> None:
    """What it printed last comes before its end."""
    os.write(heard_of_crun.stdout, CRUNS_LINE[:40])
    assert heard_of_crun.heard() == []
    heard_of_crun.process.exited(EXIT_3)
    assert heard_of_crun.heard()[0] == (protocol.STDOUT, CRUNS_LINE[:40])


def test_a_program_that_prints_much_like_crun(heard_of_crun: Heard) -> None:
    """More than a frame holds comes in several."""
    os.write(heard_of_crun.stdout, CRUNS_LINE[:40])
    assert heard_of_crun.heard() == []
    os.write(heard_of_crun.stdout, bytes(protocol.MAX_PAYLOAD))
    frames = [payload for _, payload in heard_of_crun.heard()]
    assert [len(payload) for payload in frames] == [protocol.MAX_PAYLOAD, 40]
    assert b"".join(frames) == CRUNS_LINE[:40] + bytes(protocol.MAX_PAYLOAD)
