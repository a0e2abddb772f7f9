"""Probes, which the kubelet makes, and what it does by them."""

from tests.kubernetes.cluster import SECONDS, Cluster, Object, container, pod
from tests.kubernetes.waiting import eventually

_OFTEN: Object = {"periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 2}
_KINDS: dict[str, Object] = {
    "exec": {"exec": {"command": ["test", "-e", "/tmp/fine"]}},
    "http": {"httpGet": {"path": "/fine", "port": 80}},
    "tcp": {"tcpSocket": {"port": 8080}},
}
_BEGIN = {
    "exec": "touch /tmp/fine",
    "http": "touch /www/fine; httpd -h /www",
    "tcp": "httpd -p 8080",
}
_END = {"exec": "rm /tmp/fine", "http": "rm /www/fine"}


def test_readiness(cluster: Cluster, runtime: str) -> None:
    """Readiness probes: exec, HTTP, TCP"""
    name = f"ready-{runtime}"
    containers = [
        container(kind, "sleep", "10000", readinessProbe=probe | _OFTEN)
        for kind, probe in _KINDS.items()
    ]
    cluster.control.apply(pod(name, runtime, containers))

    def running() -> bool:
        return all("running" in cluster.container(name, one).get("state", {}) for one in _KINDS)

    def ready() -> set[str]:
        return {kind for kind in _KINDS if cluster.container(name, kind)["ready"]}

    try:
        assert eventually(running, SECONDS), cluster.why(name)
        assert not ready()
        for kind, script in _BEGIN.items():
            cluster.said(name, kind, "sh", "-c", script)
        assert eventually(lambda: ready() == {*_KINDS}, SECONDS), cluster.why(name)
        assert eventually(lambda: cluster.pod_is_ready(name), SECONDS), cluster.why(name)
        for kind, script in _END.items():
            cluster.said(name, kind, "sh", "-c", script)
        assert eventually(lambda: ready() == {"tcp"}, SECONDS), cluster.why(name)
        assert not cluster.pod_is_ready(name)
    finally:
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
