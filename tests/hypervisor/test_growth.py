"""CPUs of a QEMU that grows. What a guest makes of them is in tests/oci/test_room.py."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tapwright.errors import HypervisorError
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu

GROWS = Machine(Path(), Path(), "tcg", vcpus=1, most_vcpus=3)


def option(machine: Machine, name: str) -> str:
    words = machine.command(3, 4, 5)
    return words[words.index(name) + 1]


@pytest.mark.unit
def test_an_emulated_guest_has_all_from_the_start() -> None:
    """Its kernel uses some."""
    assert option(GROWS, "-smp") == "3"
    assert "maxcpus=1" in option(GROWS, "-append").split()
    whole = replace(GROWS, vcpus=3)
    assert option(whole, "-smp") == "3"
    assert "maxcpus" not in option(whole, "-append")
    assert option(replace(GROWS, most_vcpus=0), "-smp") == "1"


@pytest.mark.unit
def test_others_are_plugged_in() -> None:
    machine = replace(GROWS, accelerator="kvm")
    assert option(machine, "-smp") == "1,maxcpus=3"
    assert "maxcpus" not in option(machine, "-append")


def test_qemu_takes_them(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order. Without KVM this needs no guest, which might not find them."""
    monkeypatch.setattr(Machine, "present_vcpus", 1)

    async def story() -> None:
        qemu = await Qemu.start(replace(machine, most_vcpus=3))
        try:
            for count in (2, 3):
                await qemu.growth.add_cpu()
                assert qemu.growth.vcpus == count
                assert len(await qemu.qmp.execute("query-cpus-fast")) == count
            last = max(await qemu.qmp.execute("query-hotpluggable-cpus"), key=lambda at: str(at))
            assert last["qom-path"] == "/machine/peripheral/cpu2"
            with pytest.raises(HypervisorError, match="all 3 CPUs that it can have are plugged in"):
                await qemu.growth.add_cpu()
        finally:
            await qemu.kill()

    asyncio.run(story())
