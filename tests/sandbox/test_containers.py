"""Containers in a sandbox's guest, asked for over its control socket."""

import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from functools import partial
from io import FileIO
from typing import Any

import pytest

from tapwright.errors import ContainerError, ContainerNotFoundError, ContainerStateError
from tests.containers import Connection, Files, Pipes, Pod, configuration, pair, process, read_all
from tests.host import eventually
from tests.sandboxes import Tapwright, pids_of

FOREVER = ("sleep", "86399")


@pytest.fixture(scope="module")
def pod(tapwright: Tapwright) -> Iterator[Pod]:
    tapwright.json("sandbox", "run", "pod")
    yield Pod(tapwright, "pod")
    tapwright.delete("pod")


def exited(status: int) -> Any:
    return {"exited": {"status": status}}


def killed(number: int) -> Any:
    return {"exited": {"signal": number}}


def lines(output: bytes) -> list[str]:
    return output.decode().splitlines()


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("true", exited(0)),
        ("exit 37", exited(37)),
        ("exit 255", exited(255)),
    ],
)
def test_exit_status(pod: Pod, script: str, outcome: Any) -> None:
    assert pod.run("sh", "-c", script) == (outcome, b"", b"")


def test_stdin_stdout_and_stderr_stay_apart(pod: Pod) -> None:
    outcome = pod.run("sh", "-c", "read x; echo out $x; echo err >&2", stdin=b"in\n")
    assert outcome == (exited(0), b"out in\n", b"err\n")


def test_much_goes_both_ways(pod: Pod) -> None:
    payload = os.urandom(3 << 20)
    outcome, stdout, _ = pod.run("sh", "-c", "tee /dev/stderr | sha256sum", stdin=payload)
    assert outcome == exited(0)
    assert stdout.split()[0].decode() == hashlib.sha256(payload).hexdigest()


def test_pipes(pod: Pod) -> None:
    """Whole output, the end of stdin, and the end of stdout while the container is there."""
    payload = os.urandom(2 << 20)
    config = configuration(process("sh", "-c", "cat; exec >&-; cat >&2; sleep 86399"))
    with Pipes() as pipes, pod.create(config, pipes.descriptors) as container:
        container.started()
        pipes.handed_over()

        def write() -> None:
            with open(pipes.stdin, "wb", closefd=False) as file:
                file.write(payload)
            pipes.close(pipes.stdin)

        writing = threading.Thread(target=write)
        writing.start()
        assert read_all(pipes.stdout) == payload
        writing.join()
        assert container.status == "running"


def test_a_reader_that_goes_away_ends_the_program(pod: Pod) -> None:
    config = configuration(process("sh", "-c", "yes & wait $!; exit $?"))
    with Pipes() as pipes, pod.create(config, pipes.descriptors) as container:
        container.started()
        pipes.handed_over()
        assert os.read(pipes.stdout, 2) == b"y\n"
        pipes.close(pipes.stdout)
        assert container.connection.hear() == exited(128 + signal.SIGPIPE)


def test_a_slow_reader_is_waited_for(pod: Pod) -> None:
    """The supervisor reports the end after the last byte, even if the program ended long before."""
    config = configuration(process("seq", "60000"))
    with Pipes() as pipes, pod.create(config, pipes.descriptors) as container:
        container.started()
        pipes.handed_over()
        assert eventually(lambda: container.status == "stopped")
        assert not container.connection.has_news()
        assert read_all(pipes.stdout) == b"".join(b"%d\n" % number for number in range(1, 60001))
        assert container.connection.hear() == exited(0)


def test_other_descriptors(pod: Pod) -> None:
    """Sockets, /dev/null, what can't be written, what can't be read."""
    config = configuration(process("sh", "-c", "echo first; head -c 4 >&2; echo last"))
    ours, theirs = pair()
    with ours, theirs, open("/dev/null", "rb") as null:
        descriptors = [theirs.fileno(), null.fileno(), theirs.fileno()]
        with pod.create(config, descriptors) as container:
            theirs.close()
            container.started()
            ours.sendall(b"four")
            assert ours.recv(4, socket.MSG_WAITALL) == b"four"
            assert container.connection.hear() == exited(0)
    with open("/dev/null", "wb") as null, open("/dev/full", "wb") as full:
        descriptors = [null.fileno(), full.fileno(), null.fileno()]
        with pod.create(config, descriptors) as container:
            container.started()
            assert container.connection.hear() == exited(0)


def test_wrong_descriptors(pod: Pod) -> None:
    config = configuration(process("true"))
    with open("/dev/null") as null:
        for count, terminal in ((0, False), (2, False), (3, True)):
            with pod.create(config, [null.fileno()] * count, terminal=terminal) as container:
                assert container.connection.hear()["kind"] == "UsageError"


def until_sized(size: str) -> str:
    """Shell: wait until the terminal has that size, and tell it."""
    return f'until [ "$(stty size)" = "{size}" ]; do sleep 0.05; done; stty size'


def read_until(terminal: FileIO, text: bytes) -> bytes:
    """What is there may come in several pieces."""
    seen = b""
    while text not in seen:
        seen += terminal.read(4096)
    return seen


def test_terminal(pod: Pod) -> None:
    master, slave = os.openpty()
    # Sizes and input come by different ways.
    script = f"{until_sized('33 99')}; tty; read x; {until_sized('20 50')}; exit 9"
    shell = process("sh", "-c", script, terminal=True)
    config = configuration(shell)
    with (
        open(master, "r+b", buffering=0) as terminal,
        pod.create(config, [slave], terminal=True) as container,
    ):
        os.close(slave)
        container.created()
        container.connection.say(resize=[33, 99])
        container.call("start_container")
        assert b"33 99" in read_until(terminal, b"/dev/pts")
        container.connection.say(resize=[20, 50])
        terminal.write(b"go\r")
        assert container.connection.hear() == exited(9)
        read_until(terminal, b"20 50")


def test_terminal_that_nobody_has_open_for_a_while(pod: Pod) -> None:
    script = "t=$(tty); exec <&- >&- 2>&-; sleep 1; exec >$t; echo again"
    master, slave = os.openpty()
    config = configuration(process("sh", "-c", script, terminal=True))
    with (
        open(master, "r+b", buffering=0) as terminal,
        pod.create(config, [slave], terminal=True) as container,
    ):
        os.close(slave)
        container.started()
        assert container.connection.hear() == exited(0)
        read_until(terminal, b"again")


def test_terminal_that_hangs_up(pod: Pod) -> None:
    master, slave = os.openpty()
    config = configuration(
        # Again and again: the kernel ends what waits for input before it sends the signal.
        process(
            "sh", "-c", "trap 'exit 8' HUP; echo ready; while :; do read x; done", terminal=True
        )
    )
    with pod.create(config, [slave], terminal=True) as container:
        os.close(slave)
        container.started()
        seen = b""
        while b"ready" not in seen:
            seen += os.read(master, 4096)
        os.close(master)
        assert container.connection.hear() == exited(8)


def test_missing_program(pod: Pod) -> None:
    """Nothing is left, so the same id can be used at once."""
    for _ in range(2):
        with Files() as files:
            config = configuration(process("no-such-program"))
            container = pod.create(config, files.descriptors, name="missing")
            heard = container.connection.hear()
            assert "no-such-program" in heard["failed"]
            assert "not found" in heard["failed"]
            assert heard["kind"] == "ContainerError"
            assert container.connection.hear() is None
            container.connection.close()
            with pytest.raises(ContainerNotFoundError):
                container.call("container_processes")


def test_identity(pod: Pod) -> None:
    who = process(
        *("sh", "-c", "id; pwd; echo $COLOUR; cat /proc/self/status; ulimit -n; ulimit -c;"),
        user={"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27},
        env=[*["PATH=/bin"], "COLOUR=blue"],
        cwd="/work",
        capabilities={
            kind: ["CAP_KILL", "CAP_NET_RAW"]
            for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
        },
        rlimits=[
            {"type": "RLIMIT_NOFILE", "soft": 2000, "hard": 3000},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
        noNewPrivileges=True,
        oomScoreAdj=321,
    )
    who["args"][2] += "cat /proc/self/oom_score_adj"
    outcome, stdout, stderr = pod.run_configured(configuration(who))
    assert (outcome, stderr) == (exited(0), b"")
    found = lines(stdout)
    assert found[:3] == ["uid=1000 gid=1001 groups=5,6", "/work", "blue"]
    status = dict(line.split(":\t", 1) for line in found[3:-3])
    capabilities = f"{1 << 5 | 1 << 13:016x}"
    assert status["CapEff"] == status["CapBnd"] == status["CapAmb"] == capabilities
    assert (status["NoNewPrivs"], status["Umask"]) == ("1", "0027")
    assert found[-3:] == ["2000", "0", "321"]


def test_output_can_be_opened_again(pod: Pod) -> None:
    """By a user who is not root, as many images do with /dev/stdout."""
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    who = process("sh", "-c", script, user={"uid": 1000, "gid": 1000})
    assert pod.run_configured(configuration(who)) == (exited(0), b"out\n", b"err\n")


def test_many_open_files(pod: Pod) -> None:
    most = 1073741816  # what systemd gives a host
    limit = {"type": "RLIMIT_NOFILE", "soft": most, "hard": most}
    outcome, stdout, _ = pod.run_configured(
        configuration(process("sh", "-c", "ulimit -n", rlimits=[limit]))
    )
    assert (outcome, lines(stdout)) == (exited(0), [str(most)])


def test_namespaces(pod: Pod) -> None:
    """Its own by default, or those of another container."""
    script = "echo $$; hostname; for n in pid mnt ipc uts; do readlink /proc/self/ns/$n; done"
    guests = lines(pod.tapwright.exec(pod.name, "sh", "-c", script).encode())
    with (
        Files() as files,
        pod.create(
            configuration(process("sh", "-c", f"{script}; exec sleep 86399")), files.descriptors
        ) as first,
    ):
        pid = first.started()
        assert eventually(lambda: files.stdout().count(b"\n") == 6)
        own = lines(files.stdout())
        assert own[:2] == ["1", "inside"]
        assert not set(own[2:]) & set(guests[2:])
        shared = [
            {"type": kind, "path": f"/proc/{pid}/ns/{kind}"} for kind in ("pid", "ipc", "uts")
        ]
        config = configuration(process("sh", "-c", script), [*shared, {"type": "mount"}])
        del config["hostname"]
        outcome, stdout, stderr = pod.run_configured(config)
        assert (outcome, stderr) == (exited(0), b"")
        second = lines(stdout)
        assert second[0] != "1"
        assert (second[2], second[4:]) == (own[2], own[4:])
        assert second[3] not in (own[3], guests[3])


def test_execs(pod: Pod) -> None:
    with (
        Files() as files,
        pod.create(configuration(process(*FOREVER)), files.descriptors) as container,
    ):
        container.started()
        assert pod.execute(container.id, process("cat"), b"in") == (exited(0), b"in", b"")
        script = "echo out; echo err >&2; exit 5"
        of = process("sh", "-c", script, user={"uid": 7, "gid": 8})
        assert pod.execute(container.id, of) == (exited(5), b"out\n", b"err\n")
        outcome = pod.execute(container.id, process("sh", "-c", "kill -9 $$"))
        assert outcome[0] == killed(9)
        failed, *_ = pod.execute(container.id, process("no-such-program"))
        assert "not found" in failed["failed"]
        several = []
        for number in range(6):
            own = Files()
            argv = process("sh", "-c", f"seq {number} 20000; exit {number}")
            several.append((own, pod.exec(container.id, argv, own.descriptors)))
        for number, (own, connection) in enumerate(several):
            assert "started" in connection.hear()
            assert connection.hear() == exited(number)
            assert len(lines(own.stdout())) == 20001 - number
            connection.close()


def test_exec_on_a_terminal(pod: Pod) -> None:
    master, slave = os.openpty()
    with (
        Files() as files,
        pod.create(configuration(process(*FOREVER)), files.descriptors) as container,
        open(master, "r+b", buffering=0) as terminal,
    ):
        container.started()
        of = process("sh", "-c", f"read x; {until_sized('11 22')}; exit 6", terminal=True)
        with pod.exec(container.id, of, [slave], terminal=True) as connection:
            os.close(slave)
            assert "started" in connection.hear()
            connection.say(resize=[11, 22])
            terminal.write(b"go\r")
            assert connection.hear() == exited(6)
            read_until(terminal, b"11 22")


def _is_ready(files: Files) -> bool:
    return files.stdout() == b"ready\n"


def test_signals(pod: Pod) -> None:
    script = "trap 'echo caught; exit 4' TERM; echo ready; while :; do sleep 1; done"
    for how in ("operation", "connection", "all"):
        with (
            Files() as files,
            pod.create(configuration(process("sh", "-c", script)), files.descriptors) as container,
        ):
            container.started()
            assert eventually(partial(_is_ready, files))
            if how == "connection":
                container.connection.say(signal=15)
            else:
                container.call("signal_container", signal=15, all=how == "all")
            assert container.connection.hear() == exited(4)
            assert lines(files.stdout())[-1] == "caught"


def test_a_first_process_is_killed_with_its_children(pod: Pod) -> None:
    script = "for i in 1 2 3; do sleep 86398 & done; (setsid sleep 86397 &) ; wait"
    with (
        Files() as files,
        pod.create(configuration(process("sh", "-c", script)), files.descriptors) as container,
    ):
        container.started()
        assert eventually(lambda: len(container.call("container_processes")) == 5)
        container.call("signal_container", signal=9)
        assert container.connection.hear() == killed(9)
        assert container.call("container_processes") == []
        assert container.status == "stopped"


def test_memory_limit(pod: Pod) -> None:
    limit = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    script = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo $x"
    with (
        Files() as files,
        pod.create(
            configuration(process("sh", "-c", script), resources=limit), files.descriptors
        ) as container,
    ):
        container.started()
        assert container.connection.hear() == killed(9)
        memory = container.call("container_statistics")["memory"]
        assert memory["max"] == 16 << 20
        assert memory["events"]["oom_kill"] >= 1


def test_process_limit(pod: Pod) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 86396 & done"
    limited = configuration(process("sh", "-c", script), resources={"pids": {"limit": 4}})
    outcome, _, stderr = pod.run_configured(limited)
    assert outcome == exited(2)
    assert b"can't fork" in stderr


def test_life(pod: Pod) -> None:
    """What can be asked in which state."""
    config = configuration(process("sh", "-c", "while :; do :; done"))
    with Files() as files, pod.create(config, files.descriptors) as container:

        def used() -> int:
            return int(container.call("container_statistics")["cpu"]["usage_usec"])

        pid = container.created()
        for op in ("pause_container", "resume_container"):
            with pytest.raises(ContainerStateError, match="is created, not"):
                container.call(op)
        container.call("start_container")
        assert container.status == "running"
        with pytest.raises(ContainerStateError, match="is running, not created"):
            container.call("start_container")
        with pytest.raises(ContainerStateError, match="is running, not created or stopped"):
            container.call("delete_container")

        def program() -> str:
            (found,) = container.call("container_processes")
            assert (found["pid"], found["uid"]) == (pid, 0)
            return str(found["command"][0])

        # Who starts it does not wait for the exec.
        assert eventually(lambda: program() == "sh")
        container.call("pause_container")
        assert eventually(lambda: used() == used())
        before = used()
        with pytest.raises(ContainerStateError, match="is paused"):
            container.call("pause_container")
        container.call("resume_container")
        assert eventually(lambda: used() > before)
        container.call("update_container", resources={"pids": {"limit": 17}})
        assert container.call("container_statistics")["pids"]["max"] == 17
        container.call("pause_container")
        container.call("delete_container", force=True)
        assert container.connection.hear() == killed(9)
        for _ in range(2):
            container.call("delete_container")


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("start_container", {}),
        ("signal_container", {"signal": 9}),
        ("pause_container", {}),
        ("resume_container", {}),
        ("update_container", {"resources": {}}),
        ("container_processes", {}),
        ("container_statistics", {}),
    ],
)
def test_unknown_container(pod: Pod, op: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ContainerNotFoundError, match="no container called 'nobody'"):
        pod.call(op, id="nobody", **arguments)


def test_unknown_container_has_no_processes(pod: Pod) -> None:
    failed, *_ = pod.execute("nobody", process("true"))
    assert failed["kind"] == "ContainerNotFoundError"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 200, 5, None])
def test_impossible_ids(pod: Pod, name: Any) -> None:
    with (
        Files() as files,
        Connection(
            *(pod.sandbox, "create_container", files.descriptors),
            id=name,
            config=configuration(process("true")),
        ) as connection,
    ):
        # What is no text at all is refused before it is looked at as an id.
        kind = "ContainerError" if isinstance(name, str) else "AgentRefusedError"
        assert connection.hear()["kind"] == kind


def test_an_id_is_used_once(pod: Pod) -> None:
    config = configuration(process(*FOREVER))
    with Files() as files, pod.create(config, files.descriptors) as container:
        container.created()
        again = pod.create(config, files.descriptors, name=container.id)
        assert again.connection.hear()["kind"] == "ContainerExistsError"
        again.connection.close()
        assert container.status == "created"


def test_impossible_requests(pod: Pod) -> None:
    with (
        Files() as files,
        pod.create(configuration(process(*FOREVER)), files.descriptors) as container,
    ):
        container.started()
        with pytest.raises(ContainerError, match="no signal 99"):
            container.call("signal_container", signal=99)


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_hangs_up_takes_its_container_along(pod: Pod, started: bool) -> None:
    with Files() as files:
        container = pod.create(configuration(process("sleep", "86395")), files.descriptors)
        container.created()
        if started:
            container.call("start_container")
        container.connection.close()

        def is_gone() -> bool:
            try:
                container.call("container_processes")
            except ContainerNotFoundError:
                return True
            return False

        assert eventually(is_gone)
        assert "86395" not in pod.tapwright.exec(pod.name, "ps", "-o", "args")


def test_a_client_that_hangs_up_ends_its_exec(pod: Pod) -> None:
    with (
        Files() as files,
        pod.create(configuration(process(*FOREVER)), files.descriptors) as container,
    ):
        container.started()
        connection = pod.exec(container.id, process("sleep", "86394"), files.descriptors)
        assert "started" in connection.hear()
        connection.close()
        assert eventually(lambda: len(container.call("container_processes")) == 1)
        assert container.status == "running"


def with_memory(of: dict[str, Any], lasting: bool) -> dict[str, Any]:
    """A configuration with a directory of a filesystem in memory (`oci.memory`)."""
    directories = [{"name": name, "mode": 0o755, "uid": 0, "gid": 0} for name in ("", "below")]
    memory = {"name": "1-2", "bytes": 1 << 20, "directories": directories}
    memory |= {"lasting": lasting, "make": True}
    config = configuration(of)
    config["mounts"].append(
        {"destination": "/cache", "type": "bind", "options": ["bind"], "memory": memory}
    )
    return config


OF_THE_AGENT = "/sys/fs/cgroup/tapwright-agent"


def leftovers(pod: Pod) -> list[str]:
    """What containers have left in the guest: files, control groups, processes."""
    script = (
        "for d in /run/crun /run/tapwright/containers /run/tapwright/launches"
        " /run/tapwright/memory*; do ls -A $d 2>&-; done;"
        " find /sys/fs/cgroup -mindepth 1 -type d; ps -o args"
    )
    known = ("COMMAND", "init", "/usr/bin/python3", "sh -c", "ps -o", "[", "{")
    found = pod.tapwright.exec(pod.name, "sh", "-c", script).splitlines()
    return [line for line in found if not line.startswith(known) and line != OF_THE_AGENT]


def test_the_id_of_a_container_that_failed_is_free_at_once(pod: Pod) -> None:
    limit = {"type": "RLIMIT_NOFILE", "soft": 1 << 31, "hard": 1 << 31}
    for _ in range(2):
        with Files() as files:
            config = configuration(process("true", rlimits=[limit]))
            container = pod.create(config, files.descriptors, "unlucky")
            assert "setting rlimit type 7" in container.connection.hear()["failed"]
            container.connection.close()


def test_nothing_is_left_in_the_guest(pod: Pod) -> None:
    pod.run("true")
    limit = {"type": "RLIMIT_NOFILE", "soft": 1 << 31, "hard": 1 << 31}
    for impossible in (process("no-such-program"), process("true", rlimits=[limit])):
        with Files() as files:
            container = pod.create(with_memory(impossible, lasting=False), files.descriptors)
            assert "failed" in container.connection.hear()
            container.connection.close()
    assert eventually(lambda: leftovers(pod) == []), leftovers(pod)


def test_an_agent_that_dies_takes_its_containers_along(pod: Pod) -> None:
    with Files() as files:
        config = with_memory(process("sleep", "86393"), lasting=True)
        container = pod.create(config, files.descriptors)
        container.started()
        pod.tapwright.run("sandbox", "exec", pod.name, "--", "sh", "-c", "kill -9 $PPID")
        heard = container.connection.hear()
        assert "the agent in the guest restarted" in heard["failed"]
        assert heard["kind"] == "AgentError"
        assert container.connection.hear() is None
        container.connection.close()

        def works() -> bool:
            return pod.tapwright.run("sandbox", "exec", pod.name, "--", "true").returncode == 0

        assert eventually(works)
        assert eventually(lambda: leftovers(pod) == []), leftovers(pod)
        with pytest.raises(ContainerNotFoundError):
            container.call("container_processes")
    assert pod.run("true")[0] == exited(0)


def test_a_virtual_machine_that_ends(tapwright: Tapwright) -> None:
    record = tapwright.json("sandbox", "run", "doomed")
    pod = Pod(tapwright, "doomed")
    try:
        with Files() as files:
            container = pod.create(configuration(process(*FOREVER)), files.descriptors)
            container.started()
            _, qemu = pids_of(record)
            os.kill(qemu, signal.SIGKILL)
            heard = container.connection.hear()
            assert "failed" in heard
            assert container.connection.hear() is None
            container.connection.close()
    finally:
        tapwright.delete("doomed")
