"""Processes that are ended by their pids."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tapwright.linux import ending
from tests.host import eventually

pytestmark = pytest.mark.unit

SECONDS = 60.0


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """A shell that ignores SIGTERM, and says when it does."""
    script = "trap '' TERM; echo ready; while :; do read line; done"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["sh", "-c", script], text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_one_after_the_other(process: subprocess.Popen[str]) -> None:
    asked = []

    def is_it() -> bool:
        asked.append(process.poll())
        return True

    assert ending.end(process.pid, 0.01, is_it, (signal.SIGTERM, signal.SIGKILL))
    assert process.wait(SECONDS) == -signal.SIGKILL
    assert asked == [None, None]


def test_the_wrong_one_stays(process: subprocess.Popen[str]) -> None:
    assert not ending.end(process.pid, SECONDS, lambda: False)
    assert process.poll() is None


def test_one_that_has_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait(SECONDS)
    assert not ending.end(process.pid, SECONDS, lambda: pytest.fail("it has gone"))


EXITING = """
import ctypes, os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60, 0)  # exit(2): this thread alone
"""


def test_the_end_of_one_that_is_exiting_is_awaited() -> None:
    """Its first thread has ended, and another one goes on until its input ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", EXITING], text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "ready\n"
        assert eventually(lambda: ending._is_exiting(process.pid))
        waiting = threading.Thread(target=ending.await_exit, args=(process.pid, SECONDS))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        process.stdin.close()
        waiting.join(SECONDS)
        assert process.poll() == 0


def test_the_end_of_another_is_not_awaited(process: subprocess.Popen[str]) -> None:
    ending.await_exit(process.pid, SECONDS)
    assert process.poll() is None
    process.kill()
    process.wait(SECONDS)
    ending.await_exit(process.pid, SECONDS)
