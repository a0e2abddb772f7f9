"""Probes, which the kubelet makes, and what it does by them."""

import struct

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


# The service of gRPC's health checks, as far as a shell goes (RFC 9113, RFC 7541): to each frame
# DATA (type 0), which ends a request, what is in /tmp/health. Before that it reads the preface.
_GRPC = r"""
take() { dd bs=1 count=$1 2>/dev/null; }
printf '\0\0\0\4\0\0\0\0\0'
take 24 >/dev/null
while :; do
    set -- $(take 9 | od -An -v -tu1)
    [ $# = 9 ] || exit
    take $(($1 * 65536 + $2 * 256 + $3)) >/dev/null
    [ $4 != 0 ] || cat /tmp/health
done
"""


def health(status: int) -> str:
    """The response to the first request, in the form that `printf` takes."""

    def frame(kind: int, flags: int, content: bytes) -> bytes:
        # Of stream 1.
        return struct.pack("!HBBBI", 0, len(content), kind, flags, 1) + content

    # ":status: 200", "content-type", then "grpc-status: 0".
    head = b"\x88\x0f\x10\x10application/grpc"
    whole = frame(1, 4, head)
    whole += frame(0, 0, struct.pack("!BI", 0, 2) + bytes([8, status]))
    whole += frame(1, 5, b"\x00\x0bgrpc-status\x010")
    return "".join(f"\\{byte:03o}" for byte in whole)


def test_grpc(cluster: Cluster, runtime: str) -> None:
    """Readiness probes: gRPC"""
    cluster.must_be_of(24)
    serves, fails = 1, 2
    begin = f"cat >/tmp/serve <<'END'\n{_GRPC}END\nexec nc -ll -p 80 -e sh /tmp/serve"
    probe = {"readinessProbe": {"grpc": {"port": 80}, **_OFTEN}}
    name = f"grpc-{runtime}"
    cluster.control.apply(pod(name, runtime, [container("one", "sh", "-c", begin, **probe)]))

    def say(status: int) -> None:
        cluster.said(name, "one", "sh", "-c", f"printf '{health(status)}' >/tmp/health")

    try:
        running = eventually(lambda: "running" in state(cluster, name), SECONDS)
        assert running, cluster.why(name)
        say(serves)
        assert eventually(lambda: cluster.pod_is_ready(name), SECONDS), cluster.why(name)
        say(fails)
        assert eventually(lambda: not cluster.pod_is_ready(name), SECONDS), cluster.why(name)
        assert "NOT_SERVING" in cluster.describe("pod", name)
    finally:
        cluster.delete("pod", name)


def state(cluster: Cluster, name: str) -> Object:
    return dict(cluster.container(name, "one").get("state", {}))


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
