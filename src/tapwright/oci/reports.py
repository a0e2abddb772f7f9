"""Reports on containers: `state`, `list`, `ps`, `events`, `features`."""

import time

from tapwright.errors import ContainerNotFoundError, ContainerStateError
from tapwright.oci import state
from tapwright.oci.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tapwright.sandbox.client import Supervisor
    from tapwright.shapes import Json

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
    """The container's processes, with their pids in the guest; empty for a stopped container.
    Raises ContainerStateError."""
    if state.status(root, state.load(root, container_id)) == state.STOPPED:
        return []
    found: list[Json] = _supervisor(root, container_id).call("container_processes", id=container_id)
    return found


def shims(root: str, container_id: str) -> list[int]:
    """The pids of a container's shims; platforms expect pids of this host."""
    container = state.load(root, container_id)
    if not state.is_running(container):
        return []
    from tapwright.oci import shim

    return [container.pid, *(pid for pid in shim.pids_of(container_id) if pid != container.pid)]


def statistics(root: str, container_id: str) -> "Json":
    """An event of type `stats`, as runc prints it. Raises ContainerStateError."""
    return _stats(container_id, _numbers(root, container_id))


def events(root: str, container_id: str, interval: float) -> "Iterator[Json]":
    """Yield statistics every `interval` seconds until the container ends. An event of type `oom`
    comes first when the guest's kernel has killed a process of the container for want of memory."""
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
    found: Json = _supervisor(root, container_id).call("container_statistics", id=container_id)
    return found


def _stats(container_id: str, numbers: "Json") -> "Json":
    from tapwright.oci.statistics import of_cgroup

    return {"type": "stats", "id": container_id, "data": of_cgroup(numbers)}


def _oom_kills(numbers: "Json") -> int:
    found: int = numbers.get("memory", {}).get("events", {}).get("oom_kill", 0)
    return found


def features() -> "Json":
    """The features of this runtime (features.md): crun's, without those that are refused."""
    from tapwright.oci import seccomp
    from tapwright.oci.bundle import HOOKS

    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": state.OCI_VERSION,
        "hooks": list(HOOKS),
        "mountOptions": _MOUNT_OPTIONS.split(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False},
            "seccomp": seccomp.features(),
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
    }


def _supervisor(root: str, container_id: str) -> "Supervisor":
    from tapwright.sandbox import client  # `state` and `list` do without

    return client.named(root, state.running(root, container_id).sandbox)
