"""A real guest: booted or restored, spoken to, given NICs."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame
from tapwright.hypervisor import restoring, template
from tapwright.hypervisor.backends import Tap
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.linux import tuntap

MAC = "02:00:00:00:00:5a"
BOOT_SECONDS = 60

Story = Callable[[Qemu, AgentClient], Awaitable[None]]


@asynccontextmanager
async def running(machine: Machine) -> AsyncIterator[tuple[Qemu, AgentClient]]:
    qemu = await Qemu.start(machine)
    async with _spoken_to(qemu, AgentClient(qemu.agent)) as guest:
        yield guest


class Alone:
    """Holders of which there is only this process."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def paths(self) -> list[str]:
        return [f"/proc/self/fd/{fd}" for fd in self.fds]

    def enter(self, fd: int) -> None:
        self.fds.append(fd)


@asynccontextmanager
async def restored(
    machine: Machine, templates: Path, holders: Alone
) -> AsyncIterator[tuple[Qemu, AgentClient]]:
    """One from a template, which is made where there is none in the directory."""
    found = await template.find_or_make(machine, templates, 0, BOOT_SECONDS, print)
    with closing(found):
        begun = restoring.begin(machine, found, holders)
        qemu = await template.restored(machine, begun)
    async with _spoken_to(qemu, AgentClient(qemu.agent, session=begun.session)) as guest:
        yield guest


@asynccontextmanager
async def _spoken_to(qemu: Qemu, agent: AgentClient) -> AsyncIterator[tuple[Qemu, AgentClient]]:
    try:
        await agent.connect(BOOT_SECONDS)
        yield qemu, agent
    finally:
        await agent.close()
        await qemu.kill()


def tell(machine: Machine, *stories: Story, templates: Path | None = None) -> None:
    """Boot one guest, or start it from a template, and run the stories on it, one after the
    other."""

    async def all_of_them() -> None:
        one = restored(machine, templates, Alone()) if templates else running(machine)
        async with one as (qemu, agent):
            for story in stories:
                await story(qemu, agent)

    asyncio.run(all_of_them())


async def plugged(qemu: Qemu, name: str, mac: str) -> int:
    fd = tuntap.create(name)
    try:
        return await qemu.nics.plug(Tap([fd]), mac)
    finally:
        os.close(fd)


async def run(agent: AgentClient, *argv: str) -> tuple[Any, bytes]:
    """A command's reply and stdout."""
    over: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    output = bytearray()

    def take(frame: Frame) -> None:
        if frame.kind == protocol.STDOUT:
            output.extend(frame.payload)
        elif frame.kind in (protocol.REPLY, protocol.ERROR) and not over.done():
            over.set_result(protocol.read_json(frame.payload))

    await agent.open({"op": "exec", "argv": list(argv)}, take)
    return await asyncio.wait_for(over, BOOT_SECONDS), bytes(output)


def interface(listed: dict[str, Any], mac: str) -> Any:
    (found,) = [entry for entry in listed["interfaces"] if entry["mac"] == mac]
    return found
