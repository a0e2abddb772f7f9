"""What pods may use, and what happens when that is too much."""

from tests.kubernetes.cluster import SECONDS, Cluster, Object, container, pod
from tests.kubernetes.waiting import eventually
from tests.platforms.confined import GROW


def limited(memory: str, cpu: str = "") -> Object:
    limits = {"memory": memory, **({"cpu": cpu} if cpu else {})}
    return {"resources": {"limits": limits, "requests": dict(limits)}}


def test_classes(cluster: Cluster, runtime: str) -> None:
    """Classes of quality of service: each runs, with the limits in its containers"""
    wanted = {
        "Guaranteed": limited("96Mi", "500m"),
        "Burstable": {"resources": {"requests": {"memory": "32Mi"}}},
        "BestEffort": {},
    }
    for kind, resources in wanted.items():
        name = f"{kind.lower()}-{runtime}"
        with cluster.running(pod(name, runtime, [container("one", "sleep", "10000", **resources)])):
            assert cluster.status(name)["qosClass"] == kind
            assert int(cluster.said(name, "one", "nproc")) >= 1


def test_used_up(cluster: Cluster, runtime: str) -> None:
    """A container that uses up its memory is `OOMKilled`, and the others of its pod go on"""
    containers = [
        container("greedy", "sh", "-c", GROW, **limited("48Mi")),
        container("other", "sleep", "10000"),
    ]
    name = f"greedy-{runtime}"
    cluster.control.apply(pod(name, runtime, containers, restartPolicy="Never"))
    assert eventually(lambda: bool(cluster.ended(name, "greedy")), SECONDS), cluster.why(name)
    ended = cluster.ended(name, "greedy")
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled"), ended
    assert "running" in cluster.container(name, "other")["state"]
    cluster.delete("pod", name)


def test_eviction(cluster: Cluster, runtime: str) -> None:
    """A pod that writes more than a limit of its volume is evicted, and the others go on"""
    names = [f"{what}-{runtime}" for what in ("filling", "sober")]
    mounted = {"volumeMounts": [{"name": "limited", "mountPath": "/limited"}]}
    volumes = [{"name": "limited", "emptyDir": {"sizeLimit": "8Mi"}}]
    for name, count in zip(names, (16, 4), strict=True):
        script = f"dd if=/dev/zero of=/limited/file bs=1M count={count}; sleep 10000"
        one = container("one", "sh", "-c", script, **mounted)
        cluster.control.apply(pod(name, runtime, [one], volumes=volumes, nodeName="node1"))
    filling, sober = names
    try:
        evicted = eventually(lambda: cluster.status(filling).get("reason") == "Evicted", SECONDS)
        assert evicted, cluster.why(filling)
        assert eventually(lambda: cluster.pod_is_ready(sober), SECONDS), cluster.why(sober)
        assert cluster.said(sober, "one", "stat", "-c", "%s", "/limited/file") == f"{4 << 20}\n"
    finally:
        cluster.delete("pod", *names)


def test_quota(cluster: Cluster, runtime: str) -> None:
    """A limit of the processor holds"""
    name = f"slow-{runtime}"
    busy = container("one", "sleep", "10000", **limited("64Mi", "200m"))
    with cluster.running(pod(name, runtime, [busy])):
        script = "timeout 3 sh -c 'while :; do :; done'; cat /proc/self/stat >/dev/null; times"
        said = cluster.said(name, "one", "sh", "-c", script)
        # Of the children: as in "0m0.60s".
        user = said.split()[2]
        assert float(user.partition("m")[2].rstrip("s")) < 2


def test_host_network(cluster: Cluster) -> None:
    """`hostNetwork` is refused, in words that `kubectl describe pod` shows"""
    name = "host-network"
    one = container("one", "sleep", "10000")
    cluster.control.apply(pod(name, "tapwright", [one], hostNetwork=True))
    # An error of the runtime: what it says is in an event.
    assert eventually(lambda: "network" in said_of(cluster, name), SECONDS), cluster.why(name)
    assert "host" in said_of(cluster, name)
    cluster.delete("pod", name)


def said_of(cluster: Cluster, pod: str) -> str:
    """The warnings of its events."""
    events = cluster.control.get("events", "--field-selector", f"involvedObject.name={pod}")
    return " ".join(one["message"] for one in events["items"] if one["type"] == "Warning")


def test_privileged(cluster: Cluster, runtime: str) -> None:
    """A privileged container: all capabilities, in the pod's own kernel where that has one"""
    one = container("one", "sleep", "10000", securityContext={"privileged": True})
    name = f"privileged-{runtime}"
    with cluster.running(pod(name, runtime, [one])):
        said = cluster.said(name, "one", "grep", "CapEff", "/proc/self/status")
        assert int(said.split()[1], 16) & (1 << 21)  # CAP_SYS_ADMIN
        cluster.said(name, "one", "sh", "-c", "mkdir /tmp/new; mount -t tmpfs new /tmp/new")
