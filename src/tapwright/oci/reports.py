"""Reports on containers: `state`, `list`, `ps`, `events`, `features`."""

import time

from tapwright.errors import ContainerNotFoundError, ContainerStateError
from tapwright.oci import state
from tapwright.oci.state import Container
from tapwright.sandbox import client
from tapwright.sandbox.client import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Json = dict[str, Any]

_MOUNT_OPTIONS = """
    async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev
    nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid private ratime
    rbind rdev rdiratime relatime remount rexec rnoatime rnodev rnodiratime rnoexec rnorelatime
    rnostrictatime rnosuid ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid
    runbindable rw shared silent slave strictatime suid sync tmpcopyup unbindable
"""


def described(root: str, container: Container) -> "Json":
    """A container as `state` prints it (runtime.md, "State"), with runc's further fields."""
    status = state.status(root, container)
    found = state.oci_state(container, status)
    return {
        **found,
        "pid": found.get("pid", 0),
        "rootfs": container.rootfs,
        "created": container.created,
        "sandbox": container.sandbox,
        "owner": "root",
    }


def listing(root: str) -> "list[Json]":
    return [described(root, container) for container in state.listing(root)]


def processes(root: str, container_id: str) -> "list[Json]":
    """The container's processes, with their pids in the guest; one that has stopped has none.
    Raises ContainerStateError."""
    if state.status(root, state.load(root, container_id)) == state.STOPPED:
        return []
    found: list[Json] = _living(root, container_id).call("container_processes", id=container_id)
    return found


def shims(root: str, container_id: str) -> list[int]:
    """The processes that stand for a container's on this host, where platforms look for pids."""
    container = state.load(root, container_id)
    if not state.is_running(container):
        return []
    from tapwright.oci import shim

    return [container.pid, *(pid for pid in shim.pids_of(container_id) if pid != container.pid)]


def statistics(root: str, container_id: str) -> "Json":
    """An event of type `stats`, as runc prints it. Raises ContainerStateError."""
    return _stats(container_id, _numbers(root, container_id))


def events(root: str, container_id: str, interval: float) -> "Iterator[Json]":
    """Yield an event of statistics every so many seconds, until the container ends; before it one
    of type `oom` when the guest's kernel has since killed a process of the container for want of
    memory."""
    numbers = _numbers(root, container_id)
    yield _stats(container_id, numbers)
    while True:
        time.sleep(interval)
        before = _oom_kills(numbers)
        try:
            numbers = _numbers(root, container_id)
        except (ContainerNotFoundError, ContainerStateError):
            return
        if _oom_kills(numbers) > before:
            yield {"type": "oom", "id": container_id}
        yield _stats(container_id, numbers)


def _numbers(root: str, container_id: str) -> "Json":
    found: Json = _living(root, container_id).call("container_statistics", id=container_id)
    return found


def _stats(container_id: str, numbers: "Json") -> "Json":
    from tapwright.oci.statistics import of_cgroup

    return {"type": "stats", "id": container_id, "data": of_cgroup(numbers)}


def _oom_kills(numbers: "Json") -> int:
    found: int = numbers.get("memory", {}).get("events", {}).get("oom_kill", 0)
    return found


def features() -> "Json":
    """What is supported (features.md): what the guest's runtime can, but for what is refused."""
    from tapwright.oci import seccomp
    from tapwright.oci.bundle import HOOKS

    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": list(HOOKS),
        "mountOptions": _MOUNT_OPTIONS.split(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False},
            "seccomp": seccomp.features(),
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
            "netDevices": {"enabled": True},
        },
    }


def _living(root: str, container_id: str) -> Supervisor:
    container = state.load(root, container_id)
    if not state.is_running(container):
        raise ContainerStateError("container not running")
    return client.named(root, container.sandbox)
