"""The process that platforms wait for, over a socket like the supervisor's."""

import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.oci import shim
from tests.oci.runtime import wait_for_shim

SHELLS = [shell for shell in ("/bin/dash", "/bin/bash") if shutil.which(shell)]


class Shim:
    """A shim that runs; `told` has its output."""

    def __init__(self, terminal: int | None = None, netns: str = "") -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(60)
        self.pid = shim.start(theirs, "c1", terminal, own=True, netns=netns)
        theirs.close()
        self.told = self.connection.makefile()

    def exit_status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def is_ready(self) -> None:
        """It catches signals by now, and reads."""
        wait_for_shim(self.pid)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What /bin/sh is on one host or another."""
    path = tmp_path / "sh"
    path.symlink_to(request.param)
    monkeypatch.setattr(shim, "_SHELL", str(path))
    return str(request.param)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = os.openpty()
    yield master, slave
    os.close(slave)
    os.close(master)


@pytest.mark.unit
@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b'{"exited": {"status": 0}}\n', 0),
        (b'{"exited":{"status":42}}\n', 42),
        (b'{"exited": {"signal": 9}}\n', 137),
        (b"", 137),
    ],
)
def test_exit_status(line: bytes, status: int) -> None:
    running = Shim()
    running.connection.sendall(line)
    running.connection.shutdown(socket.SHUT_WR)
    assert running.exit_status() == status


@pytest.mark.unit
@pytest.mark.usefixtures("shell")
def test_signals_are_passed_on() -> None:
    running = Shim()
    running.is_ready()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        running.is_ready()
        os.kill(running.pid, number)
        assert json.loads(running.told.readline()) == {"signal": number}
    running.connection.sendall(b'{"exited": {"signal": 15}}\n')
    assert running.exit_status() == 143


@pytest.mark.unit
@pytest.mark.usefixtures("shell")
def test_sizes_are_passed_on(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    running = Shim(slave)
    assert json.loads(running.told.readline()) == {"resize": [24, 80]}
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
    assert json.loads(running.told.readline()) == {"resize": [50, 132]}
    running.connection.close()
    running.told.close()
    assert running.exit_status() == 137


@pytest.mark.unit
@pytest.mark.usefixtures("shell")
def test_it_holds_nothing_that_it_does_not_need() -> None:
    """Not the platform's pipes, at whose end it would wait for ever; nor where it was called."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    running = Shim()
    running.is_ready()
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)
    assert os.readlink(f"/proc/{running.pid}/cwd") == "/"
    assert os.getsid(running.pid) == running.pid
    ignored = Path(f"/proc/{running.pid}/status").read_text().split("SigIgn:")[1].split()[0]
    of_the_library = 0b11 << 31
    assert int(ignored, 16) & ~of_the_library == 1 << signal.SIGPIPE - 1
    assert running.pid in shim.pids_of("c1")
    running.connection.sendall(b'{"exited": {"status": 1}}\n')
    assert running.exit_status() == 1


def test_it_lives_in_the_namespace(scratch_netns: str) -> None:
    running = Shim(netns=scratch_netns)
    assert os.path.samefile(f"/proc/{running.pid}/ns/net", scratch_netns)
    assert not os.path.samefile("/proc/self/ns/net", scratch_netns)
    running.connection.sendall(b'{"exited": {"status": 0}}\n')
    assert running.exit_status() == 0


@pytest.mark.unit
def test_it_is_small() -> None:
    running = Shim()
    running.is_ready()
    report = Path(f"/proc/{running.pid}/smaps_rollup").read_text()
    (size,) = (int(line.split()[1]) for line in report.splitlines() if line.startswith("Pss:"))
    running.connection.sendall(b'{"exited": {"status": 0}}\n')
    assert running.exit_status() == 0
    assert size < 1500, "KiB"
