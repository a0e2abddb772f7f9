"""Pods, as a kubelet asks containerd's CRI plugin for them."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tapwright.linux import cgroups
from tests.host import eventually
from tests.platforms.confined import DENIED, FILTERED, GROW, MEMORY, RUNTIMES, without_mkdir
from tests.platforms.cri import EXITED, RUNNING, Cri
from tests.platforms.images import PAGE, SERVE

POD = "pod"
RATES, AMOUNT, PIECE = ("80M", "40M"), 1 << 20, 1 << 14


@pytest.fixture(scope="module", autouse=True)
def nothing_left(cri: Cri, containerd_leaves_nothing: None) -> None:
    """Of all pods of this module."""


@pytest.fixture(scope="module")
def pod(cri: Cri) -> Iterator[str]:
    # The kubelet makes a group for each pod.
    above = f"/twtest-pods-{os.urandom(4).hex()}"
    sandbox = cri.run_sandbox(POD, ports={8082: 80}, cgroup_parent=above)
    yield sandbox
    cri.remove_sandbox(sandbox)
    cgroups.remove_if_empty(above)
    assert not list(Path("/sys/fs/cgroup").glob(f"*{above}"))


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


@pytest.mark.smoke
def test_reached_from_outside(cri: Cri, pod: str, server: str) -> None:
    assert eventually(lambda: fetch(f"http://{cri.address(pod)}/") == PAGE)
    assert eventually(lambda: fetch("http://127.0.0.1:8082/") == PAGE)


def test_what_a_pod_uses(cri: Cri, pod: str, server: str) -> None:
    """`crictl statsp`: the whole VM. Of a member it is the small process that stands for it."""
    processors, memory = cri.pod_usage(pod)
    assert processors > 500_000_000
    assert memory > 80 << 20
    processors, memory = cri.container_usage(server)
    assert processors < 500_000_000
    assert memory < 8 << 20


def test_in_place_resize(cri: Cri, pod: str) -> None:
    """Of a member, to more than the VM of its pod had when it started."""

    def takes(mib: int) -> bool:
        buffer = ("dd", "if=/dev/zero", "of=/dev/null", f"bs={mib}M", "count=1")
        status = cri.exec(container, *buffer).status
        assert status in (0, 137)
        return status == 0

    container = cri.run(pod, "grows", "sleep", "1000", memory=300 << 20)
    assert takes(250)
    assert cri.exec(container, "nproc").stdout == "1\n"
    cri.resize(container, memory=500 << 20, quota=150_000)
    assert takes(450)
    assert cri.exec(container, "nproc").stdout == "2\n"
    cri.resize(container, memory=100 << 20, quota=50_000)
    assert takes(50)
    assert not takes(150)
    assert cri.exec(container, "nproc").stdout == "1\n"
    cri.stop(container, 0)


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


def test_port_forward(cri: Cri, pod: str, server: str) -> None:
    """By containerd, which connects to localhost in the pod's namespace."""
    with closing(cri.forward(pod, 80)) as forwarded:
        forwarded.send(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while data := forwarded.receive():
            answer += data
    assert answer.decode().endswith(PAGE), forwarded.errors
    with closing(cri.forward(pod, 81)) as forwarded:
        assert not forwarded.receive()
    assert b"refused" in forwarded.errors


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
    # containerd's shim copies what is still in the pipes.
    logged = [("stderr", "oops"), ("stdout", "out")]
    assert eventually(lambda: sorted(cri.log(POD, "short")) == logged)
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
    cri.stop(container, 60)
    assert cri.state(container) == (EXITED, 4)
    assert eventually(lambda: cri.log(POD, "stopped")[-1] == ("stdout", "bye"))
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


def test_bandwidth(cri: Cri) -> None:
    """The annotations of Kubernetes for it: what comes to a pod, and what it sends, passes the
    plugin's queues, of which the one for sending is on an interface of its own."""
    way = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
    for handler in RUNTIMES:
        pod = cri.run_sandbox("shaped", handler, annotations=dict(zip(way, RATES, strict=True)))
        cri.run(pod, "echo", "nc", "-ll", "-p", "7", "-e", "cat")
        before = queues()
        assert sorted(before) == sorted(rate * 10**6 // 8 for rate in (80, 40))
        address = cri.address(pod)
        assert eventually(partial(echoes, address, 1))
        assert echoes(address, AMOUNT)
        after = queues()
        assert all(after[rate] - before[rate] >= AMOUNT for rate in before), (before, after)
        cri.remove_sandbox(pod)
        assert not queues()


def queues() -> dict[int, int]:
    """The bytes that have passed each token bucket of the host, by its rate in bytes a second."""
    told = subprocess.check_output(["tc", "-statistics", "-json", "qdisc", "show"])
    return {
        one["options"]["rate"]: one["bytes"] for one in json.loads(told) if one["kind"] == "tbf"
    }


def echoes(address: str, amount: int) -> bool:
    """Whether so many bytes come back."""
    try:
        with (
            socket.create_connection((address, 7), 20) as connection,
            connection.makefile("rb") as answers,
        ):
            for start in range(0, amount, PIECE):
                size = min(PIECE, amount - start)
                connection.sendall(bytes(size))
                assert len(answers.read(size)) == size
    except ConnectionError:
        return False
    return True


def test_confined_as_by_runc(cri: Cri, tmp_path: Path) -> None:
    """Members of a pod: RuntimeDefault, Unconfined, Localhost; and one that is killed."""
    found = []
    for handler in RUNTIMES:
        pod = cri.run_sandbox("confined", handler)
        answers: list[Any] = []
        for kind in ({1: 0}, {1: 1}, {1: 2, 2: str(without_mkdir(tmp_path))}):
            container = cri.run(pod, f"kind{kind[1]}", "sleep", "1000", seccomp=kind)
            answers.append(cri.exec(container, "sh", "-c", f"{FILTERED}; mkdir /tmp/new"))
        greedy = cri.run(pod, "greedy", "sh", "-c", GROW, memory=MEMORY)
        assert eventually(partial(has_ended, cri, greedy))
        answers.append((cri.state(greedy), cri.reason(greedy)))
        cri.remove_sandbox(pod)
        found.append(answers)
    assert [answer[0].partition("\n")[0] for answer in found[0][:3]] == [
        f"Seccomp:\t{mode}" for mode in (2, 0, 2)
    ]
    assert DENIED in found[0][2].stderr
    assert found[0][3] == ((EXITED, 137), "OOMKilled")
    assert found[0] == found[1]


def has_ended(cri: Cri, container: str) -> bool:
    return cri.state(container)[0] == EXITED
