"""Processes that do something in turn: so many at once, in their order."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tapwright.supervisor import turns
from tapwright.supervisor.turns import Turn
from tests.host import eventually

pytestmark = pytest.mark.unit

_HOLDER = """
import sys
from tapwright.supervisor.turns import Turn
turn = Turn(sys.argv[1], 1)
print(turn.has_come(), flush=True)
sys.stdin.read()
"""

Want = Callable[[int], Turn]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "turns"


@pytest.fixture
def want(file: Path) -> Iterator[Want]:
    """Want a turn, by a limit."""
    with ExitStack() as ending:

        def one(limit: int) -> Turn:
            turn = Turn(file, limit)
            ending.callback(turn.end)
            return turn

        yield one


@pytest.fixture
def holder(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has its turn."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _HOLDER, str(file)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_first_come_first_served(want: Want) -> None:
    first, second, third, fourth, fifth, sixth = (want(2) for _ in range(6))
    assert [first.has_come(), second.has_come()] == [True, True]
    assert not any(turn.has_come() for turn in (third, fourth, fifth, sixth))
    second.end()
    assert third.has_come()
    assert not fourth.has_come()
    fourth.end()  # it has waited in vain
    assert not fifth.has_come()
    first.end()
    assert fifth.has_come()
    assert not sixth.has_come()
    third.end()
    assert sixth.has_come()


def test_limits_of_their_own(want: Want) -> None:
    turns_wanted = want(1), want(1), want(3)
    assert [turn.has_come() for turn in turns_wanted] == [True, False, True]


def test_a_process_that_is_killed(want: Want, holder: subprocess.Popen[str]) -> None:
    turn = want(1)
    assert not turn.has_come()
    holder.kill()
    assert eventually(turn.has_come)


def test_what_a_process_has_started(want: Want) -> None:
    """It has no part in the turn, and may outlive it."""
    first, second = want(1), want(1)
    with subprocess.Popen(["sleep", "1000"], close_fds=False) as started:
        first.end()
        assert second.has_come()
        started.kill()


def test_nobody_wants_a_turn(file: Path, want: Want) -> None:
    assert not turns.are_wanted(file)
    turn = want(1)
    assert turns.are_wanted(file)
    turn.end()
    turn.end()
    assert file.exists()
    assert not turns.are_wanted(file)
