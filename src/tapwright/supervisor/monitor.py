"""Runs the network monitor of a sandbox in its namespace, and restarts it when it ends."""

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence

from tapwright.command import ROOT_VARIABLE
from tapwright.errors import NetworkError
from tapwright.linux import libc, process

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
_LINE_BYTES = 1000

_log = logging.getLogger(__name__)


class Monitor:
    """A monitor with that command line, in the namespace at `path`.

    Raises NetworkError when it can't be started, OSError when the namespace does not exist.
    """

    def __init__(self, command: Sequence[str], path: str, root: str) -> None:
        self._command = command
        # Kept open, because the path may go before the namespace.
        self._netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Also for the command that a monitor may call.
        self._environment = {**os.environ, ROOT_VARIABLE: root}
        self._started = 0.0
        self.restarts = 0
        """How often the monitor has been restarted."""
        try:
            self._start()
        except NetworkError:
            os.close(self._netns)
            raise

    async def watch(self) -> None:
        """Restart the monitor whenever it ends. When this is cancelled, end the monitor."""
        pause = _FIRST_PAUSE
        try:
            while True:
                await process.ended(self._process)
                status = self._process.returncode
                if time.monotonic() - self._started > _LONGEST_PAUSE:
                    pause = _FIRST_PAUSE
                _log.warning(
                    "the network monitor %s ended (%d); it is started again in %g s",
                    *(self._command[0], status, pause),
                )
                pause = await self._restart(pause)
        finally:
            self._stop()
            os.close(self._netns)

    async def _restart(self, pause: float) -> float:
        """Start the monitor after a pause; return the pause before the next start."""
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            try:
                self._start()
            except NetworkError as error:  # its executable may come back
                _log.warning("%s", error)
            else:
                self.restarts += 1
                return pause

    def _start(self) -> None:
        parent = os.getpid()
        read, write = os.pipe()

        def enter() -> None:
            libc.setns(self._netns, libc.CLONE_NEWNET)
            process.die_with(parent)

        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                env=self._environment,
                cwd="/",
                preexec_fn=enter,
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(read)
            raise NetworkError(
                f"the network monitor {self._command[0]} can't be started: {error}; set path in "
                "[netmon], or enable_netmon = false"
            ) from None
        finally:
            os.close(write)
        self._started = time.monotonic()
        _Lines(read)

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


class _Lines:
    """Copies lines from a pipe to the log, until the pipe is closed."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._rest = b""
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            _log.warning("%s", line[:_LINE_BYTES].decode(errors="replace"))
        self._rest = self._rest[:_LINE_BYTES]
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
