"""The figures that a kubelet has of pods: `kubectl top` and the scaler of pods show them."""

import json
from collections.abc import Iterator
from datetime import datetime
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
    assert eventually(Busy(cluster, busy).pod, SECONDS), told(cluster, busy)


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
    assert eventually(Busy(cluster, busy).pod, SECONDS), told(cluster, busy)
    is_busy = Busy(cluster, busy).container
    if not (counted := eventually(is_busy, 30)) and runtime == "tapwright":
        pytest.xfail("containers share their pod's virtual machine, which has the figures")
    assert counted, told(cluster, busy)


class Busy:
    """Whether figures are those of `busy`: its memory, and a tenth of a processor at least since
    the first reading. So does metrics-server, of the processor's time; a figure of the rate, which
    the kubelet may have too, containerd does not give of a pod."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._first: Any = None

    def pod(self) -> bool:
        return self._is_busy(told(self._cluster, self._name))

    def container(self) -> bool:
        return self._is_busy(next(iter(told(self._cluster, self._name)["containers"]), {}))

    def _is_busy(self, now: Any) -> bool:
        if "usageCoreNanoSeconds" not in now.get("cpu", {}):
            return False
        self._first = self._first or now
        (before, then), (used, time) = _processor(self._first), _processor(now)
        rate = (used - before) / ((time - then).total_seconds() or 1)
        return bool(rate > 0.1 and now.get("memory", {}).get("workingSetBytes", 0) > 60 * _MIB)


def _processor(figures: Any) -> tuple[float, datetime]:
    """The seconds that it was used, and when."""
    cpu = figures["cpu"]
    return cpu["usageCoreNanoSeconds"] / 1e9, datetime.fromisoformat(cpu["time"])


def told(cluster: Cluster, name: str) -> Any:
    """The part of /stats/summary about a pod; without one, why there is none."""
    path = "/api/v1/nodes/node1/proxy/stats/summary"
    done = cluster.control.kubectl("get", "--raw", path)
    pods = [] if done.returncode else json.loads(done.stdout)["pods"]
    empty: dict[str, Any] = {"containers": [], "instead": done.stderr or pods}
    return next((one for one in pods if one["podRef"]["name"] == name), empty)
