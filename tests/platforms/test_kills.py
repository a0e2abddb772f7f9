"""Kills of every process of a container in every phase: what the platform itself then removes
leaves nothing."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import pytest

from tests.host import eventually
from tests.platforms.conftest import unchanged
from tests.platforms.containerd import Containerd
from tests.platforms.cri import Cri
from tests.platforms.docker import Docker
from tests.platforms.images import SERVE
from tests.platforms.podman import Podman
from tests.platforms.runtime import Runtime
from tests.platforms.victims import Victims, children, kill, of_sandbox

NAME = "victim"
WEB = "--name", NAME, "--network", "web", "-p", "8084:80", "busybox", *SERVE


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Victims:
    return Victims(tmp_path_factory.getbasetemp())


@pytest.fixture
def podman_unchanged(podman: Podman, runtime: Runtime) -> Iterator[None]:
    with unchanged(podman.home, runtime, podman.remove_all):
        yield
        assert podman.output("ps", "--all", "--quiet") == ""


@pytest.fixture
def containerd_unchanged(containerd: Containerd, cri: Cri, runtime: Runtime) -> Iterator[None]:
    with unchanged(containerd.home, runtime, cri.remove_all):
        yield


@pytest.fixture
def docker_unchanged(docker: Docker, runtime: Runtime) -> Iterator[None]:
    with unchanged(docker.home, runtime, docker.remove_all):
        yield


def processes(podman: Podman, runtime: Runtime) -> dict[str, int]:
    inspected: Any = podman.inspect(NAME)
    state = inspected["State"]
    return {
        "conmon": state["ConmonPid"],
        "shim": state["Pid"],
        **of_sandbox(runtime.root, inspected["Id"]),
    }


@contextmanager
def executing(podman: Podman) -> Iterator[None]:
    """With a program that runs beside the first one, and has to end in the block."""
    with podman.start("exec", NAME, "sh", "-c", "echo ready; sleep 1000") as client:
        assert client.stdout
        assert client.stdout.readline() == "ready\n"
        yield
        client.wait(60)


@pytest.mark.parametrize("phase", ["created", "running"])
@pytest.mark.parametrize("kind", ["conmon", "shim", "supervisor", "qemu"])
def test_podman(
    podman: Podman, runtime: Runtime, podman_unchanged: None, phase: str, kind: str
) -> None:
    podman.output("create", *WEB)
    podman.output(*(("init", NAME) if phase == "created" else ("start", NAME)))
    kill(processes(podman, runtime)[kind])
    if kind != "conmon" and phase == "running":
        # Podman before 4.4 can't remove one that ends while it stops it (its issue 16142).
        assert eventually(lambda: podman.inspect(NAME)["State"]["Status"] in ("exited", "stopped"))
    podman.end(NAME)


@pytest.mark.parametrize("kind", ["conmon", "shim"])
def test_exec_of_podman(
    podman: Podman, podman_unchanged: None, victims: Victims, kind: str
) -> None:
    """The container lives on."""
    podman.output("run", "--detach", *WEB)
    known = victims.pids("conmon")
    with executing(podman):
        (conmon,) = victims.pids("conmon") - known
        kill(conmon if kind == "conmon" else children(conmon)[0])
    assert podman.output("exec", NAME, "echo", "alive") == "alive\n"
    podman.end(NAME)


@pytest.mark.parametrize("kind", ["conmon", "create", "supervisor", "qemu"])
def test_podman_as_it_creates(
    podman: Podman, podman_unchanged: None, victims: Victims, kind: str
) -> None:
    known = victims.pids(kind)
    with podman.start("run", "--detach", *WEB) as client:
        victims.kill_as_it_comes(kind, known, random.Random(kind))  # noqa: S311 - no secret
        client.communicate(timeout=60)
    podman.output("rm", "--force", "--ignore", "--time", "0", NAME)


@pytest.mark.parametrize("kind", ["conmon", "qemu"])
def test_podman_as_it_stops(
    podman: Podman, runtime: Runtime, podman_unchanged: None, kind: str
) -> None:
    podman.output("run", "--detach", *WEB)
    pid = processes(podman, runtime)[kind]
    with podman.start("stop", "--time", "1", NAME) as client:
        kill(pid)
        client.communicate(timeout=60)  # lest it dies of what it can't say
    podman.end(NAME)


def test_podman_and_its_monitor_as_it_stops(
    podman: Podman, runtime: Runtime, podman_unchanged: None
) -> None:
    """It takes the container for one that is stopping, and removes its files alone."""
    podman.output("run", "--detach", *WEB)
    conmon = processes(podman, runtime)["conmon"]
    with podman.start("stop", "--time", "1000", NAME) as client:
        assert eventually(lambda: podman.inspect(NAME)["State"]["Status"] == "stopping")
        kill(conmon)
        client.kill()
    podman.end(NAME)


@pytest.mark.parametrize("phase", ["sandbox", "executing"])
@pytest.mark.parametrize("kind", ["containerd-shim", "shim", "supervisor", "qemu"])
def test_cri(
    containerd: Containerd,
    cri: Cri,
    containerd_unchanged: None,
    victims: Victims,
    phase: str,
    kind: str,
) -> None:
    if (kind, phase) == ("containerd-shim", "executing") and containerd.version.startswith("1.7."):
        pytest.skip(
            "containerd 1.7 goes on to call it running, also with runc, until it is restarted"
        )
    known = victims.pids("containerd-shim")
    sandbox = cri.run_sandbox(NAME, ports={8085: 80})
    container = cri.run(sandbox, "server", *SERVE) if phase != "sandbox" else sandbox
    (shim,) = victims.pids("containerd-shim") - known
    pids = {
        "containerd-shim": shim,
        "shim": containerd.tasks("k8s.io")[container][0],
        **of_sandbox(containerd.root / "k8s.io", sandbox),
    }
    if phase == "executing":
        running = cri.start_exec(container, "sh", "-c", "echo >/ready; sleep 1000")
        while cri.exec(container, "test", "-e", "/ready").status:
            pass
        kill(pids[kind])
        running.cancel()
    else:
        kill(pids[kind])
    cri.remove_sandbox(sandbox)


@pytest.mark.parametrize("kind", ["containerd-shim", "create", "supervisor", "qemu"])
def test_cri_as_it_creates(
    cri: Cri, containerd_unchanged: None, victims: Victims, kind: str
) -> None:
    known = victims.pids(kind)
    running = cri.start_sandbox(NAME)
    victims.kill_as_it_comes(kind, known, random.Random(kind))  # noqa: S311 - no secret
    with suppress(grpc.RpcError):
        running.result(60)
    cri.remove_all()


@pytest.mark.parametrize("kind", ["shim", "supervisor"])
def test_docker(docker: Docker, docker_unchanged: None, kind: str) -> None:
    docker.output("run", "--runtime", "tapwright", "--detach", *WEB[:2], *WEB[4:])
    inspected = docker.inspect(NAME)
    pids = {"shim": inspected["State"]["Pid"], **of_sandbox(docker.root, inspected["Id"])}
    kill(pids[kind])
    docker.output("rm", "--force", NAME)
