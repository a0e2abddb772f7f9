"""The control group that a platform names for a container (`linux.cgroupsPath`), on the host.

QEMU, virtiofsd, supervisor and monitor run in the group of the container that started the sandbox,
with its shims; the group of another member of the pod has only shims. The virtual machine may use
as much of the host as the containers may use in the guest, and an overhead (docs/security.md).
"""

from tapwright.errors import BundleError, ContainerStateError, SandboxStateError
from tapwright.linux import cgroups
from tapwright.oci import pods, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.config import Config
    from tapwright.oci.bundle import Bundle
    from tapwright.oci.log import Log
    from tapwright.oci.state import Container, Held
    from tapwright.shapes import Json

PLATFORMS, OWN, SHARED = "platform's", "own", "shared"
"""The kind of a group: new at the path that the platform names, or at Tapwright's own path; or one
that had processes already, which Tapwright neither limits nor removes."""


def make(
    container: "Container", bundle: "Bundle", config: "Config", held: "Held", log: "Log"
) -> None:
    """Make the container's group. The container's state names the group first. Limits that the host
    lacks become warnings. Raises BundleError for an invalid path, OSError."""
    runtime = config.runtime
    try:
        path = cgroups.expanded(bundle.linux.get("cgroupsPath", ""))
        above = "" if path else cgroups.expanded(runtime.sandbox_cgroup)
    except ValueError as error:
        raise BundleError(f"linux.cgroupsPath: {error}") from None
    if above:
        path = cgroups.fresh(above, container.id)
    if path in ("", "/"):
        return
    container.cgroup = path
    container.cgroup_kind = OWN if above else SHARED if cgroups.members(path) else PLATFORMS
    container.overhead = [runtime.overhead_cpu, runtime.overhead_memory, runtime.overhead_pids]
    held.save(container)
    failures = cgroups.make(path)
    if container.cgroup_kind == SHARED:
        log.warn(f"control group {path}: it has processes already, so it is left as it is")
    if failures:
        log.warn(f"control group {path}: {cgroups.summed(failures)}; the container is not in it")


def allow_for(container: "Container", bundle: "Bundle", memory_mib: int) -> None:
    """Allow for a VM of this size, which may be larger than the container's limit (`oci.size`). A
    guest keeps all memory that it has touched: with a lower limit, the host would kill QEMU because
    of the guest's page cache."""
    limit = size.memory_limit(bundle)
    if 0 < limit < size.UNLIMITED:
        container.overhead[1] += max(0, memory_mib - (limit >> 20))


def bound(container: "Container", bundle: "Bundle", log: "Log") -> None:
    """Set the limits of the group, when the sandbox runs. Making a template may use more, because
    it belongs to no container."""
    if container.cgroup_kind not in (OWN, PLATFORMS):
        return
    resources = _resources(bundle) if container.owns else bundle.linux.get("resources", {})
    if not container.owns and _cpuset(resources):
        log.warn("linux.resources.cpu.cpus, mems: the VM's CPUs are those of the pod")
    if failures := cgroups.limit(container.cgroup, limits(container, resources)):
        log.warn(
            f"control group {container.cgroup}: {cgroups.summed(failures)}; the host does not "
            "enforce it"
        )


def _resources(bundle: "Bundle") -> "Json":
    """The limits of the container that starts a sandbox: those of its pod, if it has one."""
    found: Json = dict(bundle.linux.get("resources", {}))
    if memory := size.of_pod(bundle, "memory"):
        found["memory"] = {**found.get("memory", {}), "limit": memory}
    cpu = dict(found.get("cpu", {}))
    if pods.is_pause(bundle):
        # A weight for one idle container; the pod's weight is that of the group above.
        cpu.pop("shares", None)
    if quota := size.of_pod(bundle, "cpu-quota"):
        cpu |= {"quota": quota, "period": size.of_pod(bundle, "cpu-period")}
    found["cpu"] = cpu
    return found


def limits(container: "Container", resources: "Json") -> cgroups.Limits:
    """The host's limits for linux.resources (config-linux.md, "Control groups")."""
    more_cpu, more_memory, more_pids = container.overhead
    if not container.owns:  # the group has only shims
        more_cpu = more_memory = 0
    memory = size.number((resources.get("memory") or {}).get("limit"))
    cpu = resources.get("cpu") or {}
    quota, period = size.number(cpu.get("quota")), size.number(cpu.get("period"))
    pids = size.number((resources.get("pids") or {}).get("limit"))
    found = cgroups.Limits(cpu_shares=size.number(cpu.get("shares")))
    if memory:
        found.memory = memory + (more_memory << 20) if 0 < memory < size.UNLIMITED else -1
    if quota:
        found.cpu_period = period or cgroups.PERIOD
        found.cpu_quota = quota + found.cpu_period * more_cpu // 100 if quota > 0 else -1
    if pids:
        found.pids = pids + more_pids if pids > 0 else -1
    if container.owns:
        found.cpus, found.mems = cpu.get("cpus") or "", cpu.get("mems") or ""
    return found


def check_update(container: "Container", resources: "Json") -> None:
    """Raises ContainerStateError for CPUs and memory nodes that would have no effect."""
    if not _cpuset(resources):
        return
    why = ""
    if not container.owns:
        why = f"it lives in the VM of {container.sandbox!r}: set those of that container"
    elif container.cgroup_kind not in (OWN, PLATFORMS):
        why = "it has no control group of its own on the host"
    elif not cgroups.has("cpuset", container.cgroup):
        why = f"there is no controller cpuset in its control group {container.cgroup}"
    if why:
        raise ContainerStateError(
            f"cpuset: container {container.id!r} can't be bound to CPUs: {why}"
        )


def update(container: "Container", resources: "Json", by_supervisor: bool, log: "Log") -> None:
    """Change the container's limits on the host. The supervisor has set those for memory and CPUs,
    which belong to the whole VM, unless it is of an older version. Raises ContainerStateError when
    CPUs or memory nodes can't be set; failures of other limits become warnings, because the guest
    enforces those limits."""
    if container.cgroup_kind not in (OWN, PLATFORMS):
        return
    wanted = limits(container, resources)
    cpuset = cgroups.Limits(cpus=wanted.cpus, mems=wanted.mems)
    wanted.cpus = wanted.mems = ""
    if container.owns and by_supervisor:
        wanted.memory = wanted.cpu_quota = wanted.cpu_period = None
    if failures := cgroups.limit(container.cgroup, cpuset):
        raise ContainerStateError(f"control group: {cgroups.summed(failures)}")
    if failures := cgroups.limit(container.cgroup, wanted):
        log.warn(f"control group: {cgroups.summed(failures)}")


def enter(container: "Container", pid: int) -> None:
    """Move a shim into the container's group. A missing group was reported when the container was
    made."""
    if container.cgroup:
        cgroups.join(container.cgroup, pid)


def of_sandbox(root: str, sandbox: str) -> str:
    """The group that a platform's sandbox joined, by the sandbox's record."""
    from tapwright.state import record
    from tapwright.state.registry import directory_of

    try:
        spec = record.load(directory_of(root) / sandbox).spec
    except (OSError, SandboxStateError):
        return ""
    return "" if spec.cgroup_of_its_own else spec.cgroup


def remove(container: "Container") -> str:
    """Remove the container's group; return in words why that failed, empty for success."""
    if container.cgroup_kind not in (OWN, PLATFORMS) or not container.cgroup:
        return ""
    try:
        cgroups.remove(container.cgroup, evict=True)
    except OSError as error:
        return str(error.strerror)
    if container.cgroup_kind == OWN:
        cgroups.remove_if_empty(container.cgroup.rpartition("/")[0])
    return ""


def _cpuset(resources: "Json") -> bool:
    cpu = resources.get("cpu") or {}
    return bool(cpu.get("cpus") or cpu.get("mems"))
