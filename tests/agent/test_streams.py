"""Processes on a stream, with pipes of the test's in place of those of a process in a guest."""

import os
import select
from collections.abc import Iterator
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.agent.guest.events import Watcher
from tapwright.agent.guest.streams import Answer, Process

pytestmark = pytest.mark.unit

EXIT_3 = 3 << 8


class Heard:
    """A process that `lingers`, and all that it has said; `stdout` is where it prints."""

    def __init__(self, lingers: bool) -> None:
        self.watch = Watcher()
        self.said = said = list[tuple[int, Any]]()
        # Without this object in them, whose descriptors are closed when nobody has it any more.
        answer = Answer(
            lambda kind, payload: said.append((kind, payload)),
            lambda content: said.append((protocol.REPLY, content)),
            lambda content: said.append((protocol.ERROR, content)),
        )
        self.process = Process(self.watch, answer)
        self.process.lingers = lingers
        read, self.stdout = os.pipe()
        self.process.attach(-1, {protocol.STDOUT: read})

    def heard(self) -> list[tuple[int, Any]]:
        """What is new, when all that is ready has been seen to."""
        self.watch.run_once(0)
        news = list(self.said)
        self.said.clear()
        return news


@pytest.fixture(params=[True, False])
def lingers(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def heard(lingers: bool) -> Iterator[Heard]:
    found = Heard(lingers)
    yield found
    if found.stdout >= 0:
        os.close(found.stdout)
    found.process.cancel()  # so the watch has no callback of the process's any more


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
