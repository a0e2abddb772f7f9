"""Time that a process does not get does not count against it."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tapwright.linux import starving
from tests.host import eventually

_BUSY = "while :; do :; done"


@pytest.fixture
def rivals() -> Iterator[list[int]]:
    """Three processes that want the same processor all the time."""
    with ExitStack() as running:
        processes = [
            running.enter_context(subprocess.Popen(["taskset", "-c", "0", "sh", "-c", _BUSY]))
            for _ in range(3)
        ]
        for process in processes:
            running.callback(process.kill)
        yield [process.pid for process in processes]


def has_waited(pid: int, seconds: float) -> bool:
    return starving.waited(pid).get(pid, 0) > seconds


def test_who_has_to_share_a_processor_waits(rivals: list[int]) -> None:
    with subprocess.Popen(["sleep", "1000"]) as idle:
        try:
            before = starving.waited(idle.pid)
            for pid in rivals:
                assert eventually(partial(has_waited, pid, 0.3))
            after = starving.waited(idle.pid)
        finally:
            idle.kill()
    # It sleeps: nothing keeps it from running.
    assert after[idle.pid] - before[idle.pid] < 0.3
    assert starving.waited(idle.pid) == {}


def test_work_gets_the_time_that_its_process_has_waited(rivals: list[int]) -> None:
    pid = rivals[0]
    assert eventually(partial(has_waited, pid, 0))

    async def wait_long() -> str:
        begin = starving.waited(pid)[pid]
        while starving.waited(pid)[pid] - begin < 0.6:
            await asyncio.sleep(0.01)
        return "done"

    # It waits for two thirds of a second in each: 0.9 s go by, and 1.2 s are granted.
    assert asyncio.run(starving.granted(pid, 0.6, wait_long())) == "done"


@pytest.mark.parametrize("lost", [0.0, 1000.0])
def test_it_has_an_end(monkeypatch: pytest.MonkeyPatch, lost: float) -> None:
    """Without any waiting, and with nothing but that."""
    told = iter([{1: 0.0}])
    monkeypatch.setattr(starving, "waited", lambda pid: next(told, {1: lost}))
    work = asyncio.Event()

    async def run() -> float:
        begin = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await starving.granted(1, 0.1, work.wait())
        return asyncio.get_running_loop().time() - begin

    assert asyncio.run(run()) >= (1.0 if lost else 0.1)


def test_what_the_work_raises_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        asyncio.run(starving.granted(None, 10, fail()))
