"""In which sandbox a container lives, and how large that is."""

import os
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import BundleError, SandboxNotFoundError, UsageError
from tapwright.hypervisor.machine import Machine
from tapwright.oci import bundle, pods, size, state
from tapwright.state.record import Record, Spec, save
from tests.oci.bundles import configuration, write

pytestmark = pytest.mark.unit

CRI = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
CRIO = "io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"
OWN = "/proc/self/ns/net"


def enter(root: Path, container_id: str, **attributes: Any) -> None:
    """A container on disk, whose shim is this process."""
    container = state.Container(
        **{
            "id": container_id,
            "bundle": "/",
            "sandbox": container_id,
            "owns": True,
            "boot": state.boot(),
            "pid": os.getpid(),
            "pid_started": state.start_of(os.getpid()),
            "guest_pid": 70,
            **attributes,
        }
    )
    state.claim(str(root), container).close()


def loaded(root: Path, marks: dict[str, str] | None = None, **paths: str) -> bundle.Bundle:
    namespaces = [{"type": kind, "path": path} for kind, path in paths.items()]
    content = configuration(annotations=marks or {}, linux={"namespaces": namespaces})
    return bundle.load(str(write(root / "bundle", content)))


def owner(root: Path, wanted: bundle.Bundle) -> str | None:
    found = pods.owner_of(str(root), wanted)
    return found.id if found else None


@pytest.mark.parametrize("marks", [CRI, CRIO])
def test_members_are_marked(tmp_path: Path, marks: tuple[str, str]) -> None:
    enter(tmp_path, "pod")
    kind, sandbox = marks
    assert owner(tmp_path, loaded(tmp_path, {kind: "container", sandbox: "pod"})) == "pod"
    assert owner(tmp_path, loaded(tmp_path, {kind: "sandbox", sandbox: "pod"})) is None
    assert owner(tmp_path, loaded(tmp_path)) is None


def test_a_sandbox_that_is_not_there(tmp_path: Path) -> None:
    marks = {CRI[0]: "container", CRI[1]: "pod"}
    with pytest.raises(BundleError, match="the sandbox 'pod' of this container does not exist"):
        pods.owner_of(str(tmp_path), loaded(tmp_path, marks, network="/run/netns/x"))


def test_a_pod_of_podman_without_infra_container(tmp_path: Path) -> None:
    """Its containers name a pod that is none, and share nothing."""
    marks = {CRIO[0]: "container", CRIO[1]: "pod"}
    assert owner(tmp_path, loaded(tmp_path, marks, network="")) is None


def test_the_network_namespace_shows_the_pod(tmp_path: Path) -> None:
    enter(tmp_path, "pod", netns=OWN)
    assert owner(tmp_path, loaded(tmp_path, network=f"/proc/{os.getpid()}/ns/net")) == "pod"
    assert owner(tmp_path, loaded(tmp_path, network="/nowhere")) is None


def test_joined_namespaces(tmp_path: Path) -> None:
    enter(tmp_path, "pod")
    wanted = loaded(tmp_path, ipc=f"/proc/{os.getpid()}/ns/ipc", uts="/run/utsns/x", pid="")
    found = pods.joined_namespaces(str(tmp_path), wanted, pods.owner_of(str(tmp_path), wanted))
    assert found == {}
    marked = loaded(
        tmp_path,
        {CRI[0]: "container", CRI[1]: "pod"},
        ipc=f"/proc/{os.getpid()}/ns/ipc",
        uts="/run/utsns/x",
        pid="",
    )
    found = pods.joined_namespaces(str(tmp_path), marked, pods.owner_of(str(tmp_path), marked))
    assert found == {"ipc": "/proc/70/ns/ipc", "uts": "/proc/70/ns/uts"}


def test_the_pid_namespace_of_another_vm(tmp_path: Path) -> None:
    enter(tmp_path, "pod")
    for marks, path, reason in (
        ({}, f"/proc/{os.getpid()}/ns/pid", "lives in another VM"),
        ({CRI[0]: "container", CRI[1]: "pod"}, "/run/pidns/x", "belongs to no container"),
    ):
        wanted = loaded(tmp_path, marks, pid=path)
        owner_found = pods.owner_of(str(tmp_path), wanted)
        with pytest.raises(BundleError, match=reason):
            pods.joined_namespaces(str(tmp_path), wanted, owner_found)


def test_sandbox_ids() -> None:
    assert pods.sandbox_id("a" * 64) == "a" * 64
    long, other = pods.sandbox_id("a" * 65), pods.sandbox_id("a" * 66)
    assert len({long, other, pods.sandbox_id("_x")}) == 3
    assert all(len(name) <= 64 for name in (long, other))


def test_the_sandbox_of_a_container(tmp_path: Path) -> None:
    """`kata-network` and `kata-ipvs` find it by any of its containers."""
    for name in ("pod", "c-of-another"):
        (tmp_path / "sandboxes" / name).mkdir(parents=True)
        save(Record(name, Spec(Machine(Path(), Path())), 0, 0, ""), tmp_path / "sandboxes" / name)
    enter(tmp_path, "pod")
    enter(tmp_path, "member-1", sandbox="pod", owns=False)
    enter(tmp_path, "member-2", sandbox="pod", owns=False)
    enter(tmp_path, "_another", sandbox="c-of-another")

    def found(name: str) -> str:
        return pods.sandbox_of(str(tmp_path), name).id

    assert [found(name) for name in ("pod", "po", "member-2", "memb")] == ["pod"] * 4
    assert [found(name) for name in ("_another", "_", "c-of")] == ["c-of-another"] * 3
    for name in ("nobody", ""):
        with pytest.raises(SandboxNotFoundError):
            found(name)
    enter(tmp_path, "member-3", sandbox="c-of-another", owns=False)
    with pytest.raises(UsageError, match="several ids: member-1, member-2, member-3"):
        found("member")


@pytest.mark.parametrize(
    ("limit", "mib"),
    [
        (0, 256),
        (-1, 256),
        (64 * size.MIB, 256),
        (144 * size.MIB, 256),
        (145 * size.MIB, 512),
        (512 * size.MIB, 1024),
        (9223372036854771712, 256),
    ],
)
def test_memory(tmp_path: Path, limit: int, mib: int) -> None:
    content = configuration(linux={"resources": {"memory": {"limit": limit}}})
    wanted = bundle.load(str(write(tmp_path, content)))
    assert size.memory_mib(wanted, 256) == mib


@pytest.mark.parametrize(("shared", "mib"), [(64, 256), (144, 512), (380, 512), (512, 1024)])
def test_memory_that_processes_share(tmp_path: Path, shared: int, mib: int) -> None:
    """A limit covers it."""
    wanted = bundle.load(str(write(tmp_path, configuration())))
    assert size.memory_mib(wanted, 256, shared * size.MIB) == mib
    content = configuration(linux={"resources": {"memory": {"limit": 64 * size.MIB}}})
    limited = bundle.load(str(write(tmp_path, content)))
    assert size.memory_mib(limited, 256, shared * size.MIB) == 256


def test_cpus(tmp_path: Path) -> None:
    content = configuration(linux={"resources": {"cpu": {"quota": 150000, "period": 100000}}})
    wanted = bundle.load(str(write(tmp_path, content)))
    assert [size.vcpus(wanted, 1, range(most)) for most in (1, 2, 8)] == [1, 2, 2]
    assert size.vcpus(wanted, 4, range(8)) == 4


@pytest.mark.parametrize(
    ("cpus", "count"), [("0", 1), ("0-2,5", 4), ("1,7-100", 2), ("90-99", 3), ("", 3), ("x-y", 3)]
)
def test_cpus_that_a_container_is_bound_to(tmp_path: Path, cpus: str, count: int) -> None:
    """All of them, whatever its quota; those that the host has not are none."""
    content = configuration(linux={"resources": {"cpu": {"cpus": cpus}}})
    assert size.vcpus(bundle.load(str(write(tmp_path, content))), 3, range(8)) == count
    content["linux"]["resources"]["cpu"]["quota"] = 150000
    assert size.vcpus(bundle.load(str(write(tmp_path, content))), 3, range(8)) == count


def test_the_size_of_a_pod(tmp_path: Path) -> None:
    prefix = "io.kubernetes.cri.sandbox-"
    marks = {f"{prefix}memory": str(1 << 30), f"{prefix}cpu-quota": "400000"}
    wanted = loaded(tmp_path, marks)
    assert (size.memory_mib(wanted, 256), size.vcpus(wanted, 1, range(8))) == (2048, 4)
