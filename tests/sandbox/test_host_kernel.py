"""The guest's kernel follows the host's: settings of a whole host, and the clock."""

import time
from pathlib import Path

import pytest

from tapwright.agent.client import AgentClient
from tapwright.agent.requests import change_kernel_settings
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.supervisor.host_kernel import SETTINGS, HostKernel
from tests.guests import run, tell


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """As /proc/sys of a host that Elasticsearch runs on."""
    for name, value in {
        "vm/max_map_count": "262144",
        "vm/overcommit_memory": "2",
        "fs/inotify/max_user_watches": "1048576",
        "kernel/core_pattern": "|/usr/lib/a-program-of-the-host",
        "kernel/pid_max": "4194304",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    return tmp_path


def test_it_follows(machine: Machine, settings: Path) -> None:
    async def read(agent: AgentClient, name: str) -> str:
        return (await run(agent, "cat", f"/proc/sys/{name}"))[1].decode().strip()

    async def settings_are_the_hosts(qemu: Qemu, agent: AgentClient) -> None:
        kernel = HostKernel(agent, settings)
        await kernel.look()
        assert await read(agent, "vm/max_map_count") == "262144"
        assert await read(agent, "fs/inotify/max_user_watches") == "1048576"
        assert await read(agent, "kernel/pid_max") == "4194304"
        assert await read(agent, "vm/overcommit_memory") != "2"
        assert not (await read(agent, "kernel/core_pattern")).startswith("|")
        # What a program in the guest has set stays until the host's changes.
        await run(agent, "sh", "-c", "echo 300000 >/proc/sys/vm/max_map_count")
        await kernel.look()
        assert await read(agent, "vm/max_map_count") == "300000"
        (settings / "vm/max_map_count").write_text("65530\n")
        await kernel.look()
        assert await read(agent, "vm/max_map_count") == "65530"

    async def what_was_given_ahead_is_not_given_again(qemu: Qemu, agent: AgentClient) -> None:
        kernel = HostKernel(agent, settings)
        await kernel.carry()
        await run(agent, "sh", "-c", "echo 300000 >/proc/sys/fs/inotify/max_user_watches")
        (settings / "vm/max_map_count").write_text("70000\n")
        async with kernel.followed():
            assert await read(agent, "fs/inotify/max_user_watches") == "300000"
            assert await read(agent, "vm/max_map_count") == "70000"

    async def clock_is_the_hosts(qemu: Qemu, agent: AgentClient) -> None:
        kernel = HostKernel(agent, settings)
        for stepped in ("@1000000000", "@4000000000"):
            await run(agent, "date", "-s", stepped)
            before = int(time.time())
            await kernel.look()
            (_, seconds) = await run(agent, "date", "+%s")
            assert before <= int(seconds) <= time.time() + 1

    async def all_are_taken(qemu: Qemu, agent: AgentClient) -> None:
        found = [
            [name, (Path("/proc/sys") / name).read_text()] for name in SETTINGS if _is_here(name)
        ]
        assert len(found) > len(SETTINGS) // 2
        assert await agent.call(change_kernel_settings(found)) == {"refused": []}

    tell(
        machine,
        settings_are_the_hosts,
        what_was_given_ahead_is_not_given_again,
        clock_is_the_hosts,
        all_are_taken,
    )


def _is_here(name: str) -> bool:
    """Also in a guest without a share, which has not loaded connection tracking."""
    return (Path("/proc/sys") / name).exists() and "nf_conntrack" not in name
