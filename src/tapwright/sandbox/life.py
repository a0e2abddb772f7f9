"""A sandbox's life, from where `early` has left it to its end."""

import asyncio
import contextlib
import logging
import logging.handlers
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from tapwright.command import path as command_path
from tapwright.errors import SandboxStateError, TapwrightError
from tapwright.sandbox import control
from tapwright.sandbox.abandoned import Abandoned
from tapwright.sandbox.bringup import Bringup
from tapwright.sandbox.containers import Containers
from tapwright.sandbox.early import Early
from tapwright.sandbox.monitor import Monitor
from tapwright.sandbox.operations import Operations
from tapwright.sandbox.processes import Processes
from tapwright.sandbox.record import LOG, RUNNING, Journal
from tapwright.sandbox.resolvers import Resolvers
from tapwright.sandbox.shares import Shares

if TYPE_CHECKING:
    from tapwright.sandbox.supervisor import Caller

_LOG_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class Life:
    """One sandbox's life. `failure` is set when it came to its end before it ran; `deleted` when it
    was told to end."""

    def __init__(self, journal: Journal, early: Early, caller: "Caller") -> None:
        self._journal = journal
        self._early = early
        self._caller = caller
        self.failure: BaseException | None = None
        self.deleted = False

    def run(self, log_level: str) -> None:
        """Until QEMU ends, SIGTERM comes, or the sandbox fails."""
        _log_to(self._journal.directory / LOG, log_level)
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        life = asyncio.create_task(self._live())

        def delete() -> None:
            if not self.deleted:
                self.deleted = True
                self.failure = SandboxStateError("the sandbox was deleted")
                life.cancel()

        def check_caller() -> None:
            if self._caller.is_gone():
                loop.remove_reader(self._caller.fileno())
                self.failure = SandboxStateError("the caller went away before the sandbox ran")
                life.cancel()

        loop.add_signal_handler(signal.SIGTERM, delete)
        loop.add_reader(self._caller.fileno(), check_caller)
        try:
            await life
        except asyncio.CancelledError:
            _log.info("told to end: %s", self.failure)
        except TapwrightError as error:
            self.failure = error
        except Exception as error:
            _log.exception("unexpected")
            self.failure = RuntimeError(f"unexpected {type(error).__name__}: {error}")

    async def _live(self) -> None:
        record = self._journal.record
        bringup = Bringup(self._journal, self._early, self._caller.progress)
        try:
            guest = await bringup.run()
            processes = Processes(guest.agent)
            abandoned, resolvers = Abandoned(), Resolvers(record.netns, guest.agent)
            shares = Shares(guest.qemu.share, guest.agent)
            operations = {
                **Operations(guest.interfaces, guest.following, resolvers, guest.agent).by_name(),
                **resolvers.by_name(),
                **shares.by_name(),
                **Containers(guest.agent, processes.expect_end).by_name(),
                **abandoned.by_name(),
            }
            conversations = processes.by_name()
            async with (
                contextlib.aclosing(resolvers),
                abandoned.watched(),
                shares.watched(),
                control.serving(self._journal.directory, guest.agent, operations, conversations),
                self._monitored(),
            ):
                record.status = RUNNING
                self._journal.save()
                asyncio.get_running_loop().remove_reader(self._caller.fileno())
                self._caller.running()
                await guest.qemu.wait()
                record.failure = f"QEMU ended: {guest.qemu.last_words()}"
                self._journal.save()
        finally:
            if bringup.guest:
                await bringup.guest.stop()

    @contextlib.asynccontextmanager
    async def _monitored(self) -> AsyncIterator[None]:
        """With the network monitor, where there is one, for the length of the block."""
        record, directory = self._journal.record, self._journal.directory
        if not record.spec.netmon:
            yield
            return
        log_level = logging.getLevelName(_log.getEffectiveLevel()).lower()
        command = [*record.spec.netmon, "-s", record.id, "-r", command_path(), "-log", log_level]
        watching = asyncio.create_task(
            Monitor(command, record.netns, str(directory.parent.parent)).watch()
        )
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def _log_to(path: Path, level: str) -> None:
    # Bounded, for a guest can make its supervisor warn as often as it likes.
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1)
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[handler],
    )
