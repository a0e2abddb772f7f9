"""containerd's own client: single containers, with CNI between create and start."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host import eventually
from tests.platforms import figures
from tests.platforms.confined import GROW, MEMORY
from tests.platforms.containerd import IMAGE, Containerd
from tests.platforms.images import PAGE, SERVE

ONE = "one"


@pytest.fixture(scope="module", autouse=True)
def nothing_left(containerd: Containerd, containerd_leaves_nothing: None) -> None:
    """Of all containers of this module."""


@pytest.fixture(scope="module")
def server(containerd: Containerd) -> Iterator[str]:
    """A web server in a container by itself; its address."""
    with containerd.foreground(ONE, *SERVE):
        (address,) = containerd.leased()
        yield address


@pytest.mark.smoke
def test_reached_on_the_network(containerd: Containerd, server: str) -> None:
    """What CNI has set up after `create` is in the guest when the program starts."""
    shown: list[str] = []

    def shows_addresses() -> bool:
        shown.append(execute(containerd, "ip", "address").stdout)
        return shown[-1] != ""

    # Of a quick process, ctr may show nothing: its end cancels the opening of its FIFOs by ctr
    # (client/process.go: Delete; fifo/fifo.go: OpenFifo).
    assert eventually(shows_addresses)
    assert f"inet {server}/24" in shown[-1]
    assert eventually(lambda: fetched(server))


def test_exec(containerd: Containerd, server: str) -> None:
    done = execute(containerd, "sh", "-c", "cat; echo oops >&2; exit 9", input="in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "oops\n", 9)


def test_tasks(containerd: Containerd, server: str) -> None:
    pid, status = containerd.tasks()[ONE]
    assert status == "RUNNING"
    assert Path(f"/proc/{pid}").exists()
    heading, *lines = containerd.output("tasks", "ps", ONE).splitlines()
    assert heading.startswith("PID")
    assert lines


def test_metrics(containerd: Containerd, server: str) -> None:
    def shown() -> tuple[int, int]:
        told = json.loads(containerd.output("tasks", "metrics", "--format", "json", ONE))
        return told["cpu"]["usage"]["total"], told["memory"]["usage"]["usage"]

    def execute_in_it(words: tuple[str, ...]) -> None:
        assert execute(containerd, *words).returncode in (0, 143)  # that of `timeout`

    figures.check(shown, execute_in_it, containerd.tasks()[ONE][0])


def test_pause(containerd: Containerd, server: str) -> None:
    containerd.output("tasks", "pause", ONE)
    assert containerd.tasks()[ONE][1] == "PAUSED"
    assert not fetched(server)
    containerd.output("tasks", "resume", ONE)
    assert containerd.tasks()[ONE][1] == "RUNNING"
    assert eventually(lambda: fetched(server))


def test_output_and_exit_status(containerd: Containerd) -> None:
    script = "read line; echo $line; echo oops >&2; exit 7"
    words = containerd.run_words("--rm", IMAGE, "two", "sh", "-c", script)
    done = containerd.ctr(*words, input="in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "oops\n", 7)


def test_signal_that_is_caught(containerd: Containerd) -> None:
    script = "trap 'exit 4' USR1; echo ready; while :; do sleep 0.1; done"
    with containerd.foreground("two", "sh", "-c", script) as client:
        assert client.stdout
        assert client.stdout.readline() == "ready\n"
        containerd.output("tasks", "kill", "--signal", "SIGUSR1", "two")
        assert client.wait(60) == 4


def test_all_signalled(containerd: Containerd) -> None:
    """Also those that the first process does not speak for."""
    with containerd.foreground("two", "sh", "-c", "sleep 1000 & wait; wait") as client:
        containerd.output("tasks", "kill", "--all", "--signal", "SIGKILL", "two")
        assert client.wait(60) == 137


def test_what_is_no_program(containerd: Containerd) -> None:
    done = containerd.ctr(*containerd.run_words("--rm", IMAGE, "two", "nowhere"))
    assert done.returncode != 0
    assert "nowhere" in done.stderr


def fetched(address: str) -> bool:
    words = ["curl", "-sS", "--max-time", "3", f"http://{address}/"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout == PAGE


def execute(
    containerd: Containerd, *command: str, **options: str
) -> subprocess.CompletedProcess[str]:
    return containerd.ctr("tasks", "exec", "--exec-id", "more", ONE, *command, **options)


def test_killed_for_memory(containerd: Containerd) -> None:
    """The kill is reported before the end."""
    with events(containerd) as lines:
        words = containerd.run_words("--rm", "--memory-limit", str(MEMORY), IMAGE, "greedy")
        assert containerd.ctr(*words, "sh", "-c", GROW).returncode == 137
        assert eventually(lambda: "/tasks/exit" in lines.read_text())
    topics = [line.split()[5] for line in lines.read_text().splitlines() if "greedy" in line]
    assert topics.index("/tasks/oom") < topics.index("/tasks/exit")


@contextmanager
def events(containerd: Containerd) -> Iterator[Path]:
    path = containerd.home / "events"
    with (
        path.open("w") as file,
        subprocess.Popen(containerd.command("events"), stdout=file) as process,
    ):
        try:
            # It is heard that it listens when something is.
            assert eventually(lambda: poked(containerd, path))
            yield path
        finally:
            process.kill()


def poked(containerd: Containerd, path: Path) -> bool:
    containerd.output("namespaces", "label", "default", "poked=1")
    return bool(path.read_text())
