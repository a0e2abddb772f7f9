"""Probes, which the kubelet makes, and what it does by them."""

import pytest

from tests.kubernetes.cluster import SECONDS, Cluster, Object, container, pod
from tests.kubernetes.waiting import eventually
from tests.platforms.images import SERVE

_OFTEN: Object = {"periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 2}
_KINDS: dict[str, Object] = {
    "exec": {"exec": {"command": ["test", "-e", "/tmp/fine"]}},
    "http": {"httpGet": {"path": "/fine", "port": 80}},
    "tcp": {"tcpSocket": {"port": 8080}},
}


@pytest.mark.parametrize("kind", _KINDS)
def test_readiness(cluster: Cluster, runtime: str, kind: str) -> None:
    """Readiness probes: exec, HTTP, TCP"""
    one = container("one", *SERVE, readinessProbe={**_KINDS[kind], **_OFTEN})
    wanted = pod(f"ready-{kind}-{runtime}", runtime, [one])
    name = wanted["metadata"]["name"]
    cluster.control.apply(wanted)
    running = eventually(
        lambda: "running" in cluster.container(name, "one").get("state", {}), SECONDS
    )
    assert running, cluster.why(name)
    assert not cluster.pod_is_ready(name)
    fine = "touch /tmp/fine /www/fine; httpd -p 8080"
    cluster.said(name, "one", "sh", "-c", fine)
    assert eventually(lambda: cluster.pod_is_ready(name), SECONDS), cluster.why(name)
    if kind != "tcp":
        cluster.said(name, "one", "rm", "/tmp/fine", "/www/fine")
        assert eventually(lambda: not cluster.pod_is_ready(name), SECONDS), cluster.why(name)
    cluster.delete("pod", name)


def test_liveness(cluster: Cluster, runtime: str) -> None:
    """Startup and liveness probes: a container that fails is started again"""
    begin = "touch /tmp/fine; sleep 10000"
    probes = {"startupProbe": {**_KINDS["exec"], **_OFTEN, "failureThreshold": 60}}
    probes["livenessProbe"] = {**_KINDS["exec"], **_OFTEN}
    one = container("one", "sh", "-c", begin, **probes)
    with cluster.running(pod(f"alive-{runtime}", runtime, [one])) as name:
        cluster.said(name, "one", "rm", "/tmp/fine")
        again = eventually(lambda: cluster.container(name, "one").get("restartCount") == 1, SECONDS)
        assert again, cluster.why(name)
        assert "Liveness probe failed" in cluster.describe("pod", name)
