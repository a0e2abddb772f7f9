"""Which descriptors the processes of a sandbox have: those of a list, and no others."""

import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.hypervisor.machine import Machine
from tapwright.image import store
from tapwright.oci import hooks
from tapwright.sandbox import lifecycle
from tapwright.sandbox.report import Caller
from tapwright.state import ownership, registry, supervisors
from tapwright.state.record import Record, Spec
from tests.host import eventually
from tests.sandboxes import Networks, Tapwright, child_of, ended, pids_of

NOTHING, SOCKET, PIPE = "/dev/null", r"socket:\[\d+\]", r"pipe:\[\d+\]"
MEMORY = r"/memfd:.*"

PLUGIN = ["/memfd:stdin .*", PIPE, ".*/cache/results", ".*/cache/locks/container-.*"]
# The plugin below itself, and what it writes to.
PLUGIN += [r".*/lister", r".*/lister\.\w+"]
QEMU = [
    *(NOTHING, SOCKET, PIPE, MEMORY, r"anon_inode:\[.*\]"),
    *("/dev/net/tun", "/dev/vhost-net"),
    # From its jail before that was sealed: kvm, random, urandom, and the guest's disk, for reading.
    *("detached 10:232", "detached 1:[89]"),
    f"detached {re.escape(str(store.DIRECTORY))}/[^/]*/disk",
]
# The root of the share, itself in /proc, and (in C) the guest's memory, which has no name.
VIRTIOFSD = [
    NOTHING,
    SOCKET,
    PIPE,
    MEMORY,
    r"anon_inode:\[.*\]",
    "/",
    r"/\d+/(fd|task|mountinfo)",
    "/proc.*",
]
MONITOR = [NOTHING, SOCKET, PIPE, r"anon_inode:\[.*\]", "anon_inode:inotify"]
HOOK = ["/memfd:hook .*", PIPE]

LISTER = """#!/bin/sh
cat >/dev/null
for fd in /proc/$$/fd/*; do readlink $fd; done >$0.$CNI_COMMAND
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion": "1.0.0"}'
[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}'
exit 0
"""


def opened_by(pid: int) -> list[str]:
    """What a process has open; files of the host that it can write to have a mark."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            path = os.readlink(entry)
            (flags,) = re.findall(
                r"(?m)^flags:\s*(\d+)", (entry.parents[1] / "fdinfo" / entry.name).read_text()
            )
        except FileNotFoundError:
            continue
        path = detached(entry) if path == "/" else path
        is_file = path.startswith("/") and not path.startswith(("/dev/", "/memfd:"))
        is_file |= path.startswith("detached /")
        found.append(f"{path} (writable)" if is_file and int(flags, 8) & os.O_ACCMODE else path)
    return found


def detached(entry: Path) -> str:
    """What the root of a mount is that has been taken out of its namespace: a directory, a device
    or a disk."""
    status = entry.stat()
    if stat.S_ISDIR(status.st_mode):
        return "/"
    if stat.S_ISREG(status.st_mode):
        disks = [*store.DIRECTORY.glob("*/disk")]
        return f"detached {next(disk for disk in disks if entry.samefile(disk))}"
    return f"detached {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def shared(pid: int) -> list[str]:
    """What all processes of a sandbox have in common: control groups, and which is killed first."""
    return [Path(f"/proc/{pid}/{name}").read_text() for name in ("cgroup", "oom_score_adj")]


def others(opened: list[str], allowed: list[str]) -> list[str]:
    """Those that are not of the list."""
    assert opened
    return [one for one in opened if not any(re.fullmatch(each, one) for each in allowed)]


@pytest.mark.unit
def test_the_lock_is_closed_in_what_a_supervisor_starts(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "alive").open("w") as lock:
        socket.send_fds(theirs, [b'{"directory": "/x", "log_level": "info"}'], [lock.fileno()])
        order = Caller(ours).order()
        assert order is not None
        assert not os.get_inheritable(order.alive_fd)
        os.close(order.alive_fd)


@pytest.mark.unit
def test_a_hook(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as other:
        os.set_inheritable(other.fileno(), True)
        script = f"for fd in /proc/$$/fd/*; do readlink $fd; done >{tmp_path}/said; true"
        hooks.run("prestart", [{"path": "/bin/sh", "args": ["sh", "-c", script]}], {})
    said = (tmp_path / "said").read_text().splitlines()
    assert others(said, [*HOOK, f"{tmp_path}/said"]) == []


def test_each_process_of_a_sandbox(
    tapwright: Tapwright, networks: Networks, tmp_path: Path
) -> None:
    (tmp_path / "lister").write_text(LISTER)
    (tmp_path / "lister").chmod(0o755)
    networks.write("listed", [{"type": "lister"}])
    config = tapwright.configuration(template=tapwright.templates, plugins=tmp_path)
    with config.open("a") as file:
        file.write("\n[netmon]\nenable_netmon = true\n")
    run = tapwright.command("sandbox", "run", "listed", "--network", "listed", config=config)
    try:
        subprocess.run(run, check=True)
        supervisor, qemu = pids_of(tapwright.json("sandbox", "inspect", "listed"))
        found = opened_by(qemu)
        monitor = child_of(supervisor, "netmon")
        # It may be loading its modules still.
        assert eventually(lambda: others(opened_by(monitor), MONITOR) == []), opened_by(monitor)
    finally:
        tapwright.delete("listed")
        (networks.directory / "listed.conflist").unlink()
    assert others(found, QEMU) == []
    for command in ("ADD", "DEL"):
        said = (tmp_path / f"lister.{command}").read_text().splitlines()
        assert others(said, PLUGIN) == []


def test_the_daemon_of_a_share(tapwright: Tapwright) -> None:
    sandbox = tapwright.run_with_share("listed")
    try:
        supervisor, qemu = pids_of(tapwright.json("sandbox", "inspect", sandbox.id))
        found = [opened_by(child_of(supervisor, "virtiofsd")), opened_by(qemu)]
    finally:
        tapwright.delete(sandbox.id)
    assert others(found[0], VIRTIOFSD) == []
    assert others(found[1], QEMU) == []


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[bytes]"]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_a_stranger_has_the_number_of_a_dead_supervisor(
    tmp_path: Path, processes: list["subprocess.Popen[bytes]"]
) -> None:
    """And a plugin that it started, as one of a version before did, has its lock."""
    record = Record("web", Spec(Machine(Path(), Path())), time.time(), time.monotonic(), "")
    directory, alive = ownership.claim(registry.directory_of(tmp_path), record)
    processes.append(subprocess.Popen(["sleep", "1000"]))
    processes.append(subprocess.Popen(["sleep", "1000"], pass_fds=[alive]))
    stranger = processes[0].pid
    os.pwrite(alive, str(stranger).encode(), 0)
    os.close(alive)
    assert supervisors.is_alive(directory)
    assert not supervisors.is_it(directory, stranger)
    assert supervisors.is_it(directory, processes[1].pid)
    assert lifecycle.delete(tmp_path, "web") == []
    assert processes[0].poll() is None


def test_a_plugin_outlives_a_killed_supervisor(
    tapwright: Tapwright, networks: Networks, tmp_path: Path
) -> None:
    """The sandbox is dead then, and can be deleted as soon as the plugin has ended."""
    (tmp_path / "outliving").write_text(
        "#!/bin/sh\ncat >/dev/null\n"
        '[ "$CNI_COMMAND" = ADD ] && echo $$ >$0.pid\n'
        '[ "$CNI_COMMAND" = ADD ] && while [ ! -e $0.go ]; do sleep 0.1; done\n'
        'echo \'{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}\'\n'
    )
    (tmp_path / "outliving").chmod(0o755)
    networks.write("outliving", [{"type": "outliving"}])
    config = tapwright.configuration(template=tapwright.templates, plugins=tmp_path)
    try:
        running = tapwright.start("sandbox", "run", "o", "--network", "outliving", config=config)
        assert eventually((tmp_path / "outliving.pid").exists)
        directory = tapwright.root / "sandboxes" / "o"
        supervisor = supervisors.pid_of(directory)
        assert supervisor
        running.kill()
        running.communicate()  # it has the lock open, too
        os.kill(supervisor, signal.SIGKILL)
        assert ended(supervisor)
        # What it was starting at that moment has the lock until it is executed.
        assert eventually(lambda: not supervisors.is_alive(directory))
        assert registry.find(tapwright.root, "o").status == "dead"
        (tmp_path / "outliving.go").touch()
        tapwright.delete("o")
    finally:
        (tmp_path / "outliving.go").touch()  # lest it goes on for ever after a failure
        tapwright.run("sandbox", "delete", "o")
        (networks.directory / "outliving.conflist").unlink()
