"""What failed is tried again, but neither at once nor for ever."""

import asyncio

import pytest

from tapwright.errors import AgentError, NetworkError
from tapwright.nics.attempts import Attempts

pytestmark = pytest.mark.unit


class Clock:
    """Seconds that pass when a test says so: real ones would take half a minute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("tapwright.nics.attempts.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Work:
    def __init__(self) -> None:
        self.fails = True
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.fails:
            raise NetworkError("not now")


def make(made: Attempts, work: Work, wanted: object = "this") -> bool:
    return asyncio.run(made.make("it", wanted, work, "it has changed"))


def test_waits_longer_each_time(clock: Clock) -> None:
    made, work = Attempts(), Work()
    pauses = []
    for _ in range(9):
        assert not make(made, work)
        assert not make(made, work)  # too soon: not even tried
        pause = made.end_round()
        assert pause is not None
        pauses.append(pause)
        clock.now += pause
    assert work.calls == 9
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_something_else_is_wanted(clock: Clock) -> None:
    made, work = Attempts(), Work()
    for _ in range(3):
        make(made, work)
        clock.now += made.end_round() or 0
    make(made, work, "that")
    assert work.calls == 4
    assert made.end_round() == 0.5


def test_success_and_what_nobody_wants_any_more_are_forgotten(clock: Clock) -> None:
    made, work = Attempts(), Work()
    make(made, work)
    clock.now += 1
    work.fails = False
    assert make(made, work)
    assert made.end_round() is None
    work.fails = True
    make(made, work)
    assert made.end_round() == 0.5
    # In the next round nobody asks for it.
    assert made.end_round() is None


def test_a_silent_agent_is_reported(clock: Clock) -> None:
    made = Attempts()

    async def ask() -> None:
        raise AgentError("it does not answer")

    with pytest.raises(AgentError):
        asyncio.run(made.make("it", "this", ask, "it has changed"))
