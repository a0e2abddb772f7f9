"""Containers in a real guest, asked for of its agent directly."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame
from tapwright.agent.requests import of
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tests.containers import MAKE_ROOT, configuration, process
from tests.guests import run, tell


class Stream:
    """A process of a container by the frames of its stream."""

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()

    async def open(self, **request: Any) -> "Stream":
        self.number = await self._agent.open(request, self.frames.put_nowait)
        return self

    async def hear(self, kind: int) -> Any:
        """The content of the next frame, which must be of this kind."""
        frame = await asyncio.wait_for(self.frames.get(), 60)
        assert frame.kind == kind, frame
        return protocol.read_json(frame.payload) if frame.payload[:1] == b"{" else frame.payload


def test_containers(machine: Machine, session_templates: Path) -> None:
    async def made(agent: AgentClient, name: str, *argv: str) -> Stream:
        config = configuration(process(*argv))
        return await Stream(agent).open(op="create_container", id=name, config=config)

    async def prepare(qemu: Qemu, agent: AgentClient) -> None:
        reply, _ = await run(agent, "sh", "-c", MAKE_ROOT)
        assert reply == {"status": 0}

    async def life_of_one(qemu: Qemu, agent: AgentClient) -> None:
        """Its output comes after STARTED, and before the end."""
        stream = await made(agent, "one", "sh", "-c", "read x; echo $x; exit 6")
        # It need not be there yet.
        await agent.send(stream.number, protocol.STDIN, b"word\n")
        assert (await stream.hear(protocol.STARTED))["pid"] > 0
        await agent.call(of("start_container", id="one"))
        assert protocol.read_credit(await stream.hear(protocol.CREDIT)) == (protocol.STDIN, 5)
        assert await stream.hear(protocol.STDOUT) == b"word\n"
        ends = {(await asyncio.wait_for(stream.frames.get(), 60)).kind for _ in range(2)}
        assert ends == {protocol.STDOUT, protocol.STDERR}
        assert await stream.hear(protocol.REPLY) == {"status": 6}
        await agent.call(of("delete_container", id="one"))

    async def other_end_restarts(qemu: Qemu, agent: AgentClient) -> None:
        """No process remains that would learn of the end of containers, so the agent deletes
        them."""
        running = await made(agent, "two", "sleep", "86392")
        await running.hear(protocol.STARTED)
        await agent.call(of("start_container", id="two"))
        # One that is being made, and one that was not started.
        await (await made(agent, "three", "sleep", "86392")).hear(protocol.STARTED)
        await made(agent, "four", "sleep", "86392")
        copy = socket.socket(fileno=os.dup(qemu.agent.fileno()))
        await agent.close()
        again = AgentClient(copy)
        await again.connect(60)
        for name in ("two", "three", "four"):
            # Answered when that is done which is going on.
            await again.call(of("delete_container", id=name, force=True), timeout=60)
        script = "find /run/crun/* /run/tapwright/*/*; ps -o args | grep 8639[2]; true"
        _, left = await run(again, "sh", "-c", script)
        assert left == b""
        await again.close()
        copy.close()

    tell(machine, prepare, life_of_one, other_end_restarts, templates=session_templates)
