"""Containers that no monitor will delete.

A platform leaves a monitor beside each container (conmon, containerd's shim), which learns of the
container's end and calls the platform to delete it. When the monitor was killed, podman 4.3 takes
the container off its list, and never calls `delete`. So the supervisor starts `delete` as soon as
the container has ended, or its bundle is gone.
"""

import asyncio
import contextlib
import logging
import os
import select
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from tapwright import shapes
from tapwright.control.stdio import ready
from tapwright.errors import UsageError

_LOOK_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Abandoned:
    """The abandoned containers of a sandbox. The supervisor watches each until its process has
    ended; where the monitor deletes, until the monitor has ended, too."""

    def __init__(self) -> None:
        self._watching: set[asyncio.Task[None]] = set()

    def by_name(self) -> dict[str, Callable[..., Coroutine[Any, Any, None]]]:
        """The operation of the control socket."""
        return {"delete_when_abandoned": self.watch}

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Watch for the length of the block; at its end the containers have ended, too."""
        try:
            yield
        finally:
            watching = list(self._watching)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def watch(
        self, process: Any, monitor: Any, monitor_deletes: Any, bundle: Any, command: Any
    ) -> None:
        """Run the command when the process has ended, if its monitor has ended before; or, while
        the process runs, when the monitor has ended and the bundle is gone. `process` and `monitor`
        are pids. With `monitor_deletes` the monitor itself deletes the container, and ends after
        that; so this waits for both. Raises UsageError."""
        if type(process) is not int or type(monitor) is not int:
            raise UsageError("process and monitor must be pids")
        if not isinstance(bundle, str) or not shapes.fits(command, list[str]):
            raise UsageError("bundle must be a path, and command a list of words")
        with contextlib.ExitStack() as stack:
            seen, judge = _pidfd(stack, process), _pidfd(stack, monitor)
            due = _due(seen, judge, monitor_deletes is True, bundle)
            task = asyncio.create_task(_see_to(due, judge, command, stack.pop_all()))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)


async def _due(
    process: int | None, monitor: int | None, monitor_deletes: bool, bundle: str
) -> None:
    """Until it is time to look at the monitor. None is a process that is gone."""
    if process is not None:
        forgotten = asyncio.create_task(_forgotten(monitor, bundle))
        ended = asyncio.create_task(ready(process))
        try:
            await asyncio.wait((forgotten, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            forgotten.cancel()
            ended.cancel()
            # `ready` can watch the monitor's descriptor only once at a time.
            await asyncio.gather(forgotten, ended, return_exceptions=True)
    if monitor_deletes and monitor is not None:
        await ready(monitor)


async def _forgotten(monitor: int | None, bundle: str) -> None:
    if monitor is not None:
        await ready(monitor)
    while os.path.exists(bundle):
        await asyncio.sleep(_LOOK_SECONDS)


async def _see_to(
    due: Coroutine[Any, Any, None],
    monitor: int | None,
    command: list[str],
    pidfds: contextlib.ExitStack,
) -> None:
    with pidfds:
        running = None
        try:
            await due
        finally:
            if monitor is None or select.select([monitor], [], [], 0)[0]:
                _log.warning("a container's monitor has died: %s", " ".join(command))
                running = _started(command)
        # Not when the sandbox ends: the command waits for the sandbox's end.
        if running and (deletion := _pidfd(pidfds, running.pid)):
            await ready(deletion)
            running.poll()


def _started(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the command, which may end this process, and goes on then."""
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
