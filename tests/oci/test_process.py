"""What a container's process has and is, and further processes in it."""

import fcntl
import json
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import eventually
from tests.oci.bundles import configuration
from tests.oci.runtime import Console, Container, Runtime

_STATUS = "cat /proc/self/status; echo; cat /proc/self/limits /proc/self/oom_score_adj"


@pytest.fixture(scope="module")
def container(runtime: Runtime) -> Iterator[Container]:
    with runtime.running("sleep", "100000") as running:
        yield running


def test_as_it_was_configured(runtime: Runtime) -> None:
    process = {
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [1002, 1003]},
        "cwd": "/tmp",
        "env": ["PATH=/bin", "COLOUR=blue"],
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}],
        "noNewPrivileges": True,
        "oomScoreAdj": 321,
        "capabilities": {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")},
    }
    script = f"id; pwd; echo $COLOUR; hostname; echo $$; {_STATUS}"
    status, output = runtime.run("sh", "-c", script, process=process)
    assert status == 0, output
    lines = output.splitlines()
    assert lines[0] == "uid=1000 gid=1001 groups=1002,1003"
    assert lines[1:5] == ["/tmp", "blue", "box", "1"]
    assert "CapBnd:\t0000000000000020" in lines
    assert "NoNewPrivs:\t1" in lines
    (files,) = (line.split()[3:5] for line in lines if line.startswith("Max open files"))
    assert files == ["77", "88"]
    assert lines[-1] == "321"


def test_parameters_of_the_kernel(runtime: Runtime) -> None:
    """Those of the network too: containers on podman have one by default."""
    sysctl = {"net.ipv4.ping_group_range": "0 1", "kernel.msgmax": "9000"}
    names = ("net/ipv4/ping_group_range", "kernel/msgmax")
    status, output = runtime.run(
        *("cat", *(f"/proc/sys/{name}" for name in names)), linux={"sysctl": sysctl}
    )
    assert (status, output.split()) == (0, ["0", "1", "9000"])


def test_namespaces_are_its_own(runtime: Runtime, container: Container) -> None:
    kinds = ("pid", "mnt", "ipc", "uts", "cgroup", "net")
    paths = [f"/proc/self/ns/{kind}" for kind in kinds]
    inside = container.says("sh", "-c", f"for i in {' '.join(paths)}; do readlink $i; done")
    (sandbox,) = (entry["id"] for entry in runtime.tapwright.json("sandbox", "list"))
    script = f"for i in {' '.join(paths)}; do readlink $i; done"
    outside = runtime.tapwright.exec(sandbox, "sh", "-c", script)
    same = [a == b for a, b in zip(inside.split(), outside.split(), strict=True)]
    assert same == [False] * 5 + [True]


def test_exec(container: Container) -> None:
    done = container.exec("sh", "-c", "cat; echo err >&2; exit 6", input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (6, "in\n", "err\n")
    assert container.exec("sh", "-c", "kill -9 $$").returncode == 137
    assert container.exec("sh", "-c", "kill -SEGV $$").returncode == 139
    missing = container.exec("frobnicate")
    assert missing.returncode == 255
    assert 'exec: "frobnicate": executable file not found in $PATH' in missing.stderr
    assert 'exec: "/etc/passwd": permission denied' in container.exec("/etc/passwd").stderr
    assert 'exec: "/etc": permission denied' in container.exec("/etc").stderr
    assert (
        'exec: "/nowhere": stat /nowhere: no such file or directory'
        in container.exec("/nowhere").stderr
    )


def test_exec_with_options(runtime: Runtime, container: Container) -> None:
    options = ("--cwd=/etc", "-e", "A=b", "--user", "5:6", "--additional-gids", "7")
    script = "pwd; echo $A; id -u; id -g; id -G"
    said = runtime.succeed("exec", *options, container.id, "sh", "-c", script)
    assert said == "/etc\nb\n5\n6\n6 7\n"
    done = runtime.call("exec", "--cap", "CAP_NO_SUCH", container.id, "true")
    assert done.returncode == 0
    assert "ignoring unknown or unavailable capabilities: [CAP_NO_SUCH]" in done.stderr


def test_exec_of_a_process_object(runtime: Runtime, container: Container, tmp_path: Path) -> None:
    process = configuration("sh", "-c", "echo $0 $A; sleep 0.2; exit 3")["process"]
    process["env"].append("A=b")
    path = tmp_path / "process.json"
    path.write_text(json.dumps(process))
    words = ("exec", "--process", str(path), "--detach", "--pid-file", str(tmp_path / "pid"))
    with open(tmp_path / "out", "w") as out:
        done = runtime.call(*words, container.id, stdout=out, capture_output=False)
    assert done.returncode == 0
    pid = int((tmp_path / "pid").read_text())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert (tmp_path / "out").read_text() == "sh b\n"


def test_many_at_once(runtime: Runtime, container: Container) -> None:
    commands = [
        runtime.tapwright.command("exec", container.id, "sh", "-c", f"seq 3000; exit {number}")
        for number in range(5)
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    for number, process in enumerate(running):
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output.count(b"\n")) == (number, 3000)


def test_what_an_exec_leaves_in_the_background(container: Container) -> None:
    """It prints on where the exec printed, which has ended; so a reader has all of it."""
    script = "(until [ -e /tmp/go ]; do sleep 0.05; done; echo late) & echo own; exit 4"
    command = container.runtime.tapwright.command("exec", container.id, "sh", "-c", script)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.wait(60) == 4
        assert running.stdout
        assert running.stdout.readline() == b"own\n"
        container.says("touch", "/tmp/go")
        assert running.stdout.read() == b"late\n"


def test_exec_ends_when_its_shim_is_killed(runtime: Runtime, container: Container) -> None:
    def shims() -> set[int]:
        return set(json.loads(runtime.succeed("ps", "--format=json", container.id)))

    before = shims()
    running = subprocess.Popen(runtime.tapwright.command("exec", container.id, "sleep", "1234"))
    try:
        # Its process in the guest is there first, and its shim a moment later.
        assert eventually(lambda: bool(shims() - before))
        assert eventually(lambda: "sleep 1234" in runtime.succeed("ps", container.id))
        (shim,) = shims() - before
        os.kill(shim, signal.SIGKILL)
        assert running.wait(60) == 137
    finally:
        running.kill()
        running.wait()
    assert eventually(lambda: "sleep 1234" not in runtime.succeed("ps", container.id))


def test_terminal(runtime: Runtime, tmp_path: Path) -> None:
    content = configuration(
        "sh", process={"terminal": True, "consoleSize": {"height": 20, "width": 70}}
    )
    with (
        Console(tmp_path / "console") as console,
        runtime.created(content, "--console-socket", console.path) as container,
    ):
        console.receive()
        container.start()
        console.write("stty size; tty; echo a''b\n")
        said = console.read_until("ab\r\n")
        assert "20 70\r\n" in said
        assert "/dev/" in said
        fcntl.ioctl(console.master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
        script = "until [ \"$(stty size)\" = '50 132' ]; do sleep 0.02; done; echo c''d\n"
        console.write(script)
        console.read_until("cd\r\n")
        console.write("sh -c \"echo e''f; exec sleep 1000\"\n")
        console.read_until("ef\r\n")
        console.write("\x03")
        console.read_until("# ")  # or the signal would take what is written with it
        console.write("echo sta''tus $?\n")
        console.read_until("status 130\r\n")
        console.write("exit 7\n")
        assert container.wait() == 7
        with pytest.raises(OSError, match="Input/output"):
            console.read_until("more")


def test_terminal_of_an_exec(runtime: Runtime, container: Container, tmp_path: Path) -> None:
    process = configuration("sh", "-c", "tty; read line; echo got $line")["process"]
    process["terminal"] = True
    path = tmp_path / "process.json"
    path.write_text(json.dumps(process))
    with Console(tmp_path / "console") as console:
        pid_file = tmp_path / "pid"
        words = ("exec", "-d", "--console-socket", console.path, "--pid-file", str(pid_file))
        runtime.succeed(*words, "--process", str(path), container.id)
        console.receive()
        console.write("word\n")
        assert "/dev/pts" in console.read_until("got word\r\n")
        assert os.waitpid(int(pid_file.read_text()), 0)[1] == 0


def test_terminal_of_the_caller(runtime: Runtime, container: Container) -> None:
    """`exec -t` by hand: the caller's terminal is the process's, and then as it was."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    before = termios.tcgetattr(slave)
    command = runtime.tapwright.command("exec", "-t", container.id, "sh", "-c", "stty size; read x")
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as running:
        said = b""
        while b"33 99\r\n" not in said:
            said += os.read(master, 1000)
        os.write(master, b"x\n")
        assert running.wait(60) == 0
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)


def test_what_does_not_fit_together(runtime: Runtime, container: Container) -> None:
    refused = runtime.refused("exec", "-d", "-t", container.id, "sh")
    assert refused == "cannot allocate tty if detached without setting console socket"
    refused = runtime.refused("exec", "--console-socket", "/x", container.id, "sh")
    assert refused.startswith("cannot use console socket")


def test_writes_that_nobody_reads(runtime: Runtime, container: Container) -> None:
    command = runtime.tapwright.command("exec", container.id, "sh", "-c", "yes; exit 0")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stdout.read(2) == b"y\n"
        running.stdout.close()
        assert running.wait(60) == 0
    assert eventually(lambda: " yes" not in runtime.succeed("ps", container.id))
