"""The VM grows with what its containers may use, and gives back."""

from pathlib import Path
from typing import Any

import pytest

from tapwright.hypervisor.machine import Machine
from tapwright.sandbox import needs
from tapwright.state.record import Spec
from tests.oci.bundles import configuration
from tests.oci.runtime import Container, Runtime
from tests.oci.test_cgroups import (  # noqa: F401 - a fixture
    ABOVE,
    commands,
    limit_of,
    memory_of,
    none_left,
)
from tests.oci.test_pod import member, pod

MIB = 1 << 20
MAPPING = ("qemu-system", "virtiofsd")
VM_MIB, UNIT_MIB, OVERHEAD_MIB = 256, 128, 384


@pytest.mark.unit
@pytest.mark.parametrize(
    ("pod", "containers", "mib", "vcpus"),
    [
        ((0, 0), [], 256, 1),
        ((0, 0), [(0, 0)], 256, 1),
        ((0, 0), [(100, 0.5)], 256, 1),
        ((0, 0), [(144, 0.5)], 256, 1),
        ((0, 0), [(145, 0.5)], 384, 1),  # 112 MiB are for the guest
        ((0, 0), [(200, 0.1), (200, 0.2), (0, 0.7)], 256 + 4 * 128, 1),  # 0 counts as the default
        ((0, 0), [(300, 1.0), (300, 0.1)], 256 + 4 * 128, 2),
        ((1000, 2), [(300, 0.5), (0, 0)], 256 + 7 * 128, 2),
        ((200, 1), [(300, 1), (300, 2)], 256 + 4 * 128, 3),
    ],
)
def test_what_containers_need(
    pod: tuple[int, float], containers: list[tuple[int, float]], mib: int, vcpus: int
) -> None:
    spec = Spec(Machine(Path(), Path()), default_memory_mib=256)
    claims = [needs.Claim(memory * MIB, cpus) for memory, cpus in containers]
    found = needs.wanted(spec, needs.Claim(pod[0] * MIB, pod[1]), claims)
    assert (found.memory_mib, found.vcpus) == (mib, vcpus)


@pytest.mark.unit
def test_limits_that_are_not_given_stay() -> None:
    claim = needs.Claim().changed(
        {"memory": {"limit": 5 * MIB}, "cpu": {"quota": 150_000, "period": 50_000}}
    )
    assert (claim.memory, claim.cpus) == (5 * MIB, 3)
    for nothing in ({}, None, {"memory": None, "cpu": {"quota": True}}, {"memory": {"limit": "x"}}):
        again = claim.changed(nothing)
        assert (again.memory, again.cpus) == (5 * MIB, 3)
    for none in (-1, 2**63 - 4096):
        assert claim.changed({"memory": {"limit": none}}).memory == 0
    assert claim.changed({"cpu": {"quota": -1}}).cpus == 0


def with_memory(content: dict[str, Any], mib: int) -> dict[str, Any]:
    """A container that may use so much, and has a tmpfs in which that can be tried."""
    content["linux"]["resources"] = {"memory": {"limit": mib * MIB}}
    content["mounts"].append(
        {"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=2g"]}
    )
    return content


def fills(container: Container, mib: int) -> bool:
    """Whether it can have so much memory; else it is killed."""
    fill = f"dd if=/dev/zero of=/data/fill bs=1M count={mib} 2>&1"
    done = container.exec("sh", "-c", f"{fill}; status=$?; rm /data/fill; exit $status")
    assert done.returncode in (0, 137), done
    return done.returncode == 0


def size_of(runtime: Runtime, sandbox: str) -> tuple[int, int]:
    found = runtime.tapwright.json("sandbox", "inspect", sandbox)
    return found["memory_mib"], found["vcpus"]


def cpus(container: Container) -> int:
    return int(container.says("nproc"))


@pytest.mark.usefixtures("nothing_left")
def test_members_get_room(runtime: Runtime) -> None:
    """Of a pod that has no limit: each has a limit above what the VM started with."""
    with pod(runtime) as sandbox:
        assert size_of(runtime, sandbox.id) == (VM_MIB, 1)
        with (
            runtime.created(with_memory(member(sandbox, "sleep", "1000"), 300)) as one,
            runtime.created(with_memory(member(sandbox, "sleep", "1000"), 400)) as other,
        ):
            for container in (one, other):
                container.start()
            mib, _ = size_of(runtime, sandbox.id)
            assert 700 < mib < 1100
            both = ("sh", "-c", "dd if=/dev/zero of=/data/x bs=1M count=$0 2>&1 && sleep 1")
            assert one.exec(*both, "260").returncode == 0
            assert other.exec(*both, "360").returncode == 0
            assert one.state["status"] == other.state["status"] == "running"


@pytest.mark.usefixtures("nothing_left", "none_left")
@pytest.mark.smoke
def test_update_is_followed_by_the_vm(runtime: Runtime) -> None:
    """And by its control group on the host. What fails leaves all as it was."""
    content = with_memory(configuration("sleep", "1000"), 100)
    content["linux"]["cgroupsPath"] = path = f"{ABOVE}/grows"
    content["linux"]["resources"]["cpu"] = {"quota": 50_000, "period": 100_000}
    with runtime.created(content) as container:
        container.start()
        assert (size_of(runtime, container.id), cpus(container)) == ((VM_MIB, 1), 1)
        assert memory_of(path) == str((VM_MIB + OVERHEAD_MIB) * MIB)
        assert not fills(container, 150)
        processes = [pid for word, pid in commands(path).items() if word in MAPPING]
        before = [maps_of_memory(pid) for pid in processes]
        runtime.succeed("update", "--memory", "500m", "--cpu-quota", "150000", container.id)
        (mib, _) = size = size_of(runtime, container.id)
        assert size == (VM_MIB + 3 * UNIT_MIB, 2)
        assert cpus(container) == 2
        assert memory_of(path) == str((mib + OVERHEAD_MIB) * MIB)
        assert quota_of(path) == 150_000 + 25_000
        assert fills(container, 450)
        assert not fills(container, 550)
        assert said(runtime, container, "--memory", "100m", "--cpu-quota", "50000") == ""
        assert (size_of(runtime, container.id), cpus(container)) == ((VM_MIB, 1), 1)
        assert memory_of(path) == str((VM_MIB + OVERHEAD_MIB) * MIB)
        assert container.says("ls", "/bin")  # the files of the host are there as they were
        assert [maps_of_memory(pid) for pid in processes] == before
        # A quarter of much memory is the kernel's, too, which can't give it back.
        runtime.succeed("update", "--memory", "2000m", container.id)
        assert size_of(runtime, container.id) == (VM_MIB + 15 * UNIT_MIB, 1)
        assert "the VM keeps 384 MiB more than it needs" in said(
            runtime, container, "--memory", "100m"
        )
        assert size_of(runtime, container.id) == (VM_MIB + 3 * UNIT_MIB, 1)
        assert memory_of(path) == str((VM_MIB + 384 + OVERHEAD_MIB) * MIB)


@pytest.mark.usefixtures("nothing_left", "none_left")
def test_a_vm_that_can_t_grow_keeps_the_old_limits(runtime: Runtime) -> None:
    runtime.config = runtime.tapwright.configuration(kernel_params="nr_cpus=1", memory_slots=1)
    content = with_memory(configuration("sleep", "1000"), 100)
    content["linux"]["cgroupsPath"] = path = f"{ABOVE}/stays"
    try:
        with runtime.created(content) as container:
            container.start()
            more = ("update", "--memory", "500m", "--cpu-quota", "150000", container.id)
            by_guest = runtime.refused(*more)
            assert "the VM can't grow to 640 MiB and 2 CPUs: " in by_guest
            assert "the guest has not found 2 CPUs, but 1, in time" in by_guest
            assert (size_of(runtime, container.id), cpus(container)) == ((VM_MIB, 1), 1)
            assert memory_of(path) == str((VM_MIB + OVERHEAD_MIB) * MIB)
            assert not fills(container, 120)
            runtime.succeed("update", "--memory", "400m", container.id)
            assert fills(container, 350)
            by_us = runtime.refused("update", "--memory", "900m", container.id)
            assert "all 1 slots for memory are taken; have more in new sandboxes" in by_us
            assert size_of(runtime, container.id) == (VM_MIB + 3 * UNIT_MIB, 1)
            assert memory_of(path) == str((VM_MIB + 3 * UNIT_MIB + OVERHEAD_MIB) * MIB)
            assert not fills(container, 450)
            refused = runtime.refused(
                "create", "--bundle", str(runtime.bundle(beside(container, 300))), "beside"
            )
            assert "the VM can't grow to" in refused
    finally:
        runtime.config = None


def beside(container: Container, mib: int) -> dict[str, Any]:
    """A container in the network namespace of another one, and so in its VM."""
    content = with_memory(configuration("sleep", "1000"), mib)
    for entry in content["linux"]["namespaces"]:
        if entry["type"] == "network":
            entry["path"] = f"/proc/{container.pid}/ns/net"
    return content


def said(runtime: Runtime, container: Container, *limits: str) -> str:
    """What `update` says though it succeeds."""
    done = runtime.call("update", *limits, container.id)
    assert done.returncode == 0, done.stderr
    return done.stderr


def quota_of(path: str) -> int:
    return int(limit_of(path, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0])


def maps_of_memory(pid: int) -> int:
    """How many pieces of memory a process has that is shared with others."""
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:")
