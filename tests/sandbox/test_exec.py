"""`sandbox exec`: a command in the guest behaves as one that is run here."""

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.host import eventually
from tests.sandboxes import Tapwright


@pytest.fixture(scope="module")
def guest(tapwright: Tapwright) -> Iterator[str]:
    """A sandbox on no network; its id."""
    tapwright.json("sandbox", "run", "plain")
    yield "plain"
    tapwright.delete("plain")


def processes(tapwright: Tapwright, guest: str) -> str:
    return tapwright.exec(guest, "ps", "-o", "args")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 37"], 37),
        (["sh", "-c", "kill -9 $$"], 128 + 9),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_exit_status(tapwright: Tapwright, guest: str, argv: list[str], status: int) -> None:
    done = tapwright.run("sandbox", "exec", guest, "--", *argv)
    assert done.returncode == status
    assert bool(done.stderr) == (status in (126, 127))


def test_output_and_errors_stay_apart(tapwright: Tapwright, guest: str) -> None:
    done = tapwright.run("sandbox", "exec", guest, "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_stdin_passes_whole_and_ends(tapwright: Tapwright, guest: str) -> None:
    payload = os.urandom(3 << 20)
    command = tapwright.command("sandbox", "exec", guest, "--", "sha256sum")
    done = subprocess.run(command, input=payload, capture_output=True, check=True, timeout=60)
    assert done.stdout.split()[0].decode() == hashlib.sha256(payload).hexdigest()


def test_large_output_arrives_whole(tapwright: Tapwright, guest: str) -> None:
    command = tapwright.command("sandbox", "exec", guest, "--", "seq", "400000")
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stdout == b"".join(b"%d\n" % number for number in range(1, 400001))


def test_a_reader_that_goes_away_ends_the_command(tapwright: Tapwright, guest: str) -> None:
    running = tapwright.start("sandbox", "exec", guest, "--", "yes", "reader-gone")
    assert running.stdout is not None
    assert running.stdout.readline() == "reader-gone\n"
    running.stdout.close()
    assert running.wait(60) == 128 + signal.SIGPIPE
    assert eventually(lambda: "yes reader-gone" not in processes(tapwright, guest))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_pass(tapwright: Tapwright, guest: str, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 5' {number.name.removeprefix('SIG')}; echo ready; "
    running = tapwright.start(
        "sandbox", "exec", guest, "--", "sh", "-c", script + "while :; do sleep 1; done"
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.send_signal(number)
    assert running.communicate(timeout=60)[0] == "caught\n"
    assert running.returncode == 5


def test_killed_client_ends_its_command(tapwright: Tapwright, guest: str) -> None:
    running = tapwright.start("sandbox", "exec", guest, "--", "sleep", "98765")
    assert eventually(lambda: "sleep 98765" in processes(tapwright, guest))
    running.kill()
    running.communicate()
    assert eventually(lambda: "sleep 98765" not in processes(tapwright, guest))


def test_environment_and_directory(tapwright: Tapwright, guest: str) -> None:
    done = tapwright.run(
        *("sandbox", "exec", guest, "--env", "COLOUR=blue", "--cwd", "/etc"),
        *("--", "sh", "-c", "echo $COLOUR $PWD"),
    )
    assert done.stdout == "blue /etc\n"


def test_json(tapwright: Tapwright, guest: str) -> None:
    done = tapwright.run("sandbox", "exec", guest, "--json", "--", "sh", "-c", "echo hi; exit 3")
    answer = json.loads(done.stdout)
    assert answer == {"id": guest, "status": 3, "stdout": "hi\n", "stderr": ""}


def test_many_at_once(tapwright: Tapwright, guest: str) -> None:
    running = [
        tapwright.start("sandbox", "exec", guest, "--", "sh", "-c", f"seq 5000; exit {number}")
        for number in range(8)
    ]
    for number, process in enumerate(running):
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output.count("\n")) == (number, 5000)


def test_agent_that_dies_comes_back(tapwright: Tapwright, guest: str) -> None:
    running = tapwright.start("sandbox", "exec", guest, "--", "sleep", "97531")
    assert eventually(lambda: "sleep 97531" in processes(tapwright, guest))
    tapwright.run("sandbox", "exec", guest, "--", "sh", "-c", "kill -9 $PPID")
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "the agent in the guest restarted" in errors

    def works() -> bool:
        return tapwright.run("sandbox", "exec", guest, "--", "true").returncode == 0

    assert eventually(works)


def test_clock_and_hostname_are_set(tapwright: Tapwright, guest: str) -> None:
    assert tapwright.exec(guest, "hostname") == f"{guest}\n"
    before = int(tapwright.exec(guest, "date", "+%s"))
    here = int(subprocess.run(["date", "+%s"], capture_output=True, check=True).stdout)
    after = int(tapwright.exec(guest, "date", "+%s"))
    assert before - 2 <= here <= after + 2
