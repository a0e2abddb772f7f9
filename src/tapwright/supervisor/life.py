"""A sandbox's life, from the end of `prelude` to the sandbox's end."""

import asyncio
import contextlib
import importlib
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from threading import Thread
from typing import Any

from tapwright.command import path as command_path
from tapwright.control import server
from tapwright.control.abandoned import Abandoned
from tapwright.control.containers import Containers
from tapwright.control.looking import Looking
from tapwright.control.operations import Operations
from tapwright.control.processes import Processes
from tapwright.control.shares import Shares
from tapwright.control.totals import Totals
from tapwright.errors import SandboxStateError, TapwrightError, printable, shown
from tapwright.nics import carriers
from tapwright.nics.forwarding import forwarded
from tapwright.nics.net_devices import NetDevices
from tapwright.nics.resolvers import Resolvers
from tapwright.sandbox import deletion, environment, spares
from tapwright.sandbox.report import Caller
from tapwright.state import control_group, ownership
from tapwright.state.record import LOG, RUNNING, Journal, Place, Record
from tapwright.supervisor.bringup import Bringup
from tapwright.supervisor.guest import Guest
from tapwright.supervisor.monitor import Monitor
from tapwright.supervisor.prelude import Early
from tapwright.supervisor.vm_size import Room

_LOG_BYTES = 1 << 20
_ASKED_WITH = 2

_log = logging.getLogger(__name__)


class Life:
    """One sandbox's life. `failure` is set when the sandbox ended before it ran; `deleted` after
    SIGTERM, or after a request of `sandbox.deletion`. After such a request, this process takes the
    sandbox back if `takes_down`: then `rights` holds the lock for that, and `left` says what it
    could not take back while QEMU ended."""

    def __init__(self, journal: Journal, early: Early, caller: Caller) -> None:
        self._journal = journal
        self._early = early
        self._caller = caller
        self.failure: BaseException | None = None
        self.deleted = False
        self.takes_down = False
        self.rights = contextlib.ExitStack()
        self.left: list[str] = []
        self._end: Callable[[], None] = lambda: None
        self._monitor: Monitor | None = None

    def run(self, log_level: str, runner: asyncio.Runner | None = None) -> None:
        """Run until QEMU ends, SIGTERM comes, or the sandbox fails; in the event loop of `runner`,
        if the process has one already."""
        _log_to(self._journal.directory / LOG, log_level)
        if runner:
            runner.run(self._run())
        else:
            asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        record = self._journal.record
        bringup = Bringup(self._journal, self._early, self._caller.progress, self._caller.warn)
        life = asyncio.create_task(self._live(record, bringup))

        def delete() -> None:
            if not self.deleted:
                self.deleted = True
                self.failure = SandboxStateError("the sandbox was deleted")
                life.cancel()
                # QEMU takes longest to end, and has nothing to tidy up.
                if bringup.guest:
                    bringup.guest.qemu.end()

        def check_caller() -> None:
            if self._caller.is_gone():
                loop.remove_reader(self._caller.fileno())
                self.failure = SandboxStateError("the caller went away before the sandbox ran")
                life.cancel()

        loop.add_signal_handler(signal.SIGTERM, delete)
        self._end = delete
        loop.add_reader(self._caller.fileno(), check_caller)
        try:
            await life
        except asyncio.CancelledError:
            _log.info("asked to end: %s", self.failure)
        except TapwrightError as error:
            self.failure = error
        except Exception as error:
            _log.exception("unexpected")
            self.failure = RuntimeError(f"unexpected {type(error).__name__}: {error}")

    async def _live(self, record: Record, bringup: Bringup) -> None:
        try:
            guest = await bringup.run()
            room = Room(self._journal, guest.qemu, guest.agent)
            processes = Processes(guest.agent, room.admit, room.leave)
            abandoned, resolvers = Abandoned(), Resolvers(record.netns, guest.agent)
            shares = Shares(guest.qemu.share, guest.agent)
            devices = NetDevices(self._journal, guest.interfaces, guest.following)
            served = Operations(
                guest.interfaces,
                guest.following,
                resolvers,
                devices,
                guest.agent,
                self._journal.record.spec,
            )
            totals = Totals(guest.agent, self._restarts)
            of_network, of_processes = served.by_name(), processes.by_name()
            of_containers = Containers(guest.agent, processes.expect_end).by_name()
            operations = {
                **of_network,
                "sync": totals.counted(of_network["sync"]),
                **totals.by_name(),
                **resolvers.by_name(),
                **shares.by_name(),
                **of_containers,
                "start_container": shares.settled(of_containers["start_container"]),
                **abandoned.by_name(),
                **room.by_name(),
                **Looking(guest.agent, guest.qemu.qmp).by_name(),
            }
            conversations = {
                **of_processes,
                "exec_container": shares.settled(of_processes["exec_container"]),
                deletion.REQUEST: self._take_down,
            }
            async with (
                contextlib.aclosing(resolvers),
                abandoned.watched(),
                room.kept(),
                shares.watched(),
                forwarded(record.netns, guest.agent),
                guest.host_kernel.followed(),
                server.serving(self._journal.directory, guest.agent, operations, conversations),
                self._monitored(guest),
            ):
                control_group.bound(record, self._caller.warn)
                record.status = RUNNING
                self._journal.save()
                asyncio.get_running_loop().remove_reader(self._caller.fileno())
                self._caller.running()
                await asyncio.to_thread(spares.refill, self._journal)
                record.failure = await _end_of(guest)
                self._journal.save_if_possible()
        finally:
            if bringup.guest:
                await self._stop(bringup.guest)
            elif self._early.restoring:  # begun, and not taken over yet
                self._early.restoring.spawned.kill()
            elif self._early.prepared:
                await self._early.prepared.stop()

    async def _take_down(self, request: server.ControlRequest) -> None:
        """The conversation of `sandbox.deletion`."""
        if self.deleted:
            return
        # First of all: the process that asked waits for this one as long as this one has the lock.
        with contextlib.suppress(SandboxStateError):  # another process deletes the sandbox
            taking_down = ownership.taking_down(self._journal.directory, timeout=0)
            self.takes_down = self.rights.enter_context(taking_down)
        if self.takes_down and len(request.descriptors) == _ASKED_WITH:
            # Of the process that deletes it.
            os.dup2(request.descriptors[0], sys.stderr.fileno())
            environment.take(request.descriptors.pop())
        self._end()
        # While QEMU ends.
        if self.takes_down:
            # Before the plugins run; the kernel takes 10 ms.
            Thread(target=control_group.leave, args=(self._journal.record,)).start()
        importlib.import_module("tapwright.supervisor.takedown")

    async def _stop(self, guest: Guest) -> None:
        """End the guest. Where this process takes the sandbox back, the CNI plugins run meanwhile,
        which takes as long."""
        stopping = asyncio.create_task(guest.stop())
        if self.takes_down and any(
            each["kind"] == "attachment" for each in self._journal.record.held
        ):
            from tapwright.supervisor import takedown

            self.left = await asyncio.to_thread(takedown.networks, self._journal.directory)
        await stopping

    def _restarts(self) -> int:
        """How often the network monitor was restarted."""
        return self._monitor.restarts if self._monitor else 0

    @contextlib.asynccontextmanager
    async def _monitored(self, guest: Guest) -> AsyncIterator[None]:
        """Run the network monitor for the length of the block. Where the sandbox has none, follow
        what no later look can make good: carriers."""
        record, directory = self._journal.record, self._journal.directory
        if not record.spec.netmon:
            if record.place is Place.HOST:
                yield
                return
            async with carriers.followed(record.netns, guest.interfaces):
                yield
            return
        log_level = logging.getLevelName(_log.getEffectiveLevel()).lower()
        command = [*record.spec.netmon, "-s", record.id, "-r", command_path(), "-log", log_level]
        self._monitor = Monitor(command, record.netns, str(directory.parent.parent))
        watching = asyncio.create_task(self._monitor.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def _log_to(path: Path, level: str) -> None:
    # Bounded, because a guest can make its supervisor warn as often as it likes. Opened at the
    # first line, so that a full disk costs only the log.
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=_LOG_BYTES, backupCount=1, delay=True
    )
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # When a line can't be written, its traceback can't, either: stderr is the log, too.
    logging.raiseExceptions = False
    logging.basicConfig(level=level.upper(), handlers=[handler])


async def _end_of(guest: Guest) -> str:
    """Wait until the guest has ended, or must be ended; return the reason in words."""
    ended = guest.qemu.wait()
    broken = (guest.agent.has_broken_rules, guest.qemu.qmp.has_broken_rules)
    waiting = [asyncio.ensure_future(one) for one in (ended, *(rule.wait() for rule in broken))]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    if guest.agent.has_broken_rules.is_set():
        return "the guest broke the rules of the agent's protocol, and was ended"
    if guest.qemu.qmp.has_broken_rules.is_set():
        return "the guest had QEMU send events without end, and was ended"
    return f"QEMU ended: {guest.qemu.last_words()}"


class _Formatter(logging.Formatter):
    """For a log that root reads on a terminal, and that contains text of a guest."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = shown(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(map(printable, super().formatException(ei).splitlines()))
