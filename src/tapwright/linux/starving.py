"""Time that a process does not get: it is ready to run, and others have the processors.

What a process has done by a certain time says little where it had no processor until then: on a
host where many guests start at once, or in a control group with a small share.
"""

import asyncio
import os
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

_MOST = 10
_STEP_SECONDS = 0.05

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


async def granted(pid: int | None, seconds: float, work: Awaitable[T]) -> T:
    """Await what a process does, for so many seconds. Those in which it waited for a processor do
    not count, its thread that waited the longest, unless that makes it ten times as long. Without
    a process all count. Raises TimeoutError, and what `work` raises."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    before = waited(pid) if pid else {}
    task = asyncio.ensure_future(work)
    left = seconds
    try:
        while not (await asyncio.wait((task,), timeout=max(left, _STEP_SECONDS)))[0]:
            now = waited(pid) if pid else {}
            lost = max((now[one] - before.get(one, 0.0) for one in now), default=0.0)
            left = min(seconds + lost, seconds * _MOST) - (loop.time() - begin)
            if left <= 0:
                raise TimeoutError
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
