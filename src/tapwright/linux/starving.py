"""Time that a process does not get: it is ready to run, and others have the processors.

What a process has done by a certain time says little where it had no processor until then: on a
host where many guests start at once, or in a control group with a small share.
"""

import os
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

STEP_SECONDS = 0.05
"""Who waits for a process looks at its time no more often than this."""
_MOST = 10

T = TypeVar("T")


def waited(pid: int) -> dict[int, float]:
    """Thread → for how many seconds it has been ready to run and had no processor (proc(5);
    Documentation/scheduler/sched-stats.rst). Nothing of a process that has ended, and on a kernel
    that does not count it."""
    found = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with (
                suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{pid}/task/{thread}/schedstat") as counts,
            ):
                found[int(thread)] = int(counts.read().split()[1]) / 1e9
    return found


class Allowance:
    """So many `seconds`, from now on, for what a process is to do. Those in which it waits for a
    processor do not count, its thread that waits the longest, unless that makes it ten times as
    long. Without a process all count."""

    def __init__(self, pid: int | None, seconds: float) -> None:
        self._pid = pid
        self._seconds = seconds
        self._begin = time.monotonic()
        self._before = self._waited()

    def left(self) -> float:
        """The seconds that are left; 0 or less when the time is over."""
        now = self._waited()
        lost = max((now[one] - self._before.get(one, 0.0) for one in now), default=0.0)
        most = min(self._seconds + lost, self._seconds * _MOST)
        return most - (time.monotonic() - self._begin)

    def _waited(self) -> dict[int, float]:
        return waited(self._pid) if self._pid else {}


async def granted(pid: int | None, seconds: float, work: Awaitable[T]) -> T:
    """Await what a process does, for as long as an `Allowance` has it. Raises TimeoutError, and
    what `work` raises."""
    import asyncio  # which callers of the rest do without

    allowance = Allowance(pid, seconds)
    task = asyncio.ensure_future(work)
    left = seconds
    try:
        while not (await asyncio.wait((task,), timeout=max(left, STEP_SECONDS)))[0]:
            left = allowance.left()
            if left <= 0:
                raise TimeoutError
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
