"""A cluster of some nodes, and the objects that tests ask it for."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.control import Control
from tests.kubernetes.networks import OTHERS
from tests.kubernetes.node import IMAGE, Node
from tests.kubernetes.waiting import eventually

Object = dict[str, Any]
RUNTIMES = "runc", "tapwright"
SECONDS = 300.0
"""The most that is waited for: two emulated processors may have other work, so it says nothing."""
_CPU, _MEMORY = {"cpu": "250m"}, {"memory": "384Mi"}
_CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "runc": ("runc", {}),
    "tapwright": ("tapwright", _CPU | _MEMORY),
    **{f"{network}-runc": (f"{network}-runc", {}) for network in OTHERS},
    **{f"{network}-tapwright": (f"{network}-tapwright", _CPU | _MEMORY) for network in OTHERS},
    # Two processors have no room for many times the overhead: what a pod asks for itself is all.
    "dense-runc": ("runc", {}),
    "dense-tapwright": ("tapwright", _MEMORY),
}
"""Name → the handler in containerd's configuration, and the overhead."""


class Cluster:
    """A control plane with its nodes, which reach each other's pods."""

    def __init__(self, programs: Path, home: Path, runtime: Path, layer: Path, size: int) -> None:
        self.control = Control(programs, home)
        self.nodes = [
            Node(number + 1, home, self.control, runtime, layer) for number in range(size)
        ]

    def start(self) -> None:
        self.control.start()
        self.add_classes()
        for node in self.nodes:
            self.control.add_node(node.name)
            node.start()
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.route_to(other)
        for node in self.nodes:
            ready = eventually(partial(self.is_ready, node), SECONDS)
            assert ready, f"{self.describe('node', node.name)}\n{node.log('kubelet')[-4000:]}"

    def add_classes(self) -> None:
        for name, (handler, fixed) in _CLASSES.items():
            # What is there can't be changed.
            self.control.output("delete", "runtimeclass", name, "--ignore-not-found")
            meta = {"metadata": {"name": name}, "handler": handler}
            overhead = {"overhead": {"podFixed": fixed}} if fixed else {}
            kind = {"kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1"}
            self.control.apply({**kind, **meta, **overhead})

    def is_ready(self, node: Node) -> bool:
        found = self.control.kubectl("get", "node", node.name, "-o", "json")
        if found.returncode:
            return False
        conditions = json.loads(found.stdout)["status"].get("conditions", [])
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        self.control.stop()

    def must_be_of(self, minor: int) -> None:
        """Skip a test of what came with a later version of Kubernetes, 1.`minor`."""
        if self.control.version < (1, minor):
            pytest.skip(f"came with Kubernetes 1.{minor}")

    # Pods.

    def run(self, pod: Mapping[str, Any]) -> None:
        """Wait until it is ready."""
        self.control.apply(pod)
        name = pod["metadata"]["name"]
        assert eventually(lambda: self.pod_is_ready(name), SECONDS), self.why(name)

    def pod_is_ready(self, name: str) -> bool:
        conditions = self.status(name).get("conditions", [])
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def status(self, name: str) -> Any:
        return self.control.get("pod", name)["status"]

    def address(self, name: str) -> str:
        return str(self.status(name)["podIP"])

    def address6(self, name: str) -> str:
        (found,) = [one["ip"] for one in self.status(name)["podIPs"] if ":" in one["ip"]]
        return str(found)

    def container(self, pod: str, name: str) -> Any:
        """Its status."""
        statuses = self.status(pod).get("containerStatuses", [])
        return next((one for one in statuses if one["name"] == name), {})

    def ended(self, pod: str, name: str) -> Any:
        """How a container has ended; nothing as long as it has not."""
        return self.container(pod, name).get("state", {}).get("terminated") or {}

    def exec(
        self, pod: str, container: str, *command: str, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        stdin = ["-i"] if "input" in options else []
        return self.control.kubectl("exec", *stdin, pod, "-c", container, "--", *command, **options)

    def said(self, pod: str, container: str, *command: str, **options: Any) -> str:
        """What a command in a container prints, which must succeed."""
        done = self.exec(pod, container, *command, **options)
        assert done.returncode == 0, f"{pod}/{container} {command}: {done.stdout}{done.stderr}"
        return str(done.stdout)

    def log(self, pod: str, container: str, *words: str) -> str:
        return self.control.output("logs", pod, "-c", container, *words)

    def delete(self, kind: str, *names: str, grace: int = 0, wait: bool = False) -> None:
        """With `wait`, wait until a pod has ended: the kubelet reports that every ten seconds."""
        now = [f"--grace-period={grace}"] if kind == "pod" else []
        # With none at all, the API forgets the pod before the kubelet has ended it.
        now = ["--grace-period=1"] if now and not grace else now
        later = ["--wait=false"] if kind == "pod" and not wait else []
        self.control.output("delete", kind, *names, *now, *later, "--ignore-not-found")

    @contextmanager
    def running(self, pod: Mapping[str, Any]) -> Iterator[str]:
        """For the length of the block; its name."""
        name = str(pod["metadata"]["name"])
        try:
            self.run(pod)
            yield name
        finally:
            self.delete("pod", name)

    def describe(self, kind: str, name: str) -> str:
        return self.control.kubectl("describe", kind, name).stdout

    def why(self, pod: str) -> str:
        node = self.nodes[0]
        return f"{self.describe('pod', pod)}\n{node.log('containerd')[-3000:]}"


def container(name: str, *command: str, **more: Any) -> Object:
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": list(command),
        **more,
    }


def pod(name: str, runtime: str, containers: Sequence[Object], **spec: Any) -> Object:
    """Whose containers are ended at once when they don't end by themselves."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "runtimeClassName": runtime,
            "containers": list(containers),
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **spec,
        },
    }


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
