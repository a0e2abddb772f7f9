"""In which sandbox a container lives: one that it starts, or one that another container started.

The marks are those of containerd's CRI plugin (pkg/cri/annotations), of CRI-O and podman
(pkg/annotations), and of the kubelet's former docker shim; as Kata reads them.
"""

import os
import re

from tapwright.errors import BundleError, ContainerNotFoundError, UsageError
from tapwright.oci import state
from tapwright.state import ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.oci.bundle import Bundle
    from tapwright.oci.state import Container
    from tapwright.state.registry import Sandbox

_MARKS = (
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
    ("io.kubernetes.docker.type", "io.kubernetes.sandbox.id"),
)
_PROC = re.compile(r"/proc/(\d+)/ns/\w+")
_JOINED = ("pid", "ipc", "uts", "user")


def owner_of(root: str, bundle: "Bundle") -> "Container | None":
    """Return the container that started the sandbox which this container joins; None when it starts
    a sandbox of its own.

    The marks name the sandbox. Without marks, the network namespace shows it, because a namespace
    can't have two VMs (podman's pods, `--network container:X`). Raises BundleError when the sandbox
    does not exist.
    """
    named = _named(bundle.annotations)
    network = bundle.namespace("network")
    owners = {container.id: container for container in state.listing(root) if container.owns}
    if named in owners:
        return owners[named]
    if network:
        for container in owners.values():
            if container.netns and _same(container.netns, network):
                return container
        if named:
            raise BundleError(
                f"the sandbox {named!r} of this container does not exist; start it (CRI-O starts "
                "one only with drop_infra_ctr = false)"
            )
    return None


def is_pause(bundle: "Bundle") -> bool:
    """Whether this is a pod's pause container, which only holds the pod's namespaces."""
    return any(bundle.annotations.get(kind) == "sandbox" for kind, _ in _MARKS)


def sandbox_id(container_id: str) -> str:
    """The id of the sandbox that a container starts: the container's, if that is a valid id."""
    if ids.is_id(container_id):
        return container_id
    import hashlib

    digest = hashlib.sha256(container_id.encode()).hexdigest()
    return f"c-{digest[:32]}"


def sandbox_of(root: str, prefix: str) -> "Sandbox":
    """The sandbox of that id, or of the container of that id; or the only sandbox for which one of
    these ids begins with `prefix`. Kata and openEuler name a sandbox by any of its containers.

    Raises SandboxNotFoundError, UsageError when there are several.
    """
    from tapwright.state import ownership, registry

    known = ownership.names(registry.directory_of(root))
    homes = {container.id: container.sandbox for container in state.listing(root)}
    homes |= {name: name for name in known}
    if prefix in homes:
        return registry.find(root, homes[prefix])
    found = [name for name in homes if prefix and name.startswith(prefix)]
    sandboxes = {homes[name] for name in found}
    if len(sandboxes) > 1:
        raise UsageError(f"{prefix!r} is the beginning of several ids: {', '.join(sorted(found))}")
    return registry.find(root, sandboxes.pop() if sandboxes else prefix)


def joined_namespaces(root: str, bundle: "Bundle", owner: "Container | None") -> dict[str, str]:
    """The namespaces that the container shares with others: paths in the guest, by type.

    A path /proc/PID/ns/… of a shim stands for the namespace of the shim's container; any other path
    stands for the pod's, but for that of users, which the container makes by its mappings then.
    Raises BundleError, ContainerNotFoundError.
    """
    found = {}
    for kind in _JOINED:
        path = bundle.namespace(kind)
        # A container with a sandbox of its own shares no namespace. That is an error only for pid,
        # because few programs rely on a shared ipc or uts namespace.
        if not path or (owner is None and kind != "pid"):
            continue
        container = _of_path(root, path)
        if container and not (owner and container.sandbox == owner.sandbox):
            raise BundleError(
                f"the {kind} namespace {path} belongs to container {container.id!r}, which lives "
                "in another VM"
            )
        if owner is None:
            continue
        if kind == "pid" and container is None:
            raise BundleError(f"the pid namespace {path} belongs to no container in this VM")
        if kind == "user" and container is None:
            continue
        container = container or owner
        if not state.is_running(container):
            raise ContainerNotFoundError(
                f"the {kind} namespace {path} can't be joined: container {container.id!r} does "
                "not run"
            )
        found[kind] = f"/proc/{container.guest_pid}/ns/{kind}"
    return found


def _named(annotations: dict[str, str]) -> str:
    """The sandbox that the marks name, for a member of a pod; otherwise empty."""
    for kind, sandbox in _MARKS:
        if annotations.get(kind) == "container":
            return annotations.get(sandbox, "")
    return ""


def _of_path(root: str, path: str) -> "Container | None":
    match = _PROC.fullmatch(path)
    pid = int(match[1]) if match else 0
    if not pid:
        return None
    found = (container for container in state.listing(root) if container.pid == pid)
    return next(filter(state.is_running, found), None)


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
