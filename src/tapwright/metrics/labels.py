"""The names that platforms have given to sandboxes: pod, namespace and container, by annotations.

They are those of containerd's CRI plugin (pkg/cri/annotations), of CRI-O (pkg/annotations), which
has the kubelet's labels among its own, and of nerdctl (pkg/labels). podman and docker pass no name
to a runtime.
"""

from collections.abc import Iterable, Mapping

from tapwright.oci.state import Container

_POD = (
    *("io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"),
    "io.kubernetes.pod.name",
)
_NAMESPACE = (
    *("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace"),
    *("io.kubernetes.pod.namespace", "nerdctl/namespace"),
)
_CONTAINER = (
    *("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
    "nerdctl/name",
)
_TYPES = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_OF_PODS = "sandbox"


def of_container(container: Container) -> dict[str, str]:
    """Return pod, namespace and container. The container is the id if the platform passes no
    name."""
    known = container.annotations
    return {
        "pod": _first(known, _POD),
        "namespace": _first(known, _NAMESPACE),
        "container": _first(known, _CONTAINER) or container.id,
    }


def of_sandboxes(containers: Iterable[Container]) -> dict[str, dict[str, str]]:
    """Return the labels of each sandbox, by its id: those of the container that started it. A
    container that stands for a pod has an empty name."""
    found = {}
    for container in containers:
        if container.owns:
            found[container.sandbox] = of_container(container)
            if any(container.annotations.get(name) == _OF_PODS for name in _TYPES):
                found[container.sandbox]["container"] = ""
    return found


def _first(annotations: Mapping[str, str], names: Iterable[str]) -> str:
    return next((annotations[name] for name in names if annotations.get(name)), "")
