"""What a pod gets as files, and as which users its containers run."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kubernetes.cluster import SECONDS, Cluster, Object, config_map, container, pod
from tests.kubernetes.node import IMAGE
from tests.kubernetes.waiting import eventually
from tests.platforms.images import PAGE


@pytest.fixture(scope="module")
def files(cluster: Cluster, runtime: str) -> Iterator[str]:
    """A pod with volumes of all kinds, and two containers that have them."""
    control = cluster.control
    control.apply(
        config_map(f"settings-{runtime}", colour="red", shape="round"),
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"secret-{runtime}"},
            "stringData": {"word": "hush"},
        },
    )
    settings: Object = {"name": f"settings-{runtime}"}
    sources: list[Object] = [
        {"configMap": settings},
        {"secret": {"name": f"secret-{runtime}"}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": _field("metadata.labels")}]}},
    ]
    volumes: list[Object] = [
        {"name": "settings", "configMap": settings},
        {"name": "all", "projected": {"sources": sources}},
        {"name": "secret", "secret": {"secretName": f"secret-{runtime}", "defaultMode": 0o400}},
        {"name": "shared", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
    ]
    mounts: list[Object] = [
        *({"name": one["name"], "mountPath": f"/{one['name']}"} for one in volumes),
        {"name": "settings", "mountPath": "/etc/colour", "subPath": "colour"},
        {"name": "shared", "mountPath": "/part", "subPath": "a/part"},
        {"name": "shared", "mountPath": "/readonly", "readOnly": True},
    ]
    variables = [
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {**settings, "key": "colour"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": _field("spec.nodeName")}},
    ]
    containers = [
        container(name, "sleep", "10000", volumeMounts=mounts, env=variables)
        for name in ("one", "two")
    ]
    with cluster.running(pod(f"files-{runtime}", runtime, containers, volumes=volumes)) as name:
        yield name


def _field(path: str) -> Object:
    return {"fieldPath": path}


def test_config_and_secrets(cluster: Cluster, files: str) -> None:
    """ConfigMap, Secret, projected token and downward API, as files and as variables"""
    assert cluster.said(files, "one", "cat", "/settings/colour", "/etc/colour") == "redred"
    assert cluster.said(files, "one", "cat", "/secret/word", "/all/word") == "hushhush"
    assert cluster.said(files, "one", "stat", "-Lc", "%a", "/secret/word") == "400\n"
    assert cluster.said(files, "one", "cat", "/all/token").count(".") == 2
    assert f'app="{files}"' in cluster.said(files, "one", "cat", "/all/labels")
    assert cluster.said(files, "one", "sh", "-c", "echo $COLOUR $NODE").startswith("red node")
    denied = cluster.exec(files, "one", "sh", "-c", "echo >/settings/colour")
    assert "Read-only" in denied.stderr


def test_token(cluster: Cluster, runtime: str) -> None:
    """A service account's token, by which a pod asks the API server, at the service of that"""
    name = f"asks-{runtime}"
    # A client of the node's: busybox speaks no TLS that newer servers take.
    volume = {"name": "programs", "hostPath": {"path": str(cluster.control.programs)}}
    mounted = {"volumeMounts": [{"name": "programs", "mountPath": "/programs"}]}
    one = container("one", "sleep", "10000", **mounted)
    spec: Object = {"automountServiceAccountToken": True, "volumes": [volume]}
    with cluster.running(pod(name, runtime, [one], **spec)):
        ask = "/programs/kubectl", "get", "--raw", "/apis/authentication.k8s.io"
        assert eventually(lambda: "APIGroup" in cluster.exec(name, "one", *ask).stdout)


def test_image(cluster: Cluster, runtime: str) -> None:
    """A volume of an image, which is read-only"""
    cluster.must_be_of(35)
    volume = {"name": "image", "image": {"reference": IMAGE, "pullPolicy": "Never"}}
    mounted = {"volumeMounts": [{"name": "image", "mountPath": "/image"}]}
    one = container("one", "sleep", "10000", **mounted)
    with cluster.running(pod(f"image-{runtime}", runtime, [one], volumes=[volume])) as name:
        assert cluster.said(name, "one", "cat", "/image/www/index.html") == PAGE
        assert "Read-only" in cluster.exec(name, "one", "touch", "/image/new").stderr


def test_updates(cluster: Cluster, runtime: str, files: str) -> None:
    """Updates of ConfigMap, Secret and labels are seen by running containers"""
    control = cluster.control
    changed = {"data": {"colour": "blue"}}
    control.output("patch", "configmap", f"settings-{runtime}", "-p", _json(changed))
    control.output(
        "patch", "secret", f"secret-{runtime}", "-p", _json({"stringData": {"word": "ha"}})
    )
    control.output("label", "pod", files, "size=big")

    def seen() -> bool:
        said = cluster.said(files, "two", "cat", "/settings/colour", "/secret/word", "/all/labels")
        return said.startswith("blueha") and 'size="big"' in said

    assert eventually(seen, SECONDS)
    # As everywhere, not what is mounted by `subPath`.
    assert cluster.said(files, "two", "cat", "/etc/colour") == "red"


def test_shared_directory(cluster: Cluster, files: str) -> None:
    """`emptyDir` shared by containers: files, links, a FIFO, a socket"""
    script = "cd /shared; echo here >a-file; ln -s a-file link; mkfifo fifo"
    cluster.said(files, "one", "sh", "-c", script)
    assert cluster.said(files, "two", "cat", "/shared/link") == "here\n"
    words = cluster.control.command("exec", files, "-c", "two", "--", "cat", "/shared/fifo")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reading:
        cluster.said(files, "one", "sh", "-c", "echo through >/shared/fifo")
        assert reading.communicate(timeout=150)[0] == "through\n"
    denied = cluster.exec(files, "one", "touch", "/readonly/new")
    assert "Read-only" in denied.stderr


def test_memory_directory(cluster: Cluster, files: str) -> None:
    """`emptyDir` of `medium: Memory`, shared by containers"""
    cluster.said(files, "one", "sh", "-c", "echo here >/memory/file")
    assert cluster.said(files, "two", "cat", "/memory/file") == "here\n"
    mounted = cluster.said(files, "two", "grep", " /memory ", "/proc/mounts")
    assert " tmpfs " in mounted


def test_sub_path(cluster: Cluster, files: str) -> None:
    """`subPath` of a directory that is not there before"""
    cluster.said(files, "one", "touch", "/part/file")
    assert cluster.said(files, "two", "ls", "/shared/a/part") == "file\n"


def test_security_context(cluster: Cluster, runtime: str) -> None:
    """`securityContext`: user, groups, fsGroup, capabilities, read-only root, no new privileges"""
    confined: dict[str, Any] = {
        "runAsUser": 1000,
        "runAsGroup": 3000,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
    }
    mounts = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    one = container("one", "sleep", "10000", securityContext=confined, **mounts)
    wanted = pod(
        f"confined-{runtime}",
        runtime,
        [one],
        securityContext={"fsGroup": 2000, "supplementalGroups": [4000]},
        volumes=[{"name": "shared", "emptyDir": {}}],
    )
    with cluster.running(wanted) as name:
        numbers = cluster.said(name, "one", "sh", "-c", "id -u; id -g; id -G").split()
        assert numbers[:2] == ["1000", "3000"]
        assert {"2000", "3000", "4000"} <= set(numbers)
        cluster.said(name, "one", "touch", "/shared/file")
        assert cluster.said(name, "one", "stat", "-c", "%u %g", "/shared/file") == "1000 2000\n"
        assert "Read-only" in cluster.exec(name, "one", "touch", "/tmp/file").stderr
        status = dict(
            line.split(":\t", 1)
            for line in cluster.said(name, "one", "cat", "/proc/self/status").splitlines()
            if ":\t" in line
        )
        assert int(status["CapBnd"], 16) == 1 << 10
        assert status["NoNewPrivs"] == "1"


def _json(value: Any) -> str:
    return json.dumps(value)
