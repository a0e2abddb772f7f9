"""Brings a sandbox onto its networks: the guest starts while the CNI chains run, then NICs and
configuration.

Runs in the supervisor, after `prelude`. Everything is in the journal before it is made; after a
failure the caller stops QEMU and calls `teardown`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, TypeVar

from tapwright.agent import inherited
from tapwright.agent import requests as agent
from tapwright.errors import AgentError, HypervisorError, TapwrightError
from tapwright.hypervisor import accelerator
from tapwright.hypervisor.machine import Machine
from tapwright.nics import promised, socket_nics
from tapwright.nics.guest_settings import tell_refused
from tapwright.nics.interfaces import Interfaces
from tapwright.progress import Progress
from tapwright.state.record import Journal, Place
from tapwright.supervisor import attachments, starts
from tapwright.supervisor.guest import Guest, Starter
from tapwright.supervisor.prelude import Early
from tapwright.supervisor.prepared import Prepared

Result = dict[str, Any]

_log = logging.getLogger(__name__)

_SECONDS, _SECONDS_EACH = 15.0, 2.0
"""How long the guest may take to configure its network, and how much longer for each NIC."""

_One = TypeVar("_One")
_Other = TypeVar("_Other")


class Bringup:
    """Brings up the sandbox of a journal; `early` has what `prelude` has begun."""

    def __init__(self, journal: Journal, early: Early, progress: Progress, warn: Progress) -> None:
        self._journal = journal
        self._record = journal.record
        self._early = early
        self._progress = progress
        self._starter = Starter(journal, progress, warn)

    @property
    def guest(self) -> Guest | None:
        """The guest as soon as QEMU runs."""
        return self._starter.guest

    async def run(self) -> Guest:
        """Bring the sandbox up. Raises NetworkError, HypervisorError, AgentError, ConfigError."""
        if prepared := self._early.prepared:
            self._early.prepared = None
            try:
                return await self._run_with(prepared)
            except (HypervisorError, AgentError, OSError) as error:
                # The caller gets no warning, because only time is lost.
                _log.warning("a spare was of no use: %s", error)
                if guest := self.guest:
                    await self._starter.stop()
                    guest.interfaces.give_back_all()
        try:
            return await self._run_anew()
        finally:
            if self._early.turn:
                self._early.turn.end()

    async def _run_anew(self) -> Guest:
        """Run with a guest that starts now."""
        (machine, guest), results = await _all(
            self._start(), asyncio.to_thread(self._early.attaching.results)
        )
        # A guest can be joined before it has answered.
        answered, requests = await _all(
            self._starter.answered(), _caught(self._join(guest, results))
        )
        if not answered:
            await self._starter.stop()
            guest.interfaces.give_back_all()
            guest = await self._starter.boot(machine)
            requests = await self._join(guest, results)
        elif isinstance(requests, TapwrightError):
            raise requests
        with self._journal.phase("guest"):
            await self._configure(guest, self._of_the_system(), requests, results)
        return guest

    async def _run_with(self, prepared: Prepared) -> Guest:
        """Run with the guest of a spare. Raises OSError, too."""
        guest = self._starter.take(prepared)

        async def begun_anew() -> None:
            with self._journal.phase("spare"):
                await guest.begin_anew()
                # While the chains run, because this does not depend on them.
                await guest.agent.call(agent.batch(*self._of_the_system()))

        results, _ = await _all(asyncio.to_thread(self._early.attaching.results), begun_anew())
        requests = await self._join(guest, results)
        with self._journal.phase("guest"):
            await self._configure(guest, [], requests, results)
        return guest

    async def _start(self) -> tuple[Machine, Guest]:
        await starts.come(self._early.turn, self._journal, self._progress)
        machine = self._early.machine or await self._machine()
        return machine, await self._starter.start(machine, self._early.restoring)

    async def _machine(self) -> Machine:
        wanted = self._record.spec.machine
        with self._journal.phase("accelerator"):
            chosen, reason = await accelerator.choose(wanted, self._progress)
        self._record.accelerator, self._record.accelerator_reason = chosen, reason
        return replace(wanted, accelerator=chosen)

    async def _join(self, guest: Guest, results: list[Result]) -> list[agent.Request]:
        """Plug NICs for interfaces, sockets and TAPs; return the agent's requests."""
        with self._journal.phase("join"):
            networks = promised.interfaces(self._record, results)
            has_netns = self._record.place is not Place.HOST
            requests = await guest.following.begin(networks) if has_netns else []
            requests += await self._plug_others(guest.interfaces, results)
            promised.note_missing(self._journal, results)
            return requests

    async def _plug_others(
        self, interfaces: Interfaces, results: list[Result]
    ) -> list[agent.Request]:
        """Plug the NICs without an interface in the namespace; return the agent's requests."""
        requests = []
        routes = []
        for network, result in zip(self._record.spec.networks, results, strict=True):
            for nic in socket_nics.of(result):
                _, configuration = await interfaces.plug(nic.request, network.name)
                requests.append(configuration)
                routes += nic.routes
        for tap in self._record.spec.taps:
            requests.append(await interfaces.add_host_tap(tap))
        return [*requests, agent.change_routes(add=routes)] if routes else requests

    def _of_the_system(self) -> list[agent.Request]:
        """The requests that do not depend on networks."""
        return [
            agent.set_hostname(self._record.id),
            agent.set_machine_id(_machine_id()),
            agent.set_clock(time.time()),
        ]

    async def _configure(
        self,
        guest: Guest,
        of_the_system: list[agent.Request],
        requests: list[agent.Request],
        results: list[Result],
    ) -> None:
        await guest.interfaces.settle()
        dns = self._record.spec.dns or attachments.dns(results)
        of_dns = [agent.set_dns(dns)] if dns else []
        of_files = [agent.mount_share()] if self._record.spec.machine.share else []
        # Before what the namespace has of its own.
        first = [*of_the_system, inherited.request()]
        asked = agent.batch(*first, *requests, *of_dns, *of_files)
        seconds = _SECONDS + _SECONDS_EACH * len(requests)
        answer = await guest.agent.call(asked, seconds)
        if self._record.place is not Place.HOST:
            replies = _replies(answer, len(first) + len(requests))
            tell_refused(replies[len(first) - 1])
            found = zip(requests, replies[len(first) :], strict=False)
            await guest.following.fill(
                reply for request, reply in found if request["op"] == "set_interface"
            )
            self._record.warnings += [
                f"the guest can't have all that the namespace has: {text}"
                for text in guest.following.refused
            ]


def _replies(answer: Result, at_least: int) -> list[Result]:
    """The replies to the requests of a batch. Raises AgentError."""
    replies = answer.get("replies")
    if (
        not isinstance(replies, list)
        or len(replies) < at_least
        or not all(isinstance(reply, dict) for reply in replies)
    ):
        raise AgentError("the agent's answer has no proper list of replies")
    return replies


def _machine_id() -> str:
    """A new machine id: a random UUID of version 4, as machine-id(5) wants (random(4))."""
    with open("/proc/sys/kernel/random/uuid") as file:
        return file.read().strip().replace("-", "")


async def _all(one: Awaitable[_One], other: Awaitable[_Other]) -> tuple[_One, _Other]:
    """Run both side by side; return both results. The first failure ends the other. If the other
    runs in a thread, the end of the event loop waits for it."""
    tasks = asyncio.ensure_future(one), asyncio.ensure_future(other)
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _caught(work: Awaitable[_One]) -> _One | TapwrightError:
    """The result, or the error as a value, so that the error does not end other work."""
    try:
        return await work
    except TapwrightError as error:
        return error
