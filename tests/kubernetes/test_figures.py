"""The figures that a kubelet has of pods: `kubectl top` and the scaler of pods show them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kubernetes.cluster import SECONDS, Cluster, container, pod
from tests.kubernetes.waiting import eventually

_MIB = 1 << 20
_TAKE = "dd if=/dev/zero of=/memory/taken bs=1M count=60"
_BUSY = f"{_TAKE}; while :; do :; done"


@pytest.fixture(scope="module")
def busy(cluster: Cluster, runtime: str) -> Iterator[str]:
    """A pod whose container takes 60 MiB, and as much of a processor as it gets."""
    volume = {"name": "memory", "emptyDir": {"medium": "Memory"}}
    mounted = {"volumeMounts": [{"name": "memory", "mountPath": "/memory"}]}
    requests = {"resources": {"requests": {"cpu": "200m"}}}
    one = container("one", "sh", "-c", _BUSY, **mounted, **requests)
    wanted = pod(f"figures-{runtime}", runtime, [one], volumes=[volume], nodeName="node1")
    with cluster.running(wanted) as name:
        yield name


def test_of_a_pod(cluster: Cluster, busy: str) -> None:
    """Figures of a pod, as the kubelet reports them: processor time and memory"""
    assert eventually(lambda: is_busy(told(cluster, busy)), SECONDS), told(cluster, busy)


def test_of_a_container(cluster: Cluster, runtime: str, busy: str) -> None:
    """Figures of containers, whose sum `kubectl top pod` and HorizontalPodAutoscaler read"""
    counts(cluster, runtime, busy)


def test_by_the_cri(cluster: Cluster, runtime: str, busy: str) -> None:
    """The same two when the kubelet has them from containerd (`PodAndContainerStatsFromCRI`)"""
    cluster.must_be_of(23)
    node = cluster.nodes[0]
    node.kill("kubelet")
    node.start_kubelet("PodAndContainerStatsFromCRI")
    try:
        counts(cluster, runtime, busy)
    finally:
        node.kill("kubelet")
        node.start_kubelet()


def counts(cluster: Cluster, runtime: str, busy: str) -> None:
    """Figures of the pod, and of its container."""

    def of_pod() -> bool:
        return is_busy(told(cluster, busy))

    def of_container() -> bool:
        return any(map(is_busy, told(cluster, busy)["containers"]))

    assert eventually(of_pod, SECONDS), told(cluster, busy)
    if not eventually(of_container, 30) and runtime == "tapwright":
        pytest.xfail("containers share their pod's virtual machine, which has the figures")
    assert of_container(), told(cluster, busy)


def is_busy(figures: Any) -> bool:
    processors = figures.get("cpu", {}).get("usageNanoCores", 0) / 1e9
    memory = figures.get("memory", {}).get("workingSetBytes", 0)
    return bool(processors > 0.1 and memory > 60 * _MIB)


def told(cluster: Cluster, name: str) -> Any:
    """The part of /stats/summary about a pod; nothing while the kubelet starts."""
    path = "/api/v1/nodes/node1/proxy/stats/summary"
    done = cluster.control.kubectl("get", "--raw", path)
    pods = [] if done.returncode else json.loads(done.stdout)["pods"]
    empty: dict[str, Any] = {"containers": []}
    return next((one for one in pods if one["podRef"]["name"] == name), empty)
