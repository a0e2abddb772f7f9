"""The guest of a sandbox, and how it comes to life: from a template, or by booting.

Whatever is wrong with a template, the guest is booted instead, and nobody sees more of it than the
time; the sandbox's log says why.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from tapwright.agent.client import AgentClient
from tapwright.errors import AgentError, HypervisorError, TapwrightError
from tapwright.hypervisor import accelerator
from tapwright.hypervisor.qemu import Machine, Qemu
from tapwright.sandbox.following import Following
from tapwright.sandbox.interfaces import Interfaces
from tapwright.sandbox.record import Journal, Spec

Progress = Callable[[str], None]
PhaseOf = Callable[[str], AbstractContextManager[None]]

_RESTORE_SECONDS = 10.0
_MEMORY = "memory"

_log = logging.getLogger(__name__)


def machine_of(spec: Spec) -> Machine:
    """What is to be started, but for namespace and accelerator, which are to be chosen."""
    return Machine(
        kernel=Path(spec.kernel),
        initrd=Path(spec.initrd),
        accelerator=spec.accelerator,
        path=spec.qemu,
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        kernel_parameters=spec.kernel_params,
        memory_directory=spec.memory_directory,
        slots=spec.slots,
        machine_type=spec.machine_type,
        hugepages=spec.hugepages,
        vhost=spec.vhost,
        debug=spec.debug,
        share=spec.share,
    )


async def make_template(spec: Spec, progress: Progress) -> None:
    """Make the template that a sandbox would start from, where there is none; nothing happens when
    it would be booted. Raises HypervisorError, AgentError."""
    from tapwright.hypervisor import template

    wanted = machine_of(spec)
    if not spec.template:
        return
    chosen, _ = await accelerator.choose(wanted, progress)
    machine = replace(wanted, accelerator=chosen)
    directory = Path(spec.template)
    try:
        found = await template.find_or_make(
            machine, directory, spec.boot_timeout, progress, again=True
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

    async def answers(self, timeout: float) -> None:
        """Wait until the agent does. Raises AgentError, also when QEMU ends before."""
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

    async def stop(self) -> None:
        await self.agent.close()
        await self.qemu.stop()


class Starter:
    """Starts the guest of a journal's sandbox. `guest` is there as soon as QEMU runs."""

    def __init__(self, journal: Journal, progress: Progress, phase: PhaseOf) -> None:
        self._journal = journal
        self._progress = progress
        self._phase = phase
        self.guest: Guest | None = None

    async def start(self, machine: Machine) -> Guest:
        """Return when the agent answers. Raises HypervisorError, AgentError."""
        spec = self._journal.record.spec
        if spec.template and (restored := await self._restored(machine, Path(spec.template))):
            return restored
        with self._phase("qemu"):
            guest = self._guest(await Qemu.start(machine))
        with self._phase("boot"):
            await guest.answers(spec.boot_timeout)
        return guest

    def _guest(self, qemu: Qemu) -> Guest:
        agent = AgentClient(qemu.agent, is_new=True)
        interfaces = Interfaces(self._journal, qemu, agent)
        following = Following(self._journal.record.netns, interfaces, agent)
        self.guest = Guest(qemu, agent, interfaces, following)
        return self.guest

    async def _restored(self, machine: Machine, directory: Path) -> Guest | None:
        from tapwright.hypervisor import template

        timeout = self._journal.record.spec.boot_timeout
        holders = Holders(self._journal.directory)
        try:
            with self._phase("template"):
                found = await template.find_or_make(machine, directory, timeout, self._progress)
        except (TapwrightError, OSError) as error:
            _log.warning("booted, for there is no template: %s", error)
            return None
        with contextlib.closing(found):
            try:
                with self._phase("memory"):
                    memory = await asyncio.to_thread(template.memory_of, machine, found, holders)
                with self._phase("qemu"):
                    guest = self._guest(await template.restore(machine, found, memory))
                with self._phase("restore"):
                    await guest.answers(_RESTORE_SECONDS)
                if guest.agent.facts.get("reseeded") is not True:
                    raise AgentError("its random numbers would be those of other guests")
            except (TapwrightError, OSError) as error:
                _log.warning("booted, for the template is of no use: %s", error)
                template.give_up(directory, found, error)
            else:
                return guest
        if self.guest:
            await self.guest.stop()
            self.guest = None
        return None


class Holders:
    """The sandboxes beside one, and that one: who has the memory of a template says so by a link in
    its directory, which goes with it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def paths(self) -> list[str]:
        found = []
        for link in self._directory.parent.glob(f"*/{_MEMORY}"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(link))
        return found

    def enter(self, fd: int) -> None:
        os.symlink(f"/proc/{os.getpid()}/fd/{fd}", self._directory / _MEMORY)
