"""podman: one container of everything a person does with it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.linux import cgroups
from tests.host import eventually
from tests.platforms.confined import (
    CHILD_GROWS,
    DENIED,
    GROW,
    MEMORY,
    PROBE,
    RUNTIMES,
    said,
    without_mkdir,
)
from tests.platforms.images import PAGE, SERVE
from tests.platforms.podman import Podman

WEB = "web"


@pytest.fixture(scope="module", autouse=True)
def nothing_left(podman: Podman, podman_leaves_nothing: None) -> None:
    """Of all containers of this module."""


@pytest.fixture(scope="module")
def web(podman: Podman) -> Iterator[str]:
    """A web server with a published port."""
    words = "run", "--detach", "--name", WEB, "--network", "web", "--hostname", "served"
    podman.output(*words, "-p", "8080:80", "busybox", *SERVE[:2], "-vv", *SERVE[2:])
    # It may not listen yet.
    assert eventually(lambda: fetch("http://127.0.0.1:8080/") == PAGE)
    yield WEB
    podman.output("rm", "--force", "--time", "1", WEB)


def fetch(url: str) -> str:
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "5", url], capture_output=True, text=True, check=False
    )
    return done.stdout or done.stderr


@pytest.mark.smoke
def test_published_port(podman: Podman, web: str) -> None:
    assert eventually(lambda: fetch("http://10.98.0.1:8080/") == PAGE)
    assert eventually(lambda: fetch("http://127.0.0.1:8080/") == PAGE)
    assert eventually(lambda: "response:200" in podman.run("logs", web).stderr)


def test_inspect(podman: Podman, web: str) -> None:
    state = podman.inspect(web)["State"]
    assert (state["Status"], state["Running"], state["ExitCode"]) == ("running", True, 0)
    assert Path(f"/proc/{state['Pid']}").exists()
    assert podman.output("ps", "--format", "{{.Names}} {{.Status}}").startswith(f"{web} Up")


def test_address_is_that_of_the_network(podman: Podman, web: str) -> None:
    settings = podman.inspect(web)["NetworkSettings"]["Networks"]["web"]
    shown = podman.output("exec", web, "ip", "address", "show", "eth0")
    assert f"inet {settings['IPAddress']}/24" in shown
    assert settings["MacAddress"] in shown
    assert podman.output("exec", web, "hostname") == "served\n"
    assert "served" in podman.output("exec", web, "cat", "/etc/hosts")
    assert podman.output("exec", web, "cat", "/etc/resolv.conf")


def test_names_of_a_network(podman: Podman, web: str) -> None:
    """By podman's own name server on the bridge, as by runc."""
    if not podman.has_name_server:
        pytest.skip("podman has no name server here: its networks are CNI's")
    words = "run", "--rm", "--network", "web", "busybox"
    for runtime in RUNTIMES:
        done = podman.run(*words, "nslookup", web, runtime=runtime)
        assert done.returncode == 0, (runtime, done.stdout, done.stderr)
        assert podman.inspect(web)["NetworkSettings"]["Networks"]["web"]["IPAddress"] in done.stdout


def test_exec(podman: Podman, web: str) -> None:
    words = "exec", "--env", "COLOUR=red", "--workdir", "/tmp", "--user", "worker"
    told = podman.output(*words, web, "sh", "-c", "id; pwd; echo $COLOUR")
    assert told.splitlines()[1:] == ["/tmp", "red"]
    assert told.startswith("uid=1000(worker) gid=1000(workers) groups=")
    assert "2000(extra)" in told
    done = podman.run("exec", "-i", web, "sh", "-c", "cat; echo oops >&2; exit 9", input="in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "oops\n", 9)


@pytest.mark.parametrize(
    ("program", "status", "why"),
    [("/nowhere", 127, "/nowhere"), ("/etc/passwd", 126, "permission denied")],
)
def test_exec_of_what_can_not_be_executed(
    podman: Podman, web: str, program: str, status: int, why: str
) -> None:
    done = podman.run("exec", web, program)
    assert done.returncode == status, done.stderr
    assert why in done.stderr


def test_several_execs_at_once(podman: Podman, web: str) -> None:
    running = [
        podman.start("exec", web, "sh", "-c", f"sleep 0.2; echo {n}; exit {n}") for n in range(5)
    ]
    for number, process in enumerate(running):
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (number, f"{number}\n"), stderr


def test_terminal_of_an_exec(podman: Podman, web: str) -> None:
    with podman.terminal("exec", "-it", web, "sh") as terminal:
        # podman says how large it is when the program runs already.
        terminal.type("until stty size | grep '33 99'; do :; done; tty\n")
        terminal.expect("33 99\r")
        terminal.expect("/dev/pts/")
        terminal.resize(44, 111)
        terminal.type("until stty size | grep '44 111'; do :; done\n")
        terminal.expect("44 111\r")
        terminal.type("exit 3\n")
        assert terminal.wait() == 3


def test_copy_both_ways(podman: Podman, web: str, tmp_path: Path) -> None:
    content = os.urandom(200_000)
    (tmp_path / "in").write_bytes(content)
    podman.output("cp", str(tmp_path / "in"), f"{web}:/tmp/copied")
    podman.output("exec", web, "cp", "/tmp/copied", "/tmp/made")
    podman.output("cp", f"{web}:/tmp/made", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == content


def test_pause(podman: Podman, web: str) -> None:
    podman.output("pause", web)
    # The guest's kernel takes the connection; the server does not answer.
    assert "timed out" in fetch("http://127.0.0.1:8080/")
    podman.output("unpause", web)
    assert eventually(lambda: fetch("http://127.0.0.1:8080/") == PAGE)


def test_network_connected_while_running(podman: Podman, web: str) -> None:
    def links() -> str:
        return podman.output("exec", web, "ip", "-o", "-4", "address")

    podman.output("network", "connect", "second", web)
    address = podman.inspect(web)["NetworkSettings"]["Networks"]["second"]["IPAddress"]
    assert eventually(lambda: f"inet {address}/24" in links()), links()
    assert eventually(lambda: fetch(f"http://{address}/") == PAGE)
    podman.output("network", "disconnect", "second", web)
    assert eventually(lambda: address not in links()), links()
    assert eventually(lambda: fetch("http://127.0.0.1:8080/") == PAGE)


def test_restart(podman: Podman, web: str) -> None:
    podman.output("exec", web, "sh", "-c", "echo kept >/www/kept")
    podman.output("restart", "--time", "1", web)
    assert eventually(lambda: fetch("http://127.0.0.1:8080/kept") == "kept\n")


def test_exit_status_and_output(podman: Podman) -> None:
    script = "cat; echo oops >&2; exit 7"
    done = podman.run("run", "--rm", "-i", "busybox", "sh", "-c", script, input="in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "oops\n", 7)


def test_what_a_process_is_given(podman: Podman, tmp_path: Path) -> None:
    """User, groups, directory, environment, mounts, a root that can't be written to."""
    (tmp_path / "file").write_text("from the host\n")
    (tmp_path / "there").mkdir(mode=0o777)
    (tmp_path / "there").chmod(0o777)
    script = (
        "id; pwd; echo $COLOUR; cat /mine; echo out >/there/out; grep -c nope /etc/passwd; "
        "for file in /mine /www/index.html /bare; do echo >$file; done 2>&1; "
        "echo scratch >/scratch/file && cat /scratch/file; grep NoNewPrivs /proc/self/status; "
        "grep CapEff /proc/self/status"
    )
    words = ["run", "--rm", "--user", "1000:1000", "--workdir", "/www", "--env", "COLOUR=red"]
    words += ["--volume", f"{tmp_path}/file:/mine:ro", "--volume", f"{tmp_path}/there:/there"]
    words += ["--read-only", "--tmpfs", "/scratch", "--security-opt", "no-new-privileges"]
    # busybox since 1.38 says where it is.
    told = podman.output(*words, "busybox", "sh", "-c", script).replace("sh: line 0: ", "sh: ")
    assert told.splitlines() == [
        "uid=1000(worker) gid=1000(workers) groups=1000(workers)",
        "/www",
        "red",
        "from the host",
        "0",
        "sh: can't create /mine: Read-only file system",
        "sh: can't create /www/index.html: Read-only file system",
        "sh: can't create /bare: Read-only file system",
        "scratch",
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
    ]
    assert (tmp_path / "there" / "out").read_text() == "out\n"
    assert (tmp_path / "there" / "out").stat().st_uid == 1000


def test_users_of_its_own(podman: Podman, tmp_path: Path) -> None:
    """The container's root is no user of the host, by runc and by Tapwright. podman makes the
    network when the container is there."""
    (tmp_path / "there").mkdir()
    os.chown(tmp_path / "there", 100_000, 100_000)
    script = (
        "id -u; cat /proc/self/uid_map /proc/self/gid_map; stat -c '%n %u %g' / /bin/sh /there "
        "/etc/hosts /etc/resolv.conf; touch /new /there/new; chown 5 /there/new && "
        "stat -c %u /new /there/new; nc -l -p 80 -w 1; ip -o -4 address | cut -d' ' -f2"
    )
    words = ["run", "--rm", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]
    words += ["--volume", f"{tmp_path}/there:/there", "busybox", "sh", "-c", script]
    by_runc, by_us = (podman.run(*words, runtime=runtime) for runtime in ("runc", "tapwright"))
    assert by_runc.returncode == 0, by_runc.stderr
    assert "eth0" in by_runc.stdout
    assert (by_us.stdout, by_us.stderr) == (by_runc.stdout, by_runc.stderr)
    assert (tmp_path / "there" / "new").stat().st_uid == 100_005


def test_terminal(podman: Podman) -> None:
    with podman.terminal("run", "--rm", "-it", "busybox", "sh") as terminal:
        terminal.expect("# ")
        terminal.type("stty size\n")
        terminal.expect("33 99")
        terminal.resize(50, 120)
        terminal.type("until stty size | grep '50 120'; do :; done\n")
        terminal.expect("50 120\r")
        terminal.type("sh -c 'echo begun; cat'\n")
        terminal.expect("begun\r\n")
        terminal.type("read\n")
        terminal.expect("read\r\nread\r\n")
        terminal.type("\x03")
        terminal.expect("# ")
        terminal.type("echo status $?\n")
        terminal.expect("status 130")
        terminal.type("exit 5\n")
        assert terminal.wait() == 5


def test_memory(podman: Podman) -> None:
    """More than its limit ends it."""
    grow = "sh", "-c", "x=1234567890123456; while :; do x=$x$x; done"
    done = podman.run("run", "--rm", "--memory", "32m", "busybox", *grow)
    assert done.returncode == 137, done.stderr


def test_no_network(podman: Podman) -> None:
    told = podman.output("run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net")
    assert told.split() == ["lo"]


def test_writes_are_the_platforms(podman: Podman, tmp_path: Path) -> None:
    """What a container writes is in its diff, its export, and in an image made of it."""
    podman.output(
        "run", "--name", "writer", "busybox", "sh", "-c", "echo new >/written; rm /etc/group"
    )
    assert "A /written" in podman.output("diff", "writer")
    assert "D /etc/group" in podman.output("diff", "writer")
    podman.output("cp", "writer:/written", str(tmp_path))
    assert (tmp_path / "written").read_text() == "new\n"
    podman.output("commit", "--quiet", "writer", "written")
    podman.output("rm", "writer")
    assert podman.output("run", "--rm", "written", "cat", "/written") == "new\n"
    podman.output("rmi", "written")


def test_signals_and_stop(podman: Podman) -> None:
    """A signal that is caught, and one in place of what stop sends."""
    traps = "trap 'echo caught' USR1; trap 'echo bye; exit 4' INT"
    script = f"{traps}; echo ready; while :; do sleep 0.1; done"
    words = "run", "--detach", "--name", "heard", "--stop-signal", "INT"
    podman.output(*words, "busybox", "sh", "-c", script)
    assert eventually(lambda: podman.output("logs", "heard") == "ready\n")
    podman.output("kill", "--signal", str(int(signal.SIGUSR1)), "heard")
    assert eventually(lambda: podman.output("logs", "heard") == "ready\ncaught\n")
    podman.output("stop", "--time", "60", "heard")
    assert eventually(lambda: podman.output("logs", "heard") == "ready\ncaught\nbye\n")
    assert podman.output("wait", "heard") == "4\n"
    assert podman.inspect("heard")["State"]["ExitCode"] == 4
    podman.output("rm", "heard")


def test_ended_by_a_signal(podman: Podman) -> None:
    podman.output("run", "--detach", "--name", "killed", "busybox", "sleep", "1000")
    podman.output("kill", "killed")
    assert podman.output("wait", "killed") == "137\n"
    podman.output("rm", "killed")


def test_what_is_no_program(podman: Podman) -> None:
    done = podman.run("run", "--rm", "busybox", "nowhere")
    assert done.returncode == 127, done.stderr
    assert "nowhere" in done.stderr


def test_pod(podman: Podman) -> None:
    """Two containers on one network, that speak to each other on localhost."""
    options = "--name", "pair", "--network", "web", "-p", "8081:80"
    pod = podman.output("pod", "create", *options).strip()
    podman.output("run", "--detach", "--pod", "pair", "--name", "server", "busybox", *SERVE)
    beside = "run", "--rm", "--pod", "pair", "busybox"
    assert eventually(lambda: fetch("http://127.0.0.1:8081/") == PAGE)
    assert podman.output(*beside, "wget", "-qO-", "http://127.0.0.1/") == PAGE
    assert podman.output("exec", "server", "hostname") == "pair\n"
    podman.output("rm", "--force", "--time", "0", "server")
    assert podman.output(*beside, "hostname") == "pair\n"
    podman.output("pod", "rm", "--force", "pair")
    # podman 4.3 leaves the pod's in hierarchies that have no controller, also with runc.
    cgroups.remove_if_empty(f"/libpod_parent/{pod}")


def test_network_of_another_container(podman: Podman, web: str) -> None:
    """Joins the sandbox of that one, as `--network container:` means."""
    words = "run", "--rm", "--network", f"container:{web}", "busybox"
    assert podman.output(*words, "wget", "-qO-", "http://127.0.0.1/") == PAGE


def test_seccomp_profiles(podman: Podman, tmp_path: Path) -> None:
    words = "run", "--rm", "--network", "none"
    ways = [said(podman.run(*words, "busybox", "sh", "-c", PROBE, runtime=r)) for r in RUNTIMES]
    assert "Seccomp:\t2\n" in ways[0][1]
    assert ways[0] == ways[1]
    option = "--security-opt", f"seccomp={without_mkdir(tmp_path)}"
    assert DENIED in said(podman.run(*words, *option, "busybox", "mkdir", "/x"))[1]
    option = "--security-opt", "seccomp=unconfined"
    status = "grep", "Seccomp:", "/proc/self/status"
    assert podman.output(*words, *option, "busybox", *status) == "Seccomp:\t0\n"


@pytest.mark.parametrize("script", [GROW, CHILD_GROWS])
def test_killed_for_memory(podman: Podman, script: str) -> None:
    """Not compared with runc: conmon learns nothing of its kills where both versions of cgroups
    exist."""
    words = "run", "--name", "greedy", "--network", "none", "--memory", str(MEMORY)
    done = podman.run(*words, "busybox", "sh", "-c", script)
    state = podman.inspect("greedy")["State"]
    podman.output("rm", "--force", "greedy")
    status = 137 if script == GROW else 3
    assert done.returncode == status
    assert (state["ExitCode"], state["OOMKilled"]) == (status, True)
