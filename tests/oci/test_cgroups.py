"""What a sandbox of a platform may use of the host: the platform's control groups."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tapwright.linux import cgroups
from tests.oci.bundles import configuration
from tests.oci.runtime import Runtime
from tests.oci.test_pod import CRI, member

pytestmark = pytest.mark.usefixtures("nothing_left")

ABOVE = f"/twtest{os.urandom(4).hex()}.slice"
MIB = 1 << 20
VM_MIB = 256  # the default, which is more than what the pods here may use


def limit_of(path: str, controller: str, v1: str, v2: str) -> str:
    for hierarchy in cgroups.hierarchies():
        name = v1 if controller in hierarchy.controllers else v2 if hierarchy.is_v2 else ""
        file = Path(f"{hierarchy.directory(path)}/{name}")
        if name and file.exists():
            return file.read_text().strip()
    raise AssertionError(f"no {controller} in {path}")


def memory_of(path: str) -> str:
    return limit_of(path, "memory", "memory.limit_in_bytes", "memory.max")


def commands(path: str) -> dict[str, int]:
    """The processes in a group, by a word of their command."""
    words = ("qemu-system", "virtiofsd", "shim.sh", "-P\0-S\0")
    found = {}
    for pid in cgroups.members(path):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        (word,) = [word for word in words if word in command]
        found[word] = pid
    return found


@pytest.fixture
def none_left() -> Any:
    yield
    cgroups.remove_if_empty(ABOVE)
    assert not [
        hierarchy.directory(ABOVE)
        for hierarchy in cgroups.hierarchies()
        if os.path.exists(hierarchy.directory(ABOVE))
    ]


@pytest.mark.usefixtures("none_left")
def test_a_pod_is_in_its_groups_within_its_limits(runtime: Runtime) -> None:
    marks = {f"{CRI}container-type": "sandbox", f"{CRI}sandbox-id": "pod"}
    marks[f"{CRI}sandbox-memory"] = str(100 * MIB)
    content = configuration("sleep", "100000", annotations=marks)
    content["process"]["oomScoreAdj"] = 300
    content["linux"]["cgroupsPath"] = f"{ABOVE[1:]}:tw:pod"
    content["linux"]["resources"] = {"cpu": {"shares": 2, "cpus": "0"}, "pids": {"limit": 50}}
    of_pod, of_member = f"{ABOVE}/tw-pod.scope", f"{ABOVE}/member"
    with runtime.created(content, name="pod") as sandbox:
        found = commands(of_pod)
        assert set(found) == {"qemu-system", "virtiofsd", "shim.sh", "-P\0-S\0"}
        assert found["shim.sh"] == sandbox.pid
        assert memory_of(of_pod) == str((VM_MIB + 384) * MIB)
        assert limit_of(of_pod, "pids", "pids.max", "pids.max") == str(50 + 256)
        assert Path(f"/proc/{found['qemu-system']}/oom_score_adj").read_text() == "300\n"
        limits = Path(f"/proc/{found['qemu-system']}/limits").read_text()
        assert [line.split()[4:6] for line in limits.splitlines() if "core" in line] == [["0"] * 2]
        content = member(sandbox, "sleep", "1000")
        content["linux"]["cgroupsPath"] = of_member
        content["linux"]["resources"] = {"memory": {"limit": 50 * MIB}}
        with runtime.created(content) as container:
            container.start()
            assert cgroups.members(of_member) == {container.pid}
            assert memory_of(of_member) == str(50 * MIB)
            said = runtime.refused("update", "--cpuset-cpus", "0", container.id)
            assert "it lives in the VM of 'pod'" in said
            runtime.succeed("update", "--cpuset-cpus", "0-1", "--memory", "90m", sandbox.id)
            assert Path(f"/proc/{found['qemu-system']}/status").read_text().count("list:\t0-1\n")
            # Not less than the VM has, of which the guest may have touched all.
            assert memory_of(of_pod) == str((VM_MIB + 384) * MIB)
            assert "can't" not in runtime.refused("update", "--cpuset-cpus", "9999", sandbox.id)
        assert cgroups.members(of_member) == set()
        runtime.succeed("delete", "--force", sandbox.id)


@pytest.mark.usefixtures("none_left")
def test_all_in_the_group_is_killed(runtime: Runtime) -> None:
    content = configuration("sleep", "100000")
    path = content["linux"]["cgroupsPath"] = f"{ABOVE}/all"
    with runtime.created(content) as container:
        container.start()
        for pid in cgroups.members(path):
            os.kill(pid, signal.SIGKILL)
        assert container.wait() in (-9, 137)
        runtime.succeed("delete", container.id)
        assert runtime.tapwright.names() == set()


@pytest.mark.usefixtures("none_left")
def test_a_guest_that_takes_more_than_its_pod_was_given_is_ended(runtime: Runtime) -> None:
    """A container without a limit of its own can have all memory of the guest."""
    marks = {f"{CRI}container-type": "sandbox", f"{CRI}sandbox-id": "pod"}
    marks[f"{CRI}sandbox-memory"] = str(64 * MIB)
    fill = "while [ ! -e /data/go ]; do sleep 1; done; dd if=/dev/zero of=/dev/full-of-it bs=1M"
    content = configuration("sh", "-c", f"{fill}; sleep 1000", annotations=marks)
    path = content["linux"]["cgroupsPath"] = f"{ABOVE}/greedy"
    runtime.config = runtime.tapwright.configuration(
        {"overhead_memory": 600}, template=runtime.tapwright.templates
    )
    try:
        with runtime.created(content) as container:
            container.start()
            assert memory_of(path) == str((VM_MIB + 600) * MIB)
            # Down to what it needs as it is, for that differs from one accelerator to the other.
            used = int(limit_of(path, "memory", "memory.usage_in_bytes", "memory.current"))
            assert cgroups.limit(path, cgroups.Limits(memory=used + 40 * MIB)) == []
            container.says("touch", "/data/go")
            assert container.wait() == 137
            runtime.succeed("delete", container.id)
    finally:
        runtime.config = None
