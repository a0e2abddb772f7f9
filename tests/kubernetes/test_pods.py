"""Pods, and what kubectl does with them."""

import platform
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.kubernetes.cluster import SECONDS, Cluster, Object, container, pod
from tests.kubernetes.node import IMAGE
from tests.kubernetes.waiting import eventually
from tests.platforms.images import PAGE, SERVE


@pytest.fixture(scope="module")
def web(cluster: Cluster, runtime: str) -> Iterator[str]:
    """A pod with an init container, a server and another container."""
    shared = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    containers = [
        container("server", *SERVE, ports=[{"containerPort": 80}]),
        container("client", "sh", "-c", "echo out; echo oops >&2; exec sleep 10000", **shared),
        container("reader", "sh", stdin=True),
    ]
    first = container("first", "sh", "-c", "echo made by the first >/shared/file", **shared)
    volumes = [{"name": "shared", "emptyDir": {}}]
    wanted = pod(f"web-{runtime}", runtime, containers, initContainers=[first], volumes=volumes)
    with cluster.running(wanted) as name:
        yield name


def test_runs_by_its_class(cluster: Cluster, runtime: str, web: str) -> None:
    """A pod runs by its RuntimeClass, with the overhead of that"""
    kernel = cluster.said(web, "client", "uname", "-r").strip()
    assert (kernel == platform.release()) == (runtime == "runc")
    spec = cluster.control.get("pod", web)["spec"]
    assert ("overhead" in spec) == (runtime == "tapwright")


def test_logs(cluster: Cluster, web: str) -> None:
    """`kubectl logs`, also with `--follow`"""
    assert sorted(cluster.log(web, "client").splitlines()) == ["oops", "out"]
    words = cluster.control.command("logs", "--follow", web, "-c", "client")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout
        assert following.stdout.readline() in ("out\n", "oops\n")
        following.terminate()


def test_exec(cluster: Cluster, web: str) -> None:
    """`kubectl exec`: output, standard input, status, a terminal"""
    done = cluster.exec(web, "client", "sh", "-c", "echo red; echo oops >&2; exit 9")
    assert (done.stdout, done.returncode) == ("red\n", 9)
    assert done.stderr.startswith("oops\n")
    assert cluster.said(web, "client", "cat", input="given\n") == "given\n"
    big = "x" * (4 << 20)
    assert cluster.said(web, "client", "wc", "-c", input=big).strip() == str(len(big))
    words = cluster.control.command("exec", "-it", web, "-c", "client", "--", "tty")
    script = ["script", "-qec", " ".join(words), "/dev/null"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=150)
    assert "/dev/pts/" in done.stdout


def test_attach(cluster: Cluster, web: str) -> None:
    """`kubectl attach`, with standard input"""
    words = cluster.control.command("attach", "-i", web, "-c", "reader")
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as attached:
        assert attached.stdin
        assert attached.stdout
        print("echo $((6 * 7))", file=attached.stdin, flush=True)
        assert attached.stdout.readline() == "42\n"
        attached.terminate()


def test_cp(cluster: Cluster, web: str, tmp_path: Path) -> None:
    """`kubectl cp`, both ways"""
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 4096)
    cluster.control.output("cp", str(file), f"{web}:/tmp/copy", "-c", "client")
    cluster.control.output("cp", f"{web}:/tmp/copy", str(tmp_path / "back"), "-c", "client")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_port_forward(cluster: Cluster, web: str) -> None:
    """`kubectl port-forward`"""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    words = cluster.control.command("port-forward", f"pod/{web}", f"{port}:80")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as forwarding:
        try:
            assert forwarding.stdout
            assert "Forwarding" in forwarding.stdout.readline()
            for _ in range(3):
                with urlopen(f"http://127.0.0.1:{port}/", timeout=100) as answer:
                    assert answer.read().decode() == PAGE
        finally:
            forwarding.terminate()


def test_containers_of_a_pod(cluster: Cluster, web: str) -> None:
    """An init container before the others; containers share network and volumes, not processes"""
    assert cluster.said(web, "client", "cat", "/shared/file") == "made by the first\n"
    assert cluster.said(web, "client", "wget", "-qO-", "http://127.0.0.1/") == PAGE
    assert "httpd" not in cluster.said(web, "client", "ps")
    assert cluster.said(web, "client", "hostname").strip() == web
    address = cluster.address(web)
    assert f"inet {address}/" in cluster.said(web, "client", "ip", "address", "show", "eth0")


def test_sidecar(cluster: Cluster, runtime: str) -> None:
    """Sidecar containers: up before the others, started again, and no hindrance to a Job's end"""
    cluster.must_be_of(29)
    name = f"sidecar-{runtime}"
    shared = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    # The first one fails when the other container has seen it.
    fail = "until [ -e /shared/seen ]; do sleep 0.2; done; exit 1"
    first = "[ $(wc -l </shared/began) = 1 ]"
    beside = f"date >>/shared/began; httpd -h /www; if {first}; then {fail}; fi; exec sleep 10000"
    probe = {"tcpSocket": {"port": 80}, "periodSeconds": 1, "failureThreshold": 300}
    sidecar = container("beside", "sh", "-c", beside, startupProbe=probe, **shared)
    sidecar["restartPolicy"] = "Always"
    again = "until [ $(wc -l </shared/began) = 2 ]; do sleep 0.2; done"
    script = f"wget -qO- http://127.0.0.1/; touch /shared/seen; {again}; echo again"
    main = container("main", "sh", "-c", script, **shared)
    volumes = [{"name": "shared", "emptyDir": {}}]
    spec = pod(name, runtime, [main], initContainers=[sidecar], volumes=volumes)["spec"]
    cluster.control.apply(job(name, spec))
    try:
        ended = eventually(lambda: has_completed(cluster, name), SECONDS)
        (one,) = cluster.control.get("pod", "-l", f"job-name={name}")["items"]
        assert ended, cluster.why(one["metadata"]["name"])
        assert cluster.log(one["metadata"]["name"], "main") == f"{PAGE}again\n"
        (beside_it,) = one["status"]["initContainerStatuses"]
        assert beside_it["restartCount"] == 1
    finally:
        cluster.delete("job", name)


def test_cron_job(cluster: Cluster, runtime: str) -> None:
    """A CronJob starts its Job, whose pods do the work in turns"""
    cluster.must_be_of(21)
    name = f"minutely-{runtime}"
    spec = pod(name, runtime, [container("one", "echo", "done")])["spec"]
    work = job(name, spec)["spec"] | {"completions": 2}
    cron = {"schedule": "* * * * *", "concurrencyPolicy": "Forbid", "jobTemplate": {"spec": work}}
    meta = {"metadata": {"name": name}, "spec": cron}
    cluster.control.apply({"apiVersion": "batch/v1", "kind": "CronJob", **meta})

    def worked() -> bool:
        return "lastSuccessfulTime" in cluster.control.get("cronjob", name)["status"]

    try:
        assert eventually(worked, SECONDS), cluster.describe("cronjob", name)
    finally:
        cluster.delete("cronjob", name)


def job(name: str, spec: Object) -> Object:
    """Whose first failure ends it."""
    template = {"spec": {**spec, "restartPolicy": "Never"}}
    wanted = {"backoffLimit": 0, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": wanted}


def has_completed(cluster: Cluster, name: str) -> bool:
    conditions = cluster.control.get("job", name)["status"].get("conditions", [])
    return any(one["type"] == "Complete" and one["status"] == "True" for one in conditions)


def test_debug(cluster: Cluster, web: str) -> None:
    """`kubectl debug`: a container into a running pod, also one that sees another's processes"""
    cluster.must_be_of(25)
    control = cluster.control
    words = "debug", web, f"--image={IMAGE}", "--image-pull-policy=Never", "--attach=false"
    looks = {"apart": [], "within": ["--target=server"]}
    for name, target in looks.items():
        control.output(*words, f"--container={name}", *target, "--", "ps")

    def told() -> bool:
        found = cluster.status(web).get("ephemeralContainerStatuses", [])
        ended = {one["name"] for one in found if "terminated" in one["state"]}
        return ended >= {*looks}

    assert eventually(told, SECONDS), cluster.why(web)
    assert "httpd" not in cluster.log(web, "apart")
    assert "httpd" in cluster.log(web, "within")


def test_shared_processes(cluster: Cluster, runtime: str) -> None:
    """`shareProcessNamespace`"""
    containers = [container("one", "sleep", "10001"), container("two", "sleep", "10002")]
    wanted = pod(f"together-{runtime}", runtime, containers, shareProcessNamespace=True)
    with cluster.running(wanted) as name:
        assert "sleep 10001" in cluster.said(name, "two", "ps")


def test_restart_policies(cluster: Cluster, runtime: str) -> None:
    """`restartPolicy`: Never, OnFailure, Always"""
    names = {}
    for policy in ("Never", "OnFailure", "Always"):
        names[policy] = name = f"ends-{policy.lower()}-{runtime}"
        one = container("one", "sh", "-c", "exit 3")
        cluster.control.apply(pod(name, runtime, [one], restartPolicy=policy))
    never = names.pop("Never")
    assert eventually(lambda: cluster.status(never)["phase"] == "Failed", SECONDS), cluster.why(
        never
    )
    assert cluster.ended(never, "one")["exitCode"] == 3
    for name in names.values():
        assert eventually(partial(has_restarted, cluster, name), SECONDS), cluster.why(name)
    cluster.delete("pod", never, *names.values())


def has_restarted(cluster: Cluster, pod: str) -> bool:
    return bool(cluster.container(pod, "one").get("restartCount"))


def test_termination(cluster: Cluster, runtime: str) -> None:
    """`postStart`, `preStop`, and the time to end in"""
    script = "trap 'echo ended >>/shared/told; exit 0' TERM; while :; do sleep 0.2; done"
    told = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    hooks = {
        "postStart": {"exec": {"command": ["sh", "-c", "echo started >/shared/told"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo stopping >>/shared/told"]}},
    }
    # Another container outlives the first one, and tells.
    last = "trap 'sleep 3; cat /shared/told; exit 0' TERM; while :; do sleep 0.2; done"
    containers = [
        container("one", "sh", "-c", script, lifecycle=hooks, **told),
        container("last", "sh", "-c", last, **told),
    ]
    volumes = [{"name": "shared", "emptyDir": {}}]
    wanted = pod(f"term-{runtime}", runtime, containers, volumes=volumes)
    wanted["spec"]["terminationGracePeriodSeconds"] = 30
    cluster.run(wanted)
    name = wanted["metadata"]["name"]
    words = cluster.control.command("logs", "--follow", name, "-c", "last")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        cluster.delete("pod", name, grace=30)
        assert following.stdout
        # A line about a container that is gone may follow.
        lines = following.stdout.read().splitlines()
    assert lines[:3] == ["started", "stopping", "ended"]
