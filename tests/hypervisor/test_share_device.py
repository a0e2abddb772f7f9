"""The share's device in a QEMU: daemons that are none, or are no more. The guest has not booted."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tapwright.errors import HypervisorError
from tapwright.hypervisor import qemu as qemu_module
from tapwright.hypervisor import virtiofsd
from tapwright.hypervisor.machine import Daemon, Machine
from tapwright.hypervisor.qemu import Qemu
from tests.hypervisor.shares import has_ended, seen


def with_qemu(
    machine: Machine, daemon: Daemon, story: Callable[[Qemu], Awaitable[None]]
) -> tuple[int, int]:
    """The pids of QEMU and of the daemon, which have ended."""

    async def tell() -> tuple[int, int]:
        qemu = await Qemu.start(replace(machine, share=daemon))
        assert qemu.share
        try:
            async with asyncio.timeout(30):
                await story(qemu)
        finally:
            await qemu.kill()
        return qemu._process.pid, qemu.share.process.pid

    pids = asyncio.run(tell())
    assert all(has_ended(pid) for pid in pids)
    return pids


def script(directory: Path, commands: str) -> Daemon:
    program = directory / "virtiofsd"
    program.write_text(f"#!/usr/bin/sh\n{commands}\n")
    program.chmod(0o755)
    return Daemon(str(program))


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        ("exit 0", "it said nothing"),
        ("echo 'error: unexpected argument --fd' >&2; exit 2", "error: unexpected argument --fd"),
    ],
)
def test_one_that_does_not_start(
    machine: Machine, tmp_path: Path, commands: str, words: str
) -> None:
    async def story(qemu: Qemu) -> None:
        with pytest.raises(
            HypervisorError, match="the guest can't have the host's files: "
        ) as told:
            await qemu.plug_share()
        assert f"virtiofsd's last words: {words}" in str(told.value)

    with_qemu(machine, script(tmp_path, commands), story)


def test_one_that_does_not_answer(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU waits for it, and does nothing else meanwhile."""
    monkeypatch.setattr(qemu_module, "_PLUG_SECONDS", 0.5)

    async def story(qemu: Qemu) -> None:
        with pytest.raises(HypervisorError, match=r"it has not answered within 0\.5 s"):
            await qemu.plug_share()

    with_qemu(machine, script(tmp_path, "exec sleep 1000"), story)


def test_one_that_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtiofsd, "PATHS", ("/nowhere",))
    with pytest.raises(HypervisorError, match=r"there is no virtiofsd.* at /nowhere; install"):
        asyncio.run(Qemu.start(replace(machine, share=Daemon())))


def test_one_that_is_killed(machine: Machine, daemon: Daemon) -> None:
    """Its guest would wait for answers for ever: it is ended."""

    async def story(qemu: Qemu) -> None:
        await qemu.plug_share()
        assert qemu.share
        assert seen(qemu.share) == []
        os.kill(qemu.share.process.pid, signal.SIGKILL)
        assert await qemu.wait() == -signal.SIGKILL
        assert qemu.last_words() == (
            "it was ended, because the daemon that opens the host's files had ended"
        )

    with_qemu(machine, daemon, story)


def test_one_of_whose_threads_panics(machine: Machine, daemon: Daemon) -> None:
    """The others go on, and nobody answers the guest any more."""

    async def story(qemu: Qemu) -> None:
        await qemu.plug_share()
        assert qemu.share
        said = "thread 'vring_worker' panicked at src/passthrough/mod.rs:2358:49:"
        Path(f"/proc/{qemu.share.process.pid}/fd/2").write_text(f"\n{said}\nno UTF-8\n")
        assert await qemu.wait() == -signal.SIGKILL
        assert qemu.last_words().endswith(f"had ended: {said} / no UTF-8")

    with_qemu(machine, daemon, story)


def test_it_ends_with_its_qemu(machine: Machine, daemon: Daemon) -> None:
    """By itself; so what QEMU says last is not that the daemon had ended."""

    async def story(qemu: Qemu) -> None:
        await qemu.plug_share()
        assert qemu.share
        qemu._process.send_signal(signal.SIGKILL)
        await qemu.wait()
        assert await asyncio.to_thread(qemu.share.process.wait, 10) is not None
        assert "the daemon" not in qemu.last_words()

    with_qemu(machine, daemon, story)


@pytest.mark.parametrize("machine_type", ["q35", "pc"])
def test_it_takes_no_nic_s_place(machine: Machine, daemon: Daemon, machine_type: str) -> None:
    machine = replace(machine, machine_type=machine_type, slots=2, share=daemon)
    share = machine.ports.share_place()
    assert share not in [machine.ports.place(slot) for slot in range(2)]

    async def story(qemu: Qemu) -> None:
        await qemu.plug_share()
        devices = await qemu.qmp.execute("qom-list", path="/machine/peripheral")
        assert "share" in {device["name"] for device in devices}

    with_qemu(machine, daemon, story)
