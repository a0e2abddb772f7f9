"""Containers that nobody will delete.

A platform leaves a monitor beside each container (conmon, containerd's shim), which hears of its
end and has it deleted. When that was killed, podman 4.3 takes the container off its list, and never
calls `delete`. So the supervisor has it called, as soon as the container has ended.
"""

import asyncio
import contextlib
import logging
import os
import select
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from tapwright.errors import UsageError
from tapwright.sandbox.stdio import ready

_log = logging.getLogger(__name__)


class Abandoned:
    """Those of a sandbox. What is watched stays so until its process has ended, and its monitor
    where that deletes."""

    def __init__(self) -> None:
        self._watching: set[asyncio.Task[None]] = set()

    def by_name(self) -> dict[str, Callable[..., Coroutine[Any, Any, None]]]:
        """The operation of the control socket."""
        return {"delete_when_abandoned": self.watch}

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """For the length of the block; at its end the containers have ended, too."""
        try:
            yield
        finally:
            watching = list(self._watching)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    @property
    def is_watching(self) -> bool:
        return bool(self._watching)

    async def watch(self, process: Any, monitor: Any, monitor_deletes: Any, command: Any) -> None:
        """Run the command when the process of that pid has ended, if its monitor has before. One
        that `monitor_deletes` ends only when that is done; so its end may also come later. Raises
        UsageError."""
        if type(process) is not int or type(monitor) is not int or not _is_words(command):
            raise UsageError("process and monitor must be pids, and command a list of words")
        with contextlib.ExitStack() as stack:
            seen, judge = _pidfd(stack, process), _pidfd(stack, monitor)
            awaited = [seen, judge] if monitor_deletes is True else [seen]
            task = asyncio.create_task(_see_to(awaited, judge, command, stack.pop_all()))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)


async def _see_to(
    awaited: list[int | None],
    monitor: int | None,
    command: list[str],
    pidfds: contextlib.ExitStack,
) -> None:
    with pidfds:
        running = None
        try:
            for pidfd in awaited:
                if pidfd is not None:
                    await ready(pidfd)
        finally:
            if monitor is None or select.select([monitor], [], [], 0)[0]:
                _log.warning("a container's monitor has died: %s", " ".join(command))
                running = _started(command)
        # Not when the sandbox ends: that would wait for what waits for the sandbox.
        if running and (deletion := _pidfd(pidfds, running.pid)):
            await ready(deletion)
            running.poll()


def _started(command: list[str]) -> subprocess.Popen[bytes]:
    """It may end this process, and goes on then."""
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)


def _pidfd(stack: contextlib.ExitStack, pid: int) -> int | None:
    """None for a process that is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    stack.callback(os.close, fd)
    return fd


def _is_words(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(word, str) for word in content)
