"""A guest that was restored ahead, and belongs to no sandbox so far."""

from dataclasses import dataclass

from tapwright.agent.client import AgentClient
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.nics.interfaces import WaitingNic


@dataclass
class Prepared:
    """What a spare has: a guest that runs and answers, in the namespace `netns_fd`, which has no
    name; `memory` is a descriptor of its template's, where others share that."""

    machine: Machine
    accelerator_reason: str
    qemu: Qemu
    agent: AgentClient
    nic: WaitingNic
    netns_fd: int
    memory: int | None

    async def stop(self) -> None:
        await self.agent.close()
        await self.qemu.kill()
