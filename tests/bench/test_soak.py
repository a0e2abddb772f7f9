"""`scripts/soak`, as far as it needs no guest: its transfers, and its watchdog. The other end is a
namespace; a QEMU that stands still from the beginning reports its queues."""

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench import endpoints, soak
from bench.endpoints import Shell
from bench.place import make_bridge, run
from bench.soak import End, Transfer, Watchdog
from tapwright.control.looking import Looking
from tapwright.hypervisor.qmp import Qmp

SPACE = "bench-soak"


@dataclass(frozen=True)
class Inside(End):
    """A namespace in place of a guest."""

    @property
    def shell(self) -> Shell:
        return endpoints.in_namespace(SPACE)


@pytest.fixture
def end() -> Iterator[End]:
    make_bridge(endpoints.BRIDGE, f"{endpoints.HOST}/16")
    try:
        with endpoints.namespace(SPACE):
            endpoints.veth(SPACE)
            endpoints.configure(SPACE, "10.78.1.1")
            yield Inside("veth", "", "", "10.78.1.1", 5101)
    finally:
        run(f"ip link delete {endpoints.BRIDGE}")


def unwatched(end: End, place: Path) -> None:
    raise AssertionError("a transfer stood still")


@pytest.mark.parametrize("direction", ["to", "from"])
def test_a_transfer(end: End, tmp_path: Path, direction: str) -> None:
    transfer = Transfer(0, end.name, direction, seconds=0.2)
    soak.run(Watchdog(30, tmp_path, unwatched), end, transfer)
    assert transfer.is_sound, transfer
    assert transfer.bytes > 0
    assert "0 stood still, 0 failed" in soak.summary([transfer])
    assert soak.ways([transfer]) == {end.name: (1, 0) if direction == "to" else (0, 1)}


@pytest.mark.parametrize("direction", ["to", "from"])
def test_one_that_stands_still_is_seen(end: End, tmp_path: Path, direction: str) -> None:
    """The watchdog writes down what it sees; then the transfer goes on, and the watchdog reports
    it."""
    down: list[str] = []

    class Cutting(Watchdog):
        def waits(self, transfer: Transfer, end: End, event: int, file: Any) -> None:
            if transfer.bytes and not down:
                down.append(f"ip -n {SPACE} link set eth0")
                run(f"{down[0]} down")
                self.gap = 0.3
            super().waits(transfer, end, event, file)

    def capture(end: End, place: Path) -> None:
        inside = "ip", "netns", "exec", SPACE
        soak._write(place / "namespace", lambda: soak._namespace(inside))
        run(f"{down[0]} up")

    transfer = Transfer(7, end.name, direction, seconds=0.5)
    soak.run(Cutting(30, tmp_path, capture), end, transfer)
    assert transfer.gaps
    assert not transfer.failed
    assert not transfer.is_sound
    told = Path(transfer.captured[0], "namespace").read_text()
    assert "eth0" in told
    assert "state DOWN" in told
    assert f":{end.port} " in told, "the socket that waits"
    assert f"7: {end.name}, {direction} the guest" in soak.summary([transfer])


def test_queues_of_qemu() -> None:
    async def asked() -> Any:
        ours, theirs = socket.socketpair()
        monitor = f"socket,id=monitor,fd={theirs.fileno()}"
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-machine", "q35"]
        command += ["-chardev", monitor, "-mon", "chardev=monitor,mode=control"]
        command += ["-netdev", "socket,id=net,listen=127.0.0.1:0"]
        command += ["-device", "virtio-net-pci,netdev=net,id=nic"]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            qmp = Qmp(ours)
            try:
                await qmp.connect()
                await qmp.execute("qmp_capabilities")
                nobody: Any = None
                return await Looking(nobody, qmp).queues()
            finally:
                process.kill()
                await qmp.close()

    found = asyncio.run(asked())
    assert [each["name"] for each in found["filters"]] == ["nic"]
    (queues,) = found["devices"].values()
    assert [queue["queue-index"] for queue in queues] == [0, 1, 2]  # receive, send, control
