"""Machine types, huge pages, and what a NIC's port is to the guest."""

import asyncio
import fcntl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tapwright.agent.client import AgentClient
from tapwright.agent.requests import of
from tapwright.errors import HypervisorError
from tapwright.hypervisor import nics, ports
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.ports import Ports, pci_address
from tapwright.hypervisor.qemu import Qemu
from tests.guests import MAC, interface, plugged, run, tell

NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
OTHER_MAC = "02:00:00:00:00:5b"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("machine_type", "slot", "address"),
    [
        ("q35", 0, "01.0/00"),
        ("q35", 9, "02.1/00"),
        ("q35", 119, "0f.7/00"),
        ("q35", 120, "12.0/00"),  # the serial port and the random numbers are between
        ("q35", 223, "1e.7/00"),
        ("pc", 0, "02/01"),
        ("pc", 29, "02/1e"),
        ("pc", 30, "03/01"),
    ],
)
def test_addresses_are_those_of_kata(machine_type: str, slot: int, address: str) -> None:
    assert pci_address(slot, machine_type) == address


@pytest.mark.unit
@pytest.mark.parametrize("machine_type", ["q35", "pc"])
def test_every_slot_has_a_place_of_its_own(machine_type: str) -> None:
    most = ports.MOST[machine_type]
    all_of_them = Ports(machine_type, most)
    places = {tuple(all_of_them.place(slot).items()) for slot in range(most)}
    assert len(places) == len({pci_address(slot, machine_type) for slot in range(most)}) == most
    assert len(set(all_of_them.devices())) == len(all_of_them.devices()) < 255
    with pytest.raises(HypervisorError, match=f"{machine_type} has {most} at most"):
        Ports(machine_type, most + 1)


@pytest.mark.unit
def test_unknown_machine_type(machine: Machine) -> None:
    with pytest.raises(HypervisorError, match="'microvm' is none of q35, pc; set machine_type"):
        asyncio.run(Qemu.start(replace(machine, machine_type="microvm")))


async def is_seen_at(agent: AgentClient, mac: str, address: str) -> None:
    """The guest's kernel has the NIC behind that port or bridge."""
    name = interface(await agent.call(of("list_network")), mac)["name"]
    _, path = await run(agent, "readlink", "-f", f"/sys/class/net/{name}/device")
    _, port, device, _ = path.decode().rsplit("/", 3)
    first, second = address.split("/")
    assert port == f"0000:00:{first if '.' in first else f'{first}.0'}"
    assert device.endswith(f":{second}.0")


def test_pc(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """NICs on two of its bridges come and go."""
    monkeypatch.setattr(ports, "_PLACES_PER_BRIDGE", 1)
    monkeypatch.setattr(nics, "_VHOST", "/dev/null")  # QEMU would not survive it

    async def story(qemu: Qemu, agent: AgentClient) -> None:
        for number, mac in enumerate((MAC, OTHER_MAC)):
            assert await plugged(qemu, f"twt{number}", mac) == number
            await agent.call(of("set_interface", mac=mac, name=f"lan{number}"))
            await is_seen_at(agent, mac, pci_address(number, "pc"))
        await qemu.nics.unplug(0)
        await agent.call(of("list_network"))
        _, names = await run(agent, "ls", "/sys/class/net")
        assert names.split() == [b"lan1", b"lo"]
        assert await plugged(qemu, "twt2", MAC) == 0
        assert "Run /init as init process" in "".join(qemu._console.lines())

    tell(replace(machine, machine_type="pc", slots=2, vhost=False, debug=True), story)


@pytest.fixture
def hugepages() -> Iterator[int]:
    """So many of 2 MiB, free; for one test at a time, since they are the machine's."""
    Path("/run/lock").mkdir(exist_ok=True)
    with Path("/run/lock/twtest-hugepages").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before, wanted = int(NR_HUGEPAGES.read_text()), 160
        NR_HUGEPAGES.write_text(str(before + wanted))
        if int(NR_HUGEPAGES.read_text()) < before + wanted:
            NR_HUGEPAGES.write_text(str(before))
            pytest.skip(f"this host has no memory for {wanted} huge pages")
        yield wanted
        NR_HUGEPAGES.write_text(str(before))


def available_hugepages() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["HugePages_Free"]) - int(fields["HugePages_Rsvd"])


def test_hugepages_and_carrier(machine: Machine, hugepages: int) -> None:
    before = available_hugepages()

    async def memory_is_of_huge_pages(qemu: Qemu, agent: AgentClient) -> None:
        assert before - available_hugepages() == machine.memory_mib // 2

    async def carrier(qemu: Qemu, agent: AgentClient) -> None:
        slot = await plugged(qemu, "twt0", MAC)
        await agent.call(of("set_interface", mac=MAC, name="lan0"))
        await is_seen_at(agent, MAC, pci_address(slot))
        for up, shown in ((False, b"0"), (True, b"1")):
            await qemu.nics.set_link(slot, up)
            async with asyncio.timeout(60):
                while (await run(agent, "cat", "/sys/class/net/lan0/carrier"))[1].strip() != shown:
                    await asyncio.sleep(0.05)
        with pytest.raises(HypervisorError, match="QEMU refused set_link"):
            await qemu.nics.set_link(slot + 1, False)

    tell(
        replace(machine, hugepages=True),
        memory_is_of_huge_pages,
        carrier,
    )
    assert available_hugepages() == before


@pytest.mark.unit
def test_too_few_hugepages(machine: Machine) -> None:
    free = available_hugepages()
    huge = replace(machine, hugepages=True, memory_mib=2 * (free + 1))
    with pytest.raises(HypervisorError, match=rf"{free} are free; reserve .*vm.nr_hugepages=\d+"):
        asyncio.run(Qemu.start(huge))


@pytest.mark.unit
def test_half_a_huge_page(machine: Machine) -> None:
    with pytest.raises(HypervisorError, match=r"255 MiB can't be of huge pages of .* KiB"):
        asyncio.run(Qemu.start(replace(machine, hugepages=True, memory_mib=255)))
