"""The supervisor: the one long-lived process of a sandbox, owner of QEMU and of the record.

    python -m tapwright.sandbox.supervisor DIRECTORY ALIVE_FD REPORT_FD

Started by `lifecycle.run`, which hears on the report socket, a JSON object a line, `progress`,
and in the end `running` or `failed`. A sandbox that fails before it runs, or whose caller goes
away before that, is taken back here. Told to end (SIGTERM) the supervisor only stops QEMU: who
deletes the sandbox takes back the rest.
"""

import asyncio
import contextlib
import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from tapwright.command import path as command_path
from tapwright.errors import SandboxStateError, TapwrightError
from tapwright.sandbox import control, ownership, shares, teardown
from tapwright.sandbox.bringup import Bringup
from tapwright.sandbox.monitor import Monitor
from tapwright.sandbox.operations import Operations
from tapwright.sandbox.record import LOG, RUNNING, Journal, load

LOG_LEVEL_VARIABLE = "TAPWRIGHT_LOG_LEVEL"
_LOG_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class Report:
    """What the supervisor tells the caller who waits for the sandbox."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def fileno(self) -> int:
        return self._socket.fileno()

    def progress(self, text: str) -> None:
        self._tell(progress=text)

    def running(self) -> None:
        self._tell(running=True)

    def failed(self, error: BaseException, left: Sequence[str]) -> None:
        """The sandbox came to nothing; `left` is what could not be taken back, in words."""
        self._tell(failed=str(error), kind=type(error).__name__, left=list(left))

    def caller_is_gone(self) -> bool:
        """To be asked when the socket is readable: the caller never says a word."""
        try:
            return not self._socket.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self._socket.close()

    def _tell(self, **content: Any) -> None:
        try:
            self._socket.sendall(json.dumps(content).encode() + b"\n")
        except OSError:
            _log.info("the caller is gone; not told: %s", content)


class Supervisor:
    """One sandbox's life. `failure` is set when it came to its end before it ran."""

    def __init__(self, journal: Journal, report: Report) -> None:
        self._journal = journal
        self._report = report
        self.failure: BaseException | None = None
        self.deleted = False

    async def run(self) -> None:
        """Until QEMU ends, SIGTERM comes, or the sandbox fails."""
        loop = asyncio.get_running_loop()
        life = asyncio.create_task(self._live())

        def delete() -> None:
            if not self.deleted:
                self.deleted = True
                self.failure = SandboxStateError("the sandbox was deleted")
                life.cancel()

        def check_caller() -> None:
            if self._report.caller_is_gone():
                loop.remove_reader(self._report.fileno())
                self.failure = SandboxStateError("the caller went away before the sandbox ran")
                life.cancel()

        loop.add_signal_handler(signal.SIGTERM, delete)
        loop.add_reader(self._report.fileno(), check_caller)
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
        bringup = Bringup(self._journal, self._report.progress)
        try:
            guest = await bringup.run()
            operations = {
                **Operations(guest.interfaces, guest.following, guest.agent).by_name(),
                **shares.operations(guest.qemu.share),
            }
            async with (
                control.serving(self._journal.directory, guest.agent, operations),
                self._monitored(),
            ):
                record.status = RUNNING
                self._journal.save()
                asyncio.get_running_loop().remove_reader(self._report.fileno())
                self._report.running()
                self._report.close()
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


def main() -> None:
    directory, alive_fd, report_fd = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if os.fork():
        os._exit(0)  # whoever called us need not wait for the sandbox's end
    os.set_inheritable(alive_fd, False)
    os.set_inheritable(report_fd, False)
    ownership.note_supervisor(alive_fd)
    os.umask(0o022)
    report = Report(socket.socket(fileno=report_fd))
    try:
        journal = Journal(directory, load(directory))
    except FileNotFoundError:
        sys.exit("the sandbox was deleted before it began")
    _log_to(directory / LOG)
    supervisor = Supervisor(journal, report)
    asyncio.run(supervisor.run())
    if supervisor.failure and journal.record.status != RUNNING:
        left = [] if supervisor.deleted else _give_up(journal)
        report.failed(supervisor.failure, left)


def _give_up(journal: Journal) -> list[str]:
    """Take back all that was made, unless somebody who deletes the sandbox is doing it."""
    try:
        with ownership.taking_down(journal.directory, timeout=0) as there:
            if not there:
                return []
            left = teardown.take_back(journal)
            if left:
                journal.record.failure = "; ".join(left)
                journal.save()
            else:
                ownership.discard(journal.directory)
            return left
    except SandboxStateError:
        return []


def _log_to(path: Path) -> None:
    # Bounded, for a guest can make its supervisor warn as often as it likes.
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1)
    logging.basicConfig(
        level=os.environ.get(LOG_LEVEL_VARIABLE, "warning").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[handler],
    )


if __name__ == "__main__":
    main()
