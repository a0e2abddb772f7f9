"""A guest that was restored ahead, and belongs to no sandbox yet."""

from dataclasses import dataclass

from tapwright.agent.client import AgentClient
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.nics.interfaces import WaitingNic
from tapwright.supervisor.host_kernel import HostKernel


@dataclass
class Prepared:
    """The guest of a spare, which runs and answers, in the namespace `netns_fd`, which has no name.
    `memory` is a descriptor of its template's memory, if other guests share that. The guest has the
    settings of the host's kernel, which `host_kernel` follows."""

    machine: Machine
    accelerator_reason: str
    qemu: Qemu
    agent: AgentClient
    host_kernel: HostKernel
    nic: WaitingNic
    netns_fd: int
    memory: int | None

    async def stop(self) -> None:
        await self.agent.close()
        await self.qemu.kill()
