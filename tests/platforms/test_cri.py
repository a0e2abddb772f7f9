"""Pods, as a kubelet asks containerd's CRI plugin for them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import eventually
from tests.platforms.cri import EXITED, RUNNING, Cri
from tests.platforms.images import PAGE, SERVE

POD = "pod"


@pytest.fixture(scope="module", autouse=True)
def nothing_left(cri: Cri, containerd_leaves_nothing: None) -> None:
    """Of all pods of this module."""


@pytest.fixture(scope="module")
def pod(cri: Cri) -> Iterator[str]:
    sandbox = cri.run_sandbox(POD, ports={8082: 80})
    yield sandbox
    cri.remove_sandbox(sandbox)


@pytest.fixture(scope="module")
def server(cri: Cri, pod: str) -> str:
    container = cri.run(pod, "server", *SERVE)
    # It may not listen yet.
    assert eventually(lambda: fetch(f"http://{cri.address(pod)}/") == PAGE)
    return container


@pytest.fixture(scope="module")
def client(cri: Cri, pod: str) -> str:
    return cri.run(pod, "client", "sleep", "1000", environment={"COLOUR": "red"})


def fetch(url: str) -> str:
    words = ["curl", "-sS", "--max-time", "5", url]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def test_reached_from_outside(cri: Cri, pod: str, server: str) -> None:
    assert fetch(f"http://{cri.address(pod)}/") == PAGE
    assert fetch("http://127.0.0.1:8082/") == PAGE


def test_containers_share_the_network(cri: Cri, pod: str, server: str, client: str) -> None:
    assert cri.exec(client, "wget", "-qO-", "http://127.0.0.1/") == (PAGE, "", 0)
    address = cri.address(pod)
    for container in (server, client):
        assert f"inet {address}/24" in cri.exec(container, "ip", "address").stdout


def test_containers_share_nothing_else(cri: Cri, server: str, client: str) -> None:
    cri.exec(client, "touch", "/tmp/mine")
    assert cri.exec(server, "ls", "/tmp").stdout == ""
    assert "httpd" not in cri.exec(client, "ps").stdout
    assert "httpd" in cri.exec(server, "ps").stdout


def test_files_of_the_pod(cri: Cri, client: str) -> None:
    assert cri.exec(client, "hostname").stdout == f"{POD}\n"
    assert POD in cri.exec(client, "cat", "/etc/hostname").stdout
    resolving = cri.exec(client, "cat", "/etc/resolv.conf").stdout.split("\n")
    assert "nameserver 10.97.0.1" in resolving
    assert "search example.org" in resolving


def test_exec(cri: Cri, client: str) -> None:
    done = cri.exec(client, "sh", "-c", "echo $COLOUR; echo oops >&2; exit 9")
    assert done == ("red\n", "oops\n", 9)


def test_log_and_exit_status(cri: Cri, pod: str) -> None:
    container = cri.run(pod, "short", "sh", "-c", "echo out; echo oops >&2; exit 7")
    assert eventually(lambda: cri.state(container) == (EXITED, 7)), cri.state(container)
    assert sorted(cri.log(POD, "short")) == [("stderr", "oops"), ("stdout", "out")]
    cri.remove(container)


def test_volumes(cri: Cri, pod: str, tmp_path: Path) -> None:
    """Directories that containers of a pod share, and a file that may not be changed."""
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "shared").mkdir()
    mounts = [("/token", tmp_path / "token", True), ("/shared", tmp_path / "shared", False)]
    first = cri.run(pod, "first", "sleep", "1000", mounts=mounts)
    second = cri.run(pod, "second", "sleep", "1000", mounts=mounts)
    assert cri.exec(first, "sh", "-c", "cat /token >/shared/copy").status == 0
    assert cri.exec(second, "cat", "/shared/copy").stdout == "secret\n"
    assert "Read-only" in cri.exec(first, "sh", "-c", "echo >/token").stderr
    assert (tmp_path / "shared" / "copy").read_text() == "secret\n"
    for container in (first, second):
        cri.stop(container, 0)
        cri.remove(container)


def test_stop(cri: Cri, pod: str) -> None:
    """One of them alone, which may do something first."""
    script = "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.1; done"
    container = cri.run(pod, "stopped", "sh", "-c", script)
    assert eventually(lambda: cri.log(POD, "stopped") == [("stdout", "ready")])
    cri.stop(container, 10)
    assert cri.state(container) == (EXITED, 4)
    assert cri.log(POD, "stopped")[-1] == ("stdout", "bye")
    cri.remove(container)


def test_restart(cri: Cri, pod: str, client: str) -> None:
    """As a kubelet restarts a container: another one of that name."""
    for _ in range(2):
        container = cri.run(pod, "again", "sleep", "1000")
        assert cri.state(container)[0] == RUNNING
        cri.stop(container, 0)
        cri.remove(container)
    assert cri.state(client)[0] == RUNNING


def test_memory(cri: Cri, pod: str, client: str) -> None:
    """The limit is of one container alone."""
    grow = "sh", "-c", "x=1234567890123456; while :; do x=$x$x; done"
    container = cri.run(pod, "greedy", *grow, memory=32 << 20)
    assert eventually(lambda: cri.state(container) == (EXITED, 137)), cri.state(container)
    assert cri.state(client)[0] == RUNNING
    cri.remove(container)


def test_two_pods(cri: Cri, pod: str, server: str) -> None:
    """Pods reach each other on the network, and have no localhost in common."""
    other = cri.run_sandbox("other")
    container = cri.run(other, "client", "sleep", "1000")
    assert cri.exec(container, "wget", "-qO-", f"http://{cri.address(pod)}/").stdout == PAGE
    assert cri.exec(container, "wget", "-qO-", "http://127.0.0.1/").status != 0
    cri.remove_sandbox(other)
