"""Processes that are ended by their pids."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from tapwright.linux import ending

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
