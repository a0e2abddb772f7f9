"""Containers that share a sandbox."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.host import eventually
from tests.oci.bundles import CAPABILITIES, configuration
from tests.oci.runtime import Container, Runtime

pytestmark = pytest.mark.usefixtures("nothing_left")

CRI = "io.kubernetes.cri."
ADMIN = [*CAPABILITIES, "CAP_SYS_ADMIN"]


@contextmanager
def pod(runtime: Runtime, **changes: Any) -> Iterator[Container]:
    """The sandbox of a pod, as containerd's CRI plugin starts it."""
    marks = {f"{CRI}container-type": "sandbox", f"{CRI}sandbox-id": "pod"}
    with runtime.running("sleep", "100000", name="pod", annotations=marks, **changes) as container:
        yield container


def member(sandbox: Container, *argv: str) -> dict[str, Any]:
    marks = {f"{CRI}container-type": "container", f"{CRI}sandbox-id": sandbox.id}
    namespaces = [
        {"type": kind, "path": f"/proc/{sandbox.pid}/ns/{path}"}
        for kind, path in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"))
    ]
    namespaces += [{"type": "pid"}, {"type": "mount"}]
    return configuration(*argv, annotations=marks, linux={"namespaces": namespaces})


def test_members_share_the_vm_and_its_network(runtime: Runtime) -> None:
    script = "echo page > /data/index.html; httpd -f -p 127.0.0.1:80 -h /data"
    with pod(runtime) as sandbox, runtime.created(member(sandbox, "sh", "-c", script)) as server:
        server.start()
        assert len(runtime.tapwright.names()) == 1
        with runtime.created(member(sandbox, "sleep", "1000")) as client:
            client.start()
            fetch = ("wget", "-q", "-O", "-", "http://127.0.0.1/")
            assert eventually(lambda: client.exec(*fetch).stdout == "page\n")
            assert client.says("hostname") == sandbox.says("hostname")
            assert "httpd" not in client.says("ps")
            # openEuler's commands name a sandbox by any of its containers.
            listed = "IP Virtual Server version 1.2.1 (size="
            words = "kata-ipvs", "ipvsadm", "--parameters", "--list"
            assert runtime.succeed(*words, client.id).startswith(listed)
            assert runtime.succeed("kata-network", "list-routes", client.id) == "null\n"
            event = json.loads(runtime.succeed("events", "--stats", client.id))
            assert event["id"] == client.id
            assert event["data"]["tcp"]["listen"] >= 1
            runtime.succeed("delete", "--force", client.id)
            assert client.wait() == 137
        assert server.state["status"] == "running"
        assert sandbox.state["status"] == "running"


def test_members_end_with_the_sandbox(runtime: Runtime) -> None:
    with pod(runtime) as sandbox, runtime.created(member(sandbox, "sleep", "1000")) as container:
        container.start()
        runtime.succeed("delete", "--force", sandbox.id)
        assert container.wait() == 137
        assert container.state["status"] == "stopped"
        runtime.succeed("delete", container.id)


def test_a_member_of_a_network_namespace(runtime: Runtime) -> None:
    """Without a mark: `--network container:X`."""
    with runtime.running("sleep", "1000") as one:
        namespaces = [
            {"type": "network", "path": f"/proc/{one.pid}/ns/net"},
            *({"type": kind} for kind in ("pid", "mount", "ipc", "uts")),
        ]
        with runtime.running("sleep", "1000", linux={"namespaces": namespaces}) as other:
            assert other.state["sandbox"] == one.state["sandbox"]


def test_mounts_are_passed_on(runtime: Runtime, tmp_path: Path) -> None:
    """What one container mounts below a shared mount shows in another one that follows it, and ends
    there with the other's umount; by runc it does by way of the host."""
    source = tmp_path / "volume"
    (source / "below").mkdir(parents=True)

    def mounted(option: str) -> dict[str, Any]:
        bound = {"destination": "/data", "type": "bind", "source": str(source)}
        return {
            "mounts": [bound | {"options": ["rbind", option]}],
            "linux": {"rootfsPropagation": option},
        }

    process = {"capabilities": dict.fromkeys(("bounding", "effective", "permitted"), ADMIN)}
    with pod(runtime, **mounted("rshared"), process=process) as sandbox:
        content = member(sandbox, "sleep", "1000")
        content["mounts"] += mounted("rslave")["mounts"]
        content["linux"] |= mounted("rslave")["linux"]
        with runtime.created(content) as container:
            container.start()
            sandbox.says(
                "sh", "-c", "mount -t tmpfs inner /data/below; echo seen > /data/below/file"
            )
            assert container.says("cat", "/data/below/file") == "seen\n"
            sandbox.says("umount", "/data/below")
            assert container.says("ls", "/data/below") == ""
    assert not list((source / "below").iterdir())


def test_shared_processes(runtime: Runtime) -> None:
    with pod(runtime) as sandbox:
        content = member(sandbox, "sleep", "4321")
        for entry in content["linux"]["namespaces"]:
            if entry["type"] == "pid":
                entry["path"] = f"/proc/{sandbox.pid}/ns/pid"
        with runtime.created(content) as container:
            container.start()
            assert eventually(lambda: "sleep 4321" in sandbox.says("ps"))


def test_the_processes_of_one_whose_first_has_ended(runtime: Runtime) -> None:
    with pod(runtime) as sandbox:
        content = member(sandbox, "sh", "-c", "sleep 8765 & exit 3")
        for entry in content["linux"]["namespaces"]:
            if entry["type"] == "pid":
                entry["path"] = f"/proc/{sandbox.pid}/ns/pid"
        with runtime.created(content) as container:
            container.start()
            assert container.wait() == 3
            assert "sleep 8765" in sandbox.says("ps")
            assert runtime.refused("kill", container.id, "KILL") == "container not running"
            runtime.succeed("kill", "--all", container.id, "KILL")
            assert eventually(lambda: "sleep 8765" not in sandbox.says("ps"))


def test_a_pod_that_is_not_there(runtime: Runtime) -> None:
    marks = {f"{CRI}container-type": "container", f"{CRI}sandbox-id": "nobody"}
    namespaces = [{"type": "network", "path": "/proc/self/ns/net"}]
    content = configuration("true", annotations=marks, linux={"namespaces": namespaces})
    refused = runtime.refused("create", "--bundle", str(runtime.bundle(content)), "orphan")
    assert "the sandbox 'nobody' of this container does not exist" in refused
