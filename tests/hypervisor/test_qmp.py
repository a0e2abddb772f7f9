"""QEMU's monitor, and what a guest, or a QEMU that it has taken over, can have it send."""

import asyncio
import json
import socket

import pytest

from tapwright.errors import HypervisorError
from tapwright.hypervisor import qmp
from tapwright.hypervisor.qmp import Qmp

pytestmark = pytest.mark.unit

EVENT = (
    json.dumps({"event": "ACPI_DEVICE_OST", "data": {"info": {"device": "x" * 100}}}).encode()
    + b"\n"
)


def test_events_without_end_are_read_at_leisure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left waits in QEMU, in the sandbox's control group; an answer still comes."""

    async def story() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        at_leisure, go_on = asyncio.Event(), asyncio.Event()
        sleep = asyncio.sleep

        async def pause(seconds: float) -> None:
            if seconds:
                assert seconds <= qmp._LONGEST_PAUSE
                at_leisure.set()
                await go_on.wait()
            await sleep(0)

        monkeypatch.setattr("tapwright.hypervisor.qmp.asyncio.sleep", pause)
        monitor = Qmp(ours)
        seen = 0

        def count(data: object) -> None:
            nonlocal seen
            seen += 1

        monitor.on_event("ACPI_DEVICE_OST", count)
        flooding = asyncio.create_task(loop.sock_sendall(theirs, EVENT * 20_000))
        await at_leisure.wait()
        assert (4 << 20) / (len(EVENT) + 1024) < seen < 5000
        assert not flooding.done()
        asked = asyncio.create_task(monitor.execute("query-status"))
        go_on.set()
        await flooding
        await loop.sock_sendall(theirs, b'{"return": 5, "id": 1}\n')
        assert await asked == 5
        assert seen == 20_000
        await monitor.close()
        theirs.close()

    asyncio.run(asyncio.wait_for(story(), 60))


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
