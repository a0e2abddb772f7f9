"""QEMU's monitor, and what a guest, or a QEMU that it has taken over, can make it send."""

import asyncio
import json
import socket

import pytest

from tapwright.agent.client import AgentClient
from tapwright.errors import HypervisorError
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.hypervisor.qmp import Qmp
from tests.guests import run, tell

EVENT = (
    json.dumps({"event": "ACPI_DEVICE_OST", "data": {"info": {"device": "x" * 100}}}).encode()
    + b"\n"
)


# Command 2 of ICH9's registers of processors tells a status (docs/specs/acpi_cpu_hotplug.rst in
# QEMU's sources), for each of which there is an event.
FLOOD = """
import os
port = os.open("/dev/port", os.O_RDWR)
for register, value in ((0, bytes(4)), (5, b"\\2")):
    os.pwrite(port, value, 0xcd8 + register)
while True:
    os.pwrite(port, b"\\0", 0xcd8 + 8)
"""


def test_a_guest_that_has_qemu_send_events(machine: Machine) -> None:
    async def floods(qemu: Qemu, agent: AgentClient) -> None:
        flooding = asyncio.create_task(run(agent, "python3", "-c", FLOOD))
        async with asyncio.timeout(100):
            await qemu.qmp.has_broken_rules.wait()
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)

    tell(machine, floods)


@pytest.mark.unit
def test_events_without_end_end_it() -> None:
    """What is not read would stay in QEMU's memory."""

    async def story() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        monitor = Qmp(ours)
        seen = 0

        def count(data: object) -> None:
            nonlocal seen
            seen += 1

        monitor.on_event("ACPI_DEVICE_OST", count)
        # As many as there may be at once.
        most = (4 << 20) // (len(EVENT) + 1024)
        await loop.sock_sendall(theirs, EVENT * most)
        asked = asyncio.create_task(monitor.execute("query-status"))
        await loop.sock_recv(theirs, 4096)
        await loop.sock_sendall(theirs, b'{"return": 5, "id": 1}\n')
        assert await asked == 5
        assert seen == most
        assert not monitor.has_broken_rules.is_set()
        flooding = asyncio.create_task(loop.sock_sendall(theirs, EVENT * 100_000))
        await monitor.has_broken_rules.wait()
        assert seen < 50_000
        with pytest.raises(HypervisorError, match="QEMU is gone"):
            await monitor.execute("query-status")
        await monitor.close()
        await asyncio.gather(flooding, return_exceptions=True)
        theirs.close()

    asyncio.run(asyncio.wait_for(story(), 60))


@pytest.mark.unit
@pytest.mark.parametrize("sent", [b"[" * 100_000, b"nonsense", b"\xff"])
def test_no_answer_that_makes_sense(sent: bytes) -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        monitor = Qmp(ours)
        asked = asyncio.create_task(monitor.execute("query-status"))
        await asyncio.get_running_loop().run_in_executor(None, theirs.recv, 4096)
        theirs.sendall(sent + b"\n")
        with pytest.raises(HypervisorError, match="QEMU has ended"):
            await asked
        await monitor.close()
        theirs.close()

    asyncio.run(asyncio.wait_for(story(), 60))
