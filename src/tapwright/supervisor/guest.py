"""Starts the guest of a sandbox: from a template, or by booting.

When anything is wrong with a template, the guest boots instead: only time is lost, and the caller
gets a line that says why.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from tapwright.agent.client import AgentClient
from tapwright.errors import AgentError, HypervisorError, TapwrightError
from tapwright.hypervisor import accelerator, restoring
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.hypervisor.restoring import Restoring
from tapwright.hypervisor.template_store import Store, Template
from tapwright.nics.following import Following
from tapwright.nics.interfaces import Interfaces
from tapwright.progress import Progress
from tapwright.state.entries import TemplateDraft
from tapwright.state.record import Journal, Spec
from tapwright.supervisor.host_kernel import HostKernel
from tapwright.supervisor.prelude import Holders
from tapwright.supervisor.prepared import Prepared

_RESTORE_SECONDS = 10.0

_log = logging.getLogger(__name__)


async def make_template(spec: Spec, progress: Progress) -> None:
    """Make the template for a sandbox, unless it exists. Do nothing for a sandbox that boots.
    Raises HypervisorError, AgentError."""
    from tapwright.hypervisor import template

    wanted = spec.machine
    if not spec.template:
        return
    chosen, _ = await accelerator.choose(wanted, progress)
    machine = replace(wanted, accelerator=chosen)
    directory = Path(spec.template)
    try:
        found = await template.find_or_make(
            machine, directory, spec.template_limit, spec.boot_timeout, progress, again=True
        )
    except OSError as error:
        raise HypervisorError(f"no template can be made in {directory}: {error}") from None
    found.close()


@dataclass
class Guest:
    """A running VM and the way to talk to it."""

    qemu: Qemu
    agent: AgentClient
    interfaces: Interfaces
    following: Following
    host_kernel: HostKernel

    async def answers(self, timeout: float) -> None:
        """Wait until the agent answers. Raises AgentError, also when QEMU ends before that."""
        answered = asyncio.create_task(self.agent.connect(timeout))
        ended = asyncio.create_task(self.qemu.wait())
        try:
            await asyncio.wait((answered, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise AgentError(f"QEMU ended: {self.qemu.last_words()}")
            await answered
        except AgentError as error:
            raise AgentError(
                f"the guest did not come up: {error}. Its last words: {self.qemu.last_words()}"
            ) from None
        finally:
            for task in (answered, ended):
                task.cancel()
            await asyncio.gather(answered, ended, return_exceptions=True)

    async def begin_anew(self) -> None:
        """Give the guest of a spare a new seed for its random numbers, before any program runs in
        it. Raises AgentError."""
        await self.agent.renew(_RESTORE_SECONDS)
        if self.agent.facts.get("reseeded") is not True:
            raise AgentError("its random numbers would be those of another guest")

    async def stop(self) -> None:
        await self.agent.close()
        await self.qemu.kill()


class Starter:
    """Starts the guest of a journal's sandbox. `guest` is set as soon as QEMU runs; `warn` gets the
    reason when the guest boots although a template is wanted."""

    def __init__(self, journal: Journal, progress: Progress, warn: Progress) -> None:
        self._journal = journal
        self._spec = journal.record.spec
        self._progress = progress
        self._warn_caller = warn
        self._template: Template | None = None
        self.guest: Guest | None = None

    async def start(self, machine: Machine, begun: Restoring | None) -> Guest:
        """Return the guest when NICs can be plugged in. The agent of a booted guest answers by
        then; that of a restored one may still be waking up. `begun` is a restore on its way.

        Raises HypervisorError, AgentError.
        """
        restored = await self._restored(machine, begun) if self._spec.template else None
        return restored or await self.boot(machine)

    def take(self, prepared: Prepared) -> Guest:
        """Take the guest of a spare."""
        guest = self._guest_of(prepared.qemu, prepared.agent, prepared.host_kernel)
        guest.interfaces.expect(prepared.nic)
        return guest

    async def boot(self, machine: Machine) -> Guest:
        """Start the guest without a template. Raises HypervisorError, AgentError."""
        with self._journal.phase("qemu"):
            guest = self._guest(await Qemu.start(machine))
            await guest.qemu.plug_share()
        with self._journal.phase("boot"):
            await guest.answers(self._spec.boot_timeout)
        return guest

    async def answered(self) -> bool:
        """Wait until the agent of a restored guest answers, and return True. When it fails to
        answer properly, give the template up, and return False: the guest is of no use."""
        guest, found = self.guest, self._template
        if guest is None or found is None:
            return True
        try:
            with self._journal.phase("agent"):
                await guest.answers(_RESTORE_SECONDS)
            if guest.agent.facts.get("reseeded") is not True:
                raise AgentError("its random numbers would be those of other guests")
        except AgentError as error:
            self._give_up(found, error)
            return False
        else:
            return True
        finally:
            found.close()
            self._template = None

    async def stop(self) -> None:
        """End the guest, if there is one."""
        if self.guest:
            await self.guest.stop()
            self.guest = None

    def _guest(self, qemu: Qemu, session: int = 0) -> Guest:
        agent = AgentClient(qemu.agent, is_new=not session, session=session, process=qemu.pid)
        return self._guest_of(qemu, agent, HostKernel(agent))

    def _guest_of(self, qemu: Qemu, agent: AgentClient, host_kernel: HostKernel) -> Guest:
        interfaces = Interfaces(self._journal, qemu, agent)
        netns = self._journal.record.netns
        # Only containers may have programs that use indexes.
        has_containers = self._spec.machine.share is not None
        following = Following(netns, interfaces, agent, self._spec.rulesets, has_containers)
        self.guest = Guest(qemu, agent, interfaces, following, host_kernel)
        return self.guest

    async def _restored(self, machine: Machine, begun: Restoring | None) -> Guest | None:
        from tapwright.hypervisor import template

        begun = begun or await self._begun(machine)
        if begun is None:
            return None
        self._template = begun.template
        try:
            with self._journal.phase("restore"):
                qemu = await template.restored(machine, begun)
        except HypervisorError as error:
            self._give_up(begun.template, error)
            begun.template.close()
            self._template = None
            return None
        guest = self._guest(qemu, begun.session)
        with self._journal.phase("share"):
            await qemu.plug_share()
        return guest

    async def _begun(self, machine: Machine) -> Restoring | None:
        from tapwright.hypervisor import template
        from tapwright.supervisor import template_making

        spec = self._spec
        # The journal has the draft of a new template until that is complete.
        draft = self._journal.enter(TemplateDraft(spec.template))
        try:
            with self._journal.phase("template"):
                found = await template.find_or_make(
                    machine,
                    Path(spec.template),
                    spec.template_limit,
                    spec.boot_timeout,
                    self._progress,
                    elsewhere=template_making.elsewhere(spec, machine.accelerator),
                )
            self._journal.release(draft)
        except (TapwrightError, OSError) as error:
            with contextlib.suppress(OSError):
                Store(Path(spec.template)).clear()  # of a maker that was killed
            self._journal.release(draft)
            self._warn(f"booted, because there is no template: {error}")
            return None
        try:
            with self._journal.phase("memory"):
                return restoring.begin(machine, found, Holders(self._journal.directory))
        except (TapwrightError, OSError) as error:
            self._give_up(found, error)
            found.close()
            return None

    def _give_up(self, found: Template, error: Exception) -> None:
        from tapwright.hypervisor import template

        self._warn(f"booted, because the template is of no use: {error}")
        template.give_up(Path(self._spec.template), found, error)

    def _warn(self, text: str) -> None:
        _log.warning("%s", text)
        self._warn_caller(" ".join(text.split()))  # one line, whatever QEMU said
