"""A container from its making to its end, as platforms go about it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.host import eventually
from tests.oci.bundles import configuration
from tests.oci.conftest import Run
from tests.oci.runtime import Container, Runtime, wait_for_shim
from tests.sandboxes import pids_of

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.smoke
def test_life(runtime: Runtime) -> None:
    with runtime.created(configuration("sh", "-c", "echo begun; sleep 1000")) as container:
        assert container.state["status"] == "created"
        assert container.state["pid"] == container.pid
        assert container.output() == ""
        container.start()
        assert container.prints("begun\n")
        state = container.state
        assert (state["status"], state["bundle"]) == ("running", str(container.bundle))
        assert "cannot start an already running" in runtime.refused("start", container.id)
        assert "that is not stopped: running" in runtime.refused("delete", container.id)
        (listed,) = json.loads(runtime.succeed("list", "--format", "json"))
        assert listed == state
        assert container.id in runtime.succeed("list")
        runtime.succeed("kill", container.id, "KILL")
        assert container.wait() == 137
        assert container.state["status"] == "stopped"
        assert container.state["pid"] == 0
        assert runtime.succeed("ps", container.id).split() == ["UID", "PID", "PPID", "CMD"]
        assert runtime.refused("kill", container.id, "TERM") == "container not running"
        runtime.succeed("kill", "--all", container.id, "9")
        assert "cannot start a container that has stopped" in runtime.refused("start", container.id)
        assert "cannot exec in a stopped" in runtime.refused("exec", container.id, "true")
        runtime.succeed("delete", container.id)
        runtime.succeed("delete", "--force", container.id)
        assert runtime.refused("kill", container.id, "9") == "container does not exist"
        assert runtime.refused("delete", container.id) == "container does not exist"


def test_run(runtime: Runtime) -> None:
    status, output = runtime.run("sh", "-c", "cat; echo out; echo err >&2; exit 5", stdin="in\n")
    assert (status, sorted(output.split())) == (5, ["err", "in", "out"])


def test_an_id_is_one_containers(runtime: Runtime) -> None:
    with runtime.running("sleep", "1000") as container:
        refused = runtime.refused("create", "--bundle", str(container.bundle), container.id)
        assert refused == "container with given ID already exists"
        assert container.state["status"] == "running"


def test_what_is_left_from_before_the_host_went_down(runtime: Runtime) -> None:
    with runtime.created(configuration("sleep", "1000")) as container:
        path = runtime.root / "containers" / container.id / "state.json"
        left = json.loads(path.read_text())
        path.write_text(json.dumps({**left, "boot": "an earlier one"}))
        assert container.state["status"] == "stopped"
        with runtime.created(configuration("sleep", "1000"), name=container.id) as anew:
            assert container.wait() == 137
            assert anew.state["status"] == "created"
            assert anew.state["bundle"] == str(anew.bundle)


def test_signals(runtime: Runtime) -> None:
    script = "trap 'echo usr1' USR1; trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with runtime.running("sh", "-c", script) as container:
        assert container.prints("ready")
        runtime.succeed("kill", container.id, "0")
        runtime.succeed("kill", container.id, "SIGUSR1")
        assert container.prints("usr1\n")
        wait_for_shim(container.pid)
        os.kill(container.pid, signal.SIGUSR1)
        assert container.prints("usr1\nusr1\n"), "sent to the shim"
        runtime.succeed("kill", container.id)
        assert container.wait() == 9
        assert "not running" in runtime.refused("kill", container.id, "0")


def test_a_program_that_is_not_there(runtime: Runtime) -> None:
    bundle = runtime.bundle(configuration("frobnicate"))
    done = runtime.call("create", "--bundle", str(bundle), "lost")
    assert done.returncode == 1
    assert 'exec: "frobnicate": executable file not found in $PATH' in done.stderr
    assert runtime.refused("state", "lost") == "container does not exist"


def test_created_and_deleted(runtime: Runtime) -> None:
    with runtime.created(configuration("sleep", "1000")) as container:
        runtime.succeed("delete", container.id)
        assert container.wait() == 137


@pytest.mark.parametrize(("name", "status"), [("KILL", 137), ("TERM", 2)])
def test_created_and_killed(runtime: Runtime, name: str, status: int) -> None:
    """By TERM, too, as runc's process is, with its status; other signals change nothing."""
    with runtime.created(configuration("sleep", "1000")) as container:
        runtime.succeed("kill", container.id, "USR1")
        assert container.state["status"] == "created"
        runtime.succeed("kill", container.id, name)
        assert container.wait() == status


def test_pause(runtime: Runtime) -> None:
    script = "while :; do echo tick; sleep 0.05; done"
    with runtime.running("sh", "-c", script) as container:
        assert container.prints("tick")
        runtime.succeed("pause", container.id)
        assert container.state["status"] == "paused"
        assert "cannot exec in a paused" in runtime.refused("exec", container.id, "true")
        assert runtime.refused("pause", container.id) == "container not running"
        frozen = (
            f"cat $(find /sys/fs/cgroup -path '*{container.id}*' -name cgroup.freeze | head -1)"
        )
        assert runtime.tapwright.exec(container.id, "sh", "-c", frozen) == "1\n"
        # What it had said by then may be on its way.
        assert eventually(lambda: stands_still(container))
        runtime.succeed("resume", container.id)
        assert runtime.refused("resume", container.id) == "container not paused"
        assert container.state["status"] == "running"
        paused = len(container.output())
        assert eventually(lambda: len(container.output()) > paused)
        runtime.succeed("pause", container.id)
        runtime.succeed("delete", "--force", container.id)


def stands_still(container: Container) -> bool:
    """Whether nothing more comes within half a second, in which it would tick ten times."""
    before = len(container.output())
    return not eventually(lambda: len(container.output()) > before, 0.5)


# As docker writes what an update leaves alone.
NO_CHANGE = {
    "memory": {"limit": 0, "reservation": 0, "swap": 0, "kernel": 0},
    "cpu": {"shares": 0, "quota": 0, "period": 0, "realtimePeriod": 0, "cpus": "", "mems": ""},
    "pids": {"limit": 0},
}


def test_limits(runtime: Runtime) -> None:
    resources = {"memory": {"limit": 64 << 20}, "pids": {"limit": 20}}
    mount = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
    with runtime.running(
        *("sleep", "1000"), linux={"resources": resources}, mounts=[mount]
    ) as container:
        assert container.says("cat", "/sys/fs/cgroup/memory.max") == f"{64 << 20}\n"
        assert container.says("cat", "/sys/fs/cgroup/pids.max") == "20\n"
        path = container.bundle / "resources"
        path.write_text(json.dumps({"memory": {"limit": 32 << 20}}))
        runtime.succeed("update", f"--resources={path}", container.id)
        assert container.says("cat", "/sys/fs/cgroup/memory.max") == f"{32 << 20}\n"
        text = json.dumps({"pids": {"limit": 30}})
        runtime.succeed("update", "--resources=-", container.id, input=text)
        runtime.succeed("update", "--memory", "48M", container.id)
        runtime.succeed("update", "--resources=-", container.id, input=json.dumps(NO_CHANGE))
        assert container.says("cat", "/sys/fs/cgroup/memory.max") == f"{48 << 20}\n"
        assert container.says("cat", "/sys/fs/cgroup/pids.max") == "30\n"
        assert "unable to set memory limit to 4096: " in runtime.refused(
            "update", "--memory", "4k", container.id
        )
        assert container.says("cat", "/sys/fs/cgroup/memory.max") == f"{48 << 20}\n"
        event = json.loads(runtime.succeed("events", "--stats", container.id))
        assert (event["type"], event["id"]) == ("stats", container.id)
        assert event["data"]["memory"]["usage"]["limit"] == 48 << 20
        assert event["data"]["pids"]["limit"] == 30
        assert event["data"]["cpu"]["usage"]["total"] > 0


_SOCKETS = """
import socket, sys
listeners = [socket.create_server((host, 7001), family=family)
             for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))]
connection = socket.create_connection(("127.0.0.1", 7001))
deaf = socket.socket(type=socket.SOCK_DGRAM)
deaf.bind(("127.0.0.1", 7002))
deaf.sendto(bytes(100), ("127.0.0.1", 7002))
print("ready", flush=True)
sys.stdin.read()
"""


def test_statistics_of_the_network(runtime: Runtime) -> None:
    """openEuler's: all interfaces with eight counters, sockets by their states."""
    with runtime.running("sleep", "1000") as container:
        before = network_of(runtime, container)
        assert [one["name"] for one in before["interfaces"]] == ["lo"]
        assert before["tcp"] == before["tcp6"] == dict.fromkeys(before["tcp"], 0)
        assert len(before["tcp"]) == 11
        nothing = {"listen": 0, "dropped": 0, "rx_queued": 0, "tx_queued": 0}
        assert before["udp"] == before["udp6"] == nothing
        command = ("sandbox", "exec", container.id, "--", "python3", "-I", "-S", "-c", _SOCKETS)
        pipe = subprocess.PIPE
        with subprocess.Popen(
            runtime.tapwright.command(*command), stdin=pipe, stdout=pipe, text=True
        ) as holding:
            assert holding.stdout
            assert holding.stdout.readline() == "ready\n"
            after = network_of(runtime, container)
            holding.communicate("")
        assert (after["tcp"]["listen"], after["tcp"]["established"]) == (1, 2)
        assert (after["tcp6"]["listen"], after["tcp6"]["established"]) == (1, 0)
        assert (after["udp"]["listen"], after["udp6"]["listen"]) == (1, 0)
        assert after["udp"]["rx_queued"] >= 100
        (one,), (other,) = before["interfaces"], after["interfaces"]
        assert len(other) == 9
        # The three of the handshake, and the one that nobody reads.
        assert other["rx_packets"] - one["rx_packets"] == 4
        assert other["tx_packets"] - one["tx_packets"] == 4
        assert other["tx_bytes"] - one["tx_bytes"] > 100


def network_of(runtime: Runtime, container: Container) -> Any:
    return json.loads(runtime.succeed("events", "--stats", container.id))["data"]


def test_events_end_with_the_container(runtime: Runtime) -> None:
    with runtime.running("sleep", "1000") as container:
        command = runtime.tapwright.command("events", "--interval=200ms", container.id)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout
            for _ in range(2):
                assert json.loads(watching.stdout.readline())["type"] == "stats"
            runtime.succeed("kill", container.id, "9")
            watching.stdout.read()
            assert watching.wait(60) == 0


def test_processes(runtime: Runtime) -> None:
    with runtime.running("sh", "-c", "sleep 1001 & sleep 1002") as container:

        def listed() -> list[str]:
            heading, *lines = runtime.succeed("ps", container.id).splitlines()
            assert heading.split() == ["UID", "PID", "PPID", "CMD"]
            return sorted(line.split(None, 3)[3] for line in lines)

        # Until the exec each is a shell.
        assert eventually(lambda: listed()[-2:] == ["sleep 1001", "sleep 1002"])
        pids = json.loads(runtime.succeed("ps", "--format", "json", container.id))
        assert pids == [container.pid]


def shell(script: str) -> dict[str, Any]:
    """A hook."""
    return {"path": "/bin/sh", "args": ["sh", "-c", script]}


def test_hooks(runtime: Runtime, tmp_path: Path) -> None:
    """Each where the specification says, with the state as it is then."""

    def hook(name: str, program: str = "/bin/sh") -> list[dict[str, object]]:
        script = (
            f'read -r state; echo "{name} $state $(readlink /proc/self/ns/net)" >> {tmp_path}/said;'
            f"pwd >> {tmp_path}/directories"
        )
        return [{"path": program, "args": ["hook", "-c", script]}]

    names = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    content = configuration("sleep", "1000", hooks={name: hook(name) for name in names})
    content["hooks"]["startContainer"] = [
        {"path": "/bin/sh", "args": ["sh", "-c", "cat > /data/new; mv /data/new /data/state"]}
    ]
    with runtime.created(content) as container:
        container.start()
        netns = os.readlink(f"/proc/{container.pid}/ns/net")
        # `start` does not wait for this hook, which is the new process's: by runc neither.
        written = container.bundle / "rootfs/data/state"
        assert eventually(written.exists)
        in_guest = json.loads(written.read_text())
        runtime.succeed("delete", "--force", container.id)
    assert in_guest["id"] == container.id
    own = os.readlink("/proc/self/ns/net")
    said = {}
    for line in (tmp_path / "said").read_text().splitlines():
        name, state, where = line.split(" ", 1)[0], line.split(" ", 1)[1], line.rsplit(" ", 1)[1]
        told = json.loads(state.rsplit(" ", 1)[0])
        assert (told["id"], told["bundle"]) == (container.id, str(container.bundle))
        said[name] = (told["status"], told.get("pid"), where)
    assert list(said) == list(names), "in this order"
    bundle = str(container.bundle)
    directories = (tmp_path / "directories").read_text().split()
    assert directories[:3] == [bundle, bundle, f"{bundle}/rootfs"], "as by runc"
    assert said == {
        "prestart": ("creating", container.pid, own),
        "createRuntime": ("creating", container.pid, own),
        "createContainer": ("creating", container.pid, netns),
        "poststart": ("running", container.pid, own),
        "poststop": ("stopped", None, own),
    }


def test_environments_of_hooks(
    by_runc: Run, by_us: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those without one of their own: as by runc."""
    monkeypatch.setenv("TWTEST_CALLER", "caller")
    said = {}
    for name, run in (("runc", by_runc), ("tapwright", by_us)):
        file = tmp_path / f"by-{name}"
        rootfs: list[Path] = []
        kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
        hooks = {
            kind: [shell(f"echo {kind} $TWTEST_CALLER $TWTEST_PROCESS >> {into}")]
            for kind, into in (*((kind, file) for kind in kinds), ("startContainer", "/data/said"))
        }
        process = {"env": ["PATH=/bin", "TWTEST_PROCESS=process"]}
        answer = run("true", prepare=rootfs.append, hooks=hooks, process=process)
        assert answer.startswith("0 "), answer
        lines = file.read_text() + (rootfs[0] / "data/said").read_text()
        said[name] = sorted(lines.splitlines())
    # Since 1.3 without the environment of the container's process.
    said["runc"] = [
        "createContainer process" if line == "createContainer" else line for line in said["runc"]
    ]
    assert said["tapwright"] == said["runc"]
    assert "startContainer process" in said["runc"]
    assert "prestart caller" in said["runc"]


def test_a_hook_of_poststart_that_fails(runtime: Runtime, tmp_path: Path, by_runc: Run) -> None:
    """It ends the container, as by runc; the program has run until then."""
    hooks = {"poststart": [shell("true"), shell("exit 3"), shell(f"touch {tmp_path}/later")]}
    assert by_runc("sleep", "1000", hooks=hooks).startswith("1 ")
    with runtime.created(configuration("sleep", "1000", hooks=hooks)) as container:
        said = runtime.refused("start", container.id)
        assert "poststart hook 1 (/bin/sh): it ended with status 3" in said
        assert container.state["status"] == "stopped"
        assert container.wait() == 128 + signal.SIGKILL
    assert not (tmp_path / "later").exists()


def test_a_hook_that_fails(runtime: Runtime, tmp_path: Path) -> None:
    """What the ones before it have made, poststop takes back."""
    made = tmp_path / "made"
    hooks = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", script]}]
        for kind, script in (
            ("prestart", f"touch {made}; echo no; exit 1"),
            ("poststop", f"rm {made}"),
        )
    }
    bundle = runtime.bundle(configuration("true", hooks=hooks))
    done = runtime.call("create", "--bundle", str(bundle), "hooked")
    assert done.returncode == 1
    assert "prestart hook 0 (/bin/sh): it ended with status 1, and said: no" in done.stderr
    assert not made.exists()
    assert runtime.refused("state", "hooked") == "container does not exist"


def test_without_usable_stdio(runtime: Runtime) -> None:
    """As for the sandbox of a pod: /dev/null, opened for reading; or nothing at all."""
    for stdout in ("</dev/null 1</dev/null 2</dev/null", "<&- >&- 2>&-"):
        name = runtime.fresh_id()
        bundle = runtime.bundle(configuration("sh", "-c", "echo out; echo err >&2; exit 4"))
        command = runtime.tapwright.command("create", "--bundle", str(bundle), name)
        script = f'exec "$0" "$@" {stdout}'
        subprocess.run(["/bin/sh", "-c", script, *command], check=True)
        try:
            pid = json.loads(runtime.succeed("state", name))["pid"]
            runtime.succeed("start", name)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
        finally:
            runtime.succeed("delete", "--force", name)


def test_without_an_environment(runtime: Runtime) -> None:
    """As podman calls them."""
    environment = {key: os.environ[key] for key in os.environ if key == "PYTHONPATH"}
    with runtime.running("sleep", "1000") as container:
        for words in (("pause",), ("resume",), ("kill", "--all"), ("delete", "--force")):
            runtime.succeed(*words, container.id, env=environment)


def test_without_its_template(runtime: Runtime, tmp_path: Path) -> None:
    """It starts all the same, and the platform's log says why that took longer."""
    (tmp_path / "file").touch()
    runtime.config = runtime.tapwright.configuration(
        template=tmp_path / "file" / "template", accelerator="tcg"
    )
    log = tmp_path / "log"
    bundle = runtime.bundle(configuration("echo", "hello"))
    words = ("--log", str(log), "--log-format", "json", "run", "--bundle", str(bundle))
    try:
        assert runtime.succeed(*words, runtime.fresh_id()) == "hello\n"
    finally:
        runtime.config = None
    (warning,) = map(json.loads, log.read_text().splitlines())
    assert warning["level"] == "warning"
    assert "booted, because there is no template" in warning["msg"]


def test_one_that_does_nothing_costs_its_supervisor_nothing(runtime: Runtime) -> None:
    """Eventually: what is done in the background after a start ends. In the time in which this
    process gets a tenth of a second of a processor, one that never rests would get some, too."""
    with runtime.running("sleep", "1000") as container:
        found = runtime.tapwright.json("sandbox", "inspect", container.state["sandbox"])
        supervisor, _ = pids_of(found)

        def is_idle() -> bool:
            before, start = ticks(supervisor), time.process_time()
            while time.process_time() < start + 0.1:
                pass
            return ticks(supervisor) == before

        assert eventually(is_idle)


def ticks(pid: int) -> int:
    """Of the processor, by a process (proc(5), /proc/PID/stat: utime, stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
