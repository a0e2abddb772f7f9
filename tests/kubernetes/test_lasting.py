"""What goes on for longer: nodes whose programs are killed, many pods, updates under load."""

import os
import subprocess
import time

from tests.kubernetes.cluster import SECONDS, Cluster, Object, container, pod
from tests.kubernetes.test_services import service
from tests.kubernetes.waiting import eventually
from tests.platforms.images import SERVE

_MANY = int(os.environ.get("PODS", "20"))


def test_programs_killed(cluster: Cluster, runtime: str) -> None:
    """kubelet and containerd killed and started again: the pod goes on, and can be ended"""
    node = cluster.nodes[0]
    name = f"kept-{runtime}"
    one = container("one", "sh", "-c", "while :; do date +%s; sleep 1; done")
    cluster.run(pod(name, runtime, [one], nodeName=node.name))
    node.kill("kubelet")
    node.kill("containerd")
    node.start_containerd()
    node.start_kubelet()

    def answers() -> bool:
        return cluster.exec(name, "one", "echo", "yes").stdout == "yes\n"

    assert eventually(answers, SECONDS), cluster.why(name)
    assert cluster.container(name, "one")["restartCount"] == 0
    now = int(time.time())
    fresh = eventually(lambda: int(cluster.log(name, "one", "--tail=1") or 0) > now, SECONDS)
    assert fresh, cluster.why(name)
    assert eventually(lambda: cluster.is_ready(node), SECONDS)
    cluster.delete("pod", name, wait=True)


def test_reboot(cluster: Cluster, runtime: str) -> None:
    """A node whose power goes: its pods come back when it does, and no address stays taken"""
    node, *others = cluster.nodes
    name = f"rebooted-{runtime}"
    cluster.run(pod(name, runtime, [container("one", "sleep", "10000")], nodeName=node.name))
    node.reboot(others)

    def back() -> bool:
        return bool(cluster.container(name, "one").get("restartCount")) and (
            cluster.exec(name, "one", "echo", "yes").stdout == "yes\n"
        )

    assert eventually(back, 2 * SECONDS), cluster.why(name)
    assert eventually(lambda: cluster.is_ready(node), SECONDS)
    assert eventually(lambda: node.taken() == {cluster.address(name)}, SECONDS), node.taken()
    cluster.delete("pod", name)
    assert eventually(lambda: not node.taken(), SECONDS), node.taken()


def test_process_of_sandbox_killed(cluster: Cluster) -> None:
    """A virtual machine that is killed: its pod comes back"""
    name = "killed"
    one = container("one", "sleep", "10000")
    wanted = pod(name, "tapwright", [one])
    cluster.run(wanted)
    uid = cluster.control.get("pod", name)["metadata"]["uid"]
    cluster.said(name, "one", "true")
    kill(uid)

    def back() -> bool:
        return bool(cluster.container(name, "one").get("restartCount")) and (
            cluster.exec(name, "one", "echo", "yes").stdout == "yes\n"
        )

    assert eventually(back, SECONDS), cluster.why(name)
    cluster.delete("pod", name)


def kill(uid: str) -> None:
    """Of the processes in the control group of a pod QEMU."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cgroup") as groups, open(f"/proc/{pid}/comm") as comm:
                if uid in groups.read() and comm.read().startswith("qemu"):
                    os.kill(int(pid), 9)
        except FileNotFoundError:
            continue


def deployment(name: str, runtime: str, replicas: int, containers: list[Object]) -> Object:
    spec = pod(name, runtime, containers)["spec"] | {"terminationGracePeriodSeconds": 10}
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": template,
        },
    }


def test_many(cluster: Cluster, runtime: str) -> None:
    """Many pods at once on one node, which all come, answer, and all go"""
    name = f"many-{runtime}"
    control = cluster.control
    # Without a request, a busy machine gives them next to nothing of its processors.
    requests = {"resources": {"requests": {"cpu": "30m"}}}
    one = container("one", "sleep", "10000", **requests)
    many = deployment(name, f"dense-{runtime}", _MANY, [one])
    many["spec"]["template"]["spec"]["nodeName"] = cluster.nodes[0].name
    control.apply(many)

    def ready() -> int:
        return int(control.get("deployment", name)["status"].get("readyReplicas", 0))

    def present() -> list[str]:
        return [one["metadata"]["name"] for one in control.get("pod", "-l", f"app={name}")["items"]]

    try:
        came = eventually(lambda: ready() == _MANY, 4 * SECONDS)
        assert came, control.output("describe", "pod", "-l", f"app={name}")
        pods = present()
        told = {cluster.said(each, "one", "hostname").strip() for each in pods}
        assert told == set(pods)
    finally:
        cluster.delete("deployment", name)
        gone = eventually(lambda: not present(), 2 * SECONDS)
    assert gone, control.output("get", "pod", "-l", f"app={name}")


def test_rolling_update(cluster: Cluster, runtime: str) -> None:
    """A rolling update under load, without a request that fails"""
    # The service selects by it.
    name = f"rolling{runtime}"
    control = cluster.control
    probe = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1, "timeoutSeconds": 60}
    # It goes on until no kube-proxy leads anybody to it.
    hook = {"preStop": {"exec": {"command": ["sleep", "15"]}}}

    def version(number: int) -> Object:
        tell = f"echo version {number} >/www/index.html; exec {' '.join(SERVE)}"
        one = container("one", "sh", "-c", tell, readinessProbe=probe, lifecycle=hook)
        wanted = deployment(name, runtime, 2, [one])
        wanted["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 20
        return wanted

    control.apply(version(1), service(name))
    try:
        control.output("rollout", "status", "deployment", name, timeout=SECONDS)
        address = control.get("service", name)["spec"]["clusterIP"]
        url = f"http://{address}/"
        assert eventually(lambda: "version 1" in cluster.nodes[0].run("curl", "-s", url).stdout)
        # From a node, by its kube-proxy.
        script = f"while :; do curl -sS --max-time 60 {url} || echo failed; sleep 0.1; done"
        words = cluster.nodes[0].command("sh", "-c", script)
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True) as load:
            control.apply(version(2))
            control.output("rollout", "status", "deployment", name, timeout=SECONDS)
            assert eventually(
                lambda: len(control.get("pod", "-l", f"app={name}")["items"]) == 2, SECONDS
            )
            load.terminate()
            assert load.stdout
            answers = load.stdout.read().splitlines()
    finally:
        cluster.delete("deployment", name)
        cluster.delete("service", name)
    assert set(answers) == {"version 1", "version 2"}, answers
    assert answers[-1] == "version 2"
