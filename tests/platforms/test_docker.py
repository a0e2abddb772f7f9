"""docker: namespaces without a path, filled by a hook or later."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.linux import cgroups
from tests.host import eventually
from tests.platforms import figures
from tests.platforms.confined import (
    DENIED,
    GROW,
    MEMORY,
    PROBE,
    RUNTIMES,
    said,
    without_mkdir,
)
from tests.platforms.docker import Docker
from tests.platforms.images import PAGE, SERVE
from tests.sandboxes import Tapwright

WEB = "web"
RUNTIME = "--runtime", "tapwright"


@pytest.fixture(scope="module", autouse=True)
def nothing_left(docker: Docker, docker_leaves_nothing: None) -> None:
    """Of all containers of this module."""


@pytest.fixture(scope="module")
def web(docker: Docker) -> Iterator[str]:
    docker.output("run", *RUNTIME, "--detach", "--name", WEB, "-p", "8083:80", "busybox", *SERVE)
    # It may not listen yet.
    assert eventually(lambda: fetch("http://127.0.0.1:8083/") == PAGE)
    yield WEB
    docker.output("rm", "--force", WEB)


@pytest.fixture(scope="module")
def second(docker: Docker) -> Iterator[str]:
    """Another network."""
    docker.output("network", "create", "--subnet", "10.90.0.0/24", "second")
    yield "second"
    docker.output("network", "rm", "second")


def fetch(url: str) -> str:
    words = ["curl", "-sS", "--max-time", "5", url]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


@pytest.mark.smoke
def test_published_port(docker: Docker, web: str) -> None:
    assert eventually(lambda: fetch("http://127.0.0.1:8083/") == PAGE)
    address = docker.inspect(web)["NetworkSettings"]["IPAddress"]
    assert eventually(lambda: fetch(f"http://{address}/") == PAGE)
    assert f"inet {address}/24" in docker.output("exec", web, "ip", "address")


def test_exec(docker: Docker, web: str) -> None:
    done = docker.run("exec", "-i", web, "sh", "-c", "cat; echo oops >&2; exit 9", input="in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "oops\n", 9)
    assert docker.inspect(web)["Id"][:12] in docker.output("exec", web, "cat", "/etc/hosts")


def test_stats(docker: Docker, web: str) -> None:
    """By the engine's API, of which `docker stats` shows the memory without idle files."""

    def shown() -> tuple[int, int]:
        told = docker.stats(web)
        memory = told["memory_stats"]
        idle = memory["stats"].get("total_inactive_file", memory["stats"].get("inactive_file"))
        return told["cpu_stats"]["cpu_usage"]["total_usage"], memory["usage"] - idle

    def execute_in_it(words: tuple[str, ...]) -> None:
        assert docker.run("exec", web, *words).returncode in (0, 143)  # that of `timeout`

    figures.check(shown, execute_in_it, docker.inspect(web)["State"]["Pid"])


def test_bound_to_a_processor(docker: Docker, web: str) -> None:
    """All that serves the virtual machine is."""
    pid = docker.inspect(web)["State"]["Pid"]
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line.split(":", 2)[2] for line in lines if ":memory:" in line or line[:3] == "0::")
    docker.output("update", "--cpuset-cpus", "0", web)
    found = cgroups.members(path)
    assert len(found) >= 3
    for each in found:
        assert "Cpus_allowed_list:\t0\n" in Path(f"/proc/{each}/status").read_text()
    docker.output("update", "--cpuset-cpus", ",".join(map(str, os.sched_getaffinity(0))), web)
    assert docker.output("exec", web, "echo", "there") == "there\n"


def test_network_connected_while_running(docker: Docker, web: str, second: str) -> None:
    """The engine makes no call to the runtime for that."""

    def addresses() -> str:
        return docker.output("exec", web, "ip", "-o", "-4", "address")

    docker.output("network", "connect", second, web)
    address = docker.inspect(web)["NetworkSettings"]["Networks"][second]["IPAddress"]
    assert eventually(lambda: f"inet {address}/24" in addresses()), addresses()
    assert eventually(lambda: fetch(f"http://{address}/") == PAGE)
    docker.output("network", "disconnect", second, web)
    assert eventually(lambda: address not in addresses()), addresses()
    assert eventually(lambda: fetch("http://127.0.0.1:8083/") == PAGE)


def test_network_of_a_users_own(docker: Docker, second: str) -> None:
    words = "run", *RUNTIME, "--rm", "--network", second, "busybox", "ip", "address"
    assert "inet 10.90.0." in docker.output(*words)


def test_names_of_a_users_own_network(docker: Docker, web: str, second: str) -> None:
    """Docker's name server is a socket in the namespace on the host."""
    docker.output("network", "connect", second, web)
    try:
        words = "run", *RUNTIME, "--rm", "--network", second, "busybox", "nslookup", web
        assert "Address: 10.90.0." in docker.output(*words).partition("Name:")[2]
        assert eventually(lambda: "10.90.0." in docker.run("exec", web, "nslookup", web).stdout)
    finally:
        docker.output("network", "disconnect", second, web)


def test_pause(docker: Docker, web: str) -> None:
    docker.output("pause", web)
    assert "timed out" in fetch("http://127.0.0.1:8083/")
    docker.output("unpause", web)
    assert eventually(lambda: fetch("http://127.0.0.1:8083/") == PAGE)


def test_copy_and_logs(docker: Docker) -> None:
    words = "run", *RUNTIME, "--name", "writer", "busybox", "sh", "-c"
    done = docker.run(*words, "echo new >/written; echo said; echo oops >&2; exit 7")
    assert done.returncode == 7
    logged = docker.run("logs", "writer")
    assert (logged.stdout, logged.stderr) == ("said\n", "oops\n")
    copied = docker.output("cp", "writer:/written", "-", text=True)
    assert "new\n" in copied
    docker.output("rm", "writer")


def test_stop(docker: Docker) -> None:
    script = "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.1; done"
    words = "run", *RUNTIME, "--detach", "--name", "stopped", "busybox", "sh", "-c", script
    docker.output(*words)
    assert eventually(lambda: docker.output("logs", "stopped") == "ready\n")
    docker.output("stop", "--time", "60", "stopped")
    assert eventually(lambda: docker.output("logs", "stopped") == "ready\nbye\n")
    assert docker.inspect("stopped")["State"]["ExitCode"] == 4
    docker.output("rm", "stopped")


def test_no_network(docker: Docker) -> None:
    words = "run", *RUNTIME, "--rm", "--net=none", "busybox", "ls", "/sys/class/net"
    assert docker.output(*words).split() == ["lo"]


def test_what_is_no_program(docker: Docker) -> None:
    done = docker.run("run", *RUNTIME, "--rm", "busybox", "nowhere")
    assert done.returncode == 127, done.stderr
    assert "nowhere" in done.stderr


def test_no_namespace_at_all(docker: Docker, tapwright: Tapwright) -> None:
    """With `disable_new_netns` and no network of the engine's: NICs are TAPs of the host's, added
    by hand."""
    for command in (
        "link add br-tap type bridge",
        "address add 10.94.0.1/24 dev br-tap",
        "link set br-tap up",
        "tuntap add dev tap-docker mode tap",
        "link set tap-docker master br-tap up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    words = "run", "--runtime", "tapwright-host", "--net=none", "--detach", "--name", "bare"
    try:
        docker.output(*words, "busybox", *SERVE)
        assert docker.output("exec", "bare", "ls", "/sys/class/net").split() == ["lo"]
        interface = {
            "device": "tap-docker",
            "name": "eth0",
            "hwAddr": "02:00:00:00:94:02",
            "IPAddresses": [{"address": "10.94.0.2", "mask": "24"}],
        }
        root, sandbox = str(docker.root), docker.inspect("bare")["Id"]
        adding = "--root", root, "kata-network", "add-iface", sandbox, "-"
        added = tapwright.run(*adding, input=json.dumps(interface))
        assert added.returncode == 0, added.stderr
        assert eventually(lambda: fetch("http://10.94.0.2/") == PAGE)
    finally:
        docker.output("rm", "--force", "bare")
        for name in ("tap-docker", "br-tap"):
            subprocess.run(["ip", "link", "delete", name], check=True)


def test_seccomp_profiles(docker: Docker, tmp_path: Path) -> None:
    def run(runtime: str, *words: str) -> tuple[int, str]:
        return said(docker.run("run", "--rm", "--runtime", runtime, "--network=none", *words))

    ways = [run(runtime, "busybox", "sh", "-c", PROBE) for runtime in RUNTIMES]
    assert "Seccomp:\t2\n" in ways[0][1]
    assert ways[0] == ways[1]
    option = "--security-opt", f"seccomp={without_mkdir(tmp_path)}"
    assert DENIED in run("tapwright", *option, "busybox", "mkdir", "/tmp/new")[1]


def test_killed_for_memory(docker: Docker) -> None:
    found = []
    for runtime in RUNTIMES:
        words = "run", "--name", "greedy", "--runtime", runtime, "--network=none"
        done = docker.run(*words, "--memory", str(MEMORY), "busybox", "sh", "-c", GROW)
        state = docker.inspect("greedy")["State"]
        found.append((done.returncode, state["ExitCode"], state["OOMKilled"]))
        docker.output("rm", "--force", "greedy")
    assert found == [(137, 137, True)] * 2
