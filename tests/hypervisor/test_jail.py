"""The jail of QEMU: what a QEMU that a guest has taken over has, and can reach."""

import asyncio
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tapwright.errors import HypervisorError
from tapwright.hypervisor import orphans, process, users
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.hypervisor.share import Share
from tests.guests import running
from tests.hypervisor.jails import NAMESPACES, TakenOver, audit, taken_over
from tests.hypervisor.shares import UID
from tests.hypervisor.vhost_user_fs import Guest

READ_ONLY = frozenset({"ro", "nosuid", "nodev", "noexec"})
NONE = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
ALL_ALIKE = {
    "first of its pid namespace": True,
    "leads a session": True,
    "namespaces of its own": [*NAMESPACES],
    "network": [("lo", False)],
    "control groups": True,
    "oom score": True,
}
QEMU = {
    **ALL_ALIKE,
    "capabilities": dict.fromkeys(NONE, 0),
    "no new privileges": True,
    "mounts": [("/", "tmpfs", READ_ONLY), ("/proc", "proc", READ_ONLY)],
    "root": ["proc"],
    "limits": {"core": "0", "files' size": "0", "open files": "16384", "threads": "4096"},
    "environment": ["PATH"],
}
VIRTIOFSD = {
    **ALL_ALIKE,
    "users": [str(UID), "0", "0", "0"] * 2,
    "groups": [],
    "mounts": [("/", "tmpfs", READ_ONLY)],
    "root": [],
    "environment": [],
}


@pytest.fixture(scope="module")
def open_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that QEMU's user can look into."""
    place = tmp_path_factory.mktemp("jail")
    for path in (place, *place.parents[:-2]):  # all in /tmp
        path.chmod(0o755)
    return place


@pytest.fixture(scope="module")
def bare(open_place: Path) -> Machine:
    """One that nothing is booted on."""
    for name in ("kernel", "initrd", "disk"):
        (open_place / name).write_text(name)
    kernel, initrd, disk = (open_place / name for name in ("kernel", "initrd", "disk"))
    return Machine(kernel, initrd, "tcg", disk=disk)


@pytest.fixture(scope="module")
def taken(bare: Machine, open_place: Path) -> Iterator[TakenOver]:
    with taken_over(bare, open_place) as qemu:
        yield qemu


# --- what there is ------------------------------------------------------------------------------


def test_the_stub_has_what_is_allowed(taken: TakenOver) -> None:
    found = audit(taken.pid)
    assert {name: found[name] for name in QEMU} == QEMU
    assert found["users"] == [str(taken.uid)] * 8
    assert found["groups"] == [str(group) for group in process.user()[1]]
    assert found["filters"] == 1
    assert users.first() <= taken.uid <= users.last()


def dumped(pid: int, kib: int) -> dict[str, bool]:
    """Whether its mappings of that size or more would be in a core dump, by their lines in smaps
    (proc(5): `dd`)."""
    found: dict[str, bool] = {}
    place, size = "", 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        match line.split():
            case ["Size:", number, "kB"]:
                size = int(number)
            case ["VmFlags:", *flags]:
                if size >= kib:
                    found[place] = "dd" not in flags
            case [_, permissions, *_] if len(permissions) == 4 and permissions[0] in "r-":
                place = line
    assert found
    return found


@pytest.mark.smoke
def test_qemu_itself_has_what_is_allowed(machine: Machine) -> None:
    """And its own filter on top; also when a NIC was plugged in, and with a share."""

    async def story() -> None:
        async with running(machine) as (qemu, _):
            found = audit(qemu._process.pid)
            assert {name: found[name] for name in QEMU} == QEMU
            assert found["users"] == [str(qemu.uid)] * 8
            assert found["filters"] == 2
            assert set(dumped(qemu._process.pid, machine.memory_mib << 10).values()) == {False}

    asyncio.run(story())


def test_the_daemon_of_a_share_has_what_is_allowed(share: Share, guest: Guest) -> None:
    found = audit(share.process.pid)
    assert {name: found[name] for name in VIRTIOFSD} == VIRTIOFSD
    assert found["limits"]["core"] == "0"


def test_what_it_sees(taken: TakenOver) -> None:
    assert taken.does("os.listdir('/')") == "['proc']"
    assert taken.does("[n for n in os.listdir('/proc') if n.isdigit()]") == "['1']"
    assert taken.does("os.getpid(), os.getppid(), os.getsid(0)") == "(1, 0, 1)"
    assert taken.does("os.uname().nodename") == "'tapwright'"
    assert taken.does("open('/proc/self/cgroup').read().count(':/\\n')") == str(
        Path("/proc/self/cgroup").read_text().count("\n")
    )
    opened = taken.does(
        "sorted({os.readlink(f'/proc/self/fd/{n}').partition(':')[0]"
        " for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')})"
    )
    # Python's own libffi, since 3.5, keeps itself open.
    opened = re.sub(r" '[^']*/libffi[^']*',", "", opened)
    assert opened in ("['/dev/null', 'pipe', 'socket']", "['/', 'pipe', 'socket']")
    assert taken.does("[n for n in range(99) if os.path.isdir(f'/proc/self/fd/{n}')]") == "[]"


# --- ways out -----------------------------------------------------------------------------------

HERE, NEW = "b'/proc'", "b'/new'"
PID = "victim"  # root's process, and one that it might like to reach
_NOT_WRITABLE = ("EROFS", "EACCES")
CALLS: dict[str, tuple[str, str | tuple[str, ...]]] = {
    # files of the host
    "a file": ("os.open('/etc/passwd', 0)", "ENOENT"),
    "a file, upwards": ("os.open('../../etc/passwd', 0)", "ENOENT"),
    "the root of a process": ("os.open('/proc/1/root/etc/passwd', 0)", "ENOENT"),
    "a shell": ("os.execv('/bin/sh', ['sh'])", "ENOENT"),
    "the supervisor's root": (f"os.open('/proc/{PID}/root', 0)", "ENOENT"),
    "the kernel's settings": ("os.open('/proc/sys/kernel/core_pattern', 0)", "ENOENT"),
    "sysrq": ("os.open('/proc/sysrq-trigger', 1)", "ENOENT"),
    "KVM": ("os.open('/dev/kvm', 2)", "ENOENT"),
    "a TAP": ("os.open('/dev/net/tun', 2)", "ENOENT"),
    "a disk": ("os.open('/dev/vda', 0)", "ENOENT"),
    "a file by its handle": ("call(304, 3, bytes(8), 0)", "EPERM"),
    # a place to write to
    "a new file": ("os.open('/new', os.O_CREAT | os.O_RDWR)", _NOT_WRITABLE),
    "a nameless file": ("os.open('/', os.O_TMPFILE | os.O_RDWR)", _NOT_WRITABLE),
    "a directory": ("os.mkdir('/new')", _NOT_WRITABLE),
    "a link": ("os.symlink('/x', '/new')", _NOT_WRITABLE),
    "a device": (f"call(133, {NEW}, 0o20666, 0x103)", "EPERM"),
    "its OOM score": ("os.open('/proc/self/oom_score_adj', 1)", _NOT_WRITABLE),
    "its memory, as a file": ("os.open('/proc/self/mem', 1)", _NOT_WRITABLE),
    "a file in memory": ("os.write(os.memfd_create('x'), b'x')", "EFBIG"),
    # other processes
    "kill": (f"os.kill({PID}, 9)", "ESRCH"),
    "kill all": ("os.kill(-1, 9)", "ESRCH"),
    "a thread": (f"call(200, {PID}, 9)", "ESRCH"),
    "ptrace": (f"call(101, 16, {PID}, 0, 0)", "EPERM"),
    "memory of a process": (f"call(310, {PID}, 0, 0, 0, 0, 0)", "EPERM"),
    "a descriptor of a process": (f"call(434, {PID}, 0)", "EPERM"),
    "a descriptor of its": ("call(438, 0, 0, 0)", "EPERM"),
    "limits of a process": (f"call(302, {PID}, 7, 0, 0)", "ESRCH"),
    "priority of a process": (f"os.setpriority(0, {PID}, 19)", "ESRCH"),
    "processors of a process": (f"os.sched_setaffinity({PID}, [0])", "ESRCH"),
    "a comparison with a process": (f"call(312, {PID}, 1, 0, 0, 0)", "EPERM"),
    "the session of a process": (f"os.getsid({PID})", "ESRCH"),
    # namespaces and mounts
    "a namespace of users": ("call(272, 0x10000000)", "EPERM"),
    "a process in a namespace": ("call(56, 0x10000011, 0, 0, 0, 0)", "EPERM"),
    "a process, by words in memory": ("call(435, 0, 0)", "ENOSYS"),
    "a namespace of another one": ("call(308, 3, 0)", "EPERM"),
    "a mount": (f"call(165, b'none', {HERE}, b'tmpfs', 0, 0)", "EPERM"),
    "no mount": (f"call(166, {HERE}, 2)", "EPERM"),
    "a mount's copy": (f"call(428, -100, {HERE}, 1)", "EPERM"),
    "a filesystem": ("call(430, b'proc', 0)", "EPERM"),
    "another root": (f"call(155, {HERE}, {HERE})", "EPERM"),
    "another root, of its own": (f"call(161, {HERE})", "EPERM"),
    # the network
    "IPv4": ("socket.socket(socket.AF_INET)", "EPERM"),
    "IPv6": ("socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)", "EPERM"),
    "the kernel's network": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "EPERM"),
    "packets": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "EPERM"),
    "virtual machines": ("socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)", "EPERM"),
    "the kernel's ciphers": ("socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)", "EPERM"),
    "a socket without a path": ("connected(socket.AF_UNIX, '\\0twtest-jail')", "ECONNREFUSED"),
    "a socket of the host": ("connected(socket.AF_UNIX, '/run/twtest-jail')", "ENOENT"),
    # rights
    "root": ("os.setresuid(0, 0, 0)", "EPERM"),
    "root's group": ("os.setresgid(0, 0, 0)", "EPERM"),
    "groups": ("os.setgroups([0])", "EPERM"),
    "more files": ("resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20,) * 2)", "not allowed"),
    "core dumps": ("resource.setrlimit(resource.RLIMIT_CORE, (1, 1))", "not allowed"),
    "a lower nice value": ("os.nice(-5)", ("EPERM", "EACCES")),
    # the kernel
    "a program in the kernel": ("call(321, 0, bytes(120), 120)", "EPERM"),
    "counters": ("call(298, bytes(120), 0, -1, -1, 0)", "EPERM"),
    "io_uring": ("call(425, 8, bytes(120))", "EPERM"),
    "userfaultfd": ("call(323, 1)", "EPERM"),
    "a key": ("call(248, b'user', b'twtest', b'x', 1, -3)", "EPERM"),
    "a module": ("call(313, 0, b'', 0)", "EPERM"),
    "another kernel": ("call(320, 0, 0, 0, b'', 0)", "EPERM"),
    "the kernel's messages": ("call(103, 3, bytes(9), 8)", "EPERM"),
    "the host's name": ("call(170, b'x', 1)", "EPERM"),
    "the clock": ("call(227, 0, bytes(16))", "EPERM"),
    "the end of the host": ("call(169, 0xfee1dead, 672274793, 0, 0)", "EPERM"),
    "shared memory": ("call(29, 0, 4096, 0o1600)", "EPERM"),
    "a queue with a name": ("call(240, b'twtest', 0o102, 0o600, 0)", "EPERM"),
    "what is newer than the filter": ("call(449, 0, 0, 0, 0, 0)", "ENOSYS"),
    "a call by its other number": ("call(0x40000000 | 39)", "ENOSYS"),
}


@pytest.fixture(scope="module")
def victim() -> Iterator[int]:
    """A process of root's, and one that it might like to reach; and sockets that are the host's."""
    path = "/run/twtest-jail"
    Path(path).unlink(missing_ok=True)  # of a run that was killed
    with (
        subprocess.Popen(["sleep", "1000"]) as asleep,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as nameless,
    ):
        named.bind(path)
        nameless.bind("\0twtest-jail")
        for each in (named, nameless):
            each.listen()
        os.chmod(path, 0o777)
        yield asleep.pid
        assert asleep.poll() is None
        asleep.kill()
        os.unlink(path)


@pytest.mark.parametrize("way", CALLS)
def test_no_way_out(taken: TakenOver, victim: int, way: str) -> None:
    code, expected = CALLS[way]
    said = taken.does(code.replace(PID, str(victim)))
    outcomes = (expected,) if isinstance(expected, str) else expected
    assert any(outcome in said for outcome in outcomes), said


# --- programs -----------------------------------------------------------------------------------


def test_a_program_anywhere(bare: Machine, open_place: Path, tmp_path: Path) -> None:
    """Also one that is a link to another one elsewhere, beside which is what it needs; it sees that
    when it starts, and nothing of the places around it."""
    home = open_place / "home" / "qemu-9"
    (home / "bin").mkdir(parents=True)
    (home / "share").mkdir()
    (home / "share" / "rom").write_text("rom")
    (open_place / "home" / "secret").write_text("secret")
    script = home / "bin" / "qemu"
    script.write_text(
        "#!/bin/sh\n"
        f"ls {open_place}/home {open_place} | tr '\\n' ' ' >&2; cat {home}/share/rom >&2; exit 7\n"
    )
    script.chmod(0o755)
    links = open_place / "links"
    links.mkdir()
    (open_place / "home" / "current").symlink_to("qemu-9")
    (links / "qemu").symlink_to(open_place / "home" / "current" / "bin" / "qemu")
    with pytest.raises(HypervisorError) as raised:
        asyncio.run(Qemu.start(replace(bare, qemu=str(links / "qemu"))))
    words = str(raised.value).partition("last words: ")[2]
    assert words.endswith("rom"), words
    assert "qemu-9" in words
    assert "secret" not in words


def test_whatever_the_umask(bare: Machine, open_place: Path) -> None:
    """QEMU's user comes to what is shown to it."""
    script = f"ls {bare.kernel} {bare.disk}; ls -d /usr /proc/self"
    before = os.umask(0o777)
    try:
        made = process._jail("/bin/sh", bare.files, [])
        with process._started("/bin/sh", ["sh", "-c", script], made, stdout=-1, stderr=-2) as sh:
            said, _ = sh.communicate(None, 60)
        made.close()
    finally:
        os.umask(before)
    assert set(said.decode().split()) == {str(bare.kernel), str(bare.disk), "/usr", "/proc/self"}


def test_a_file_that_only_root_can_reach(machine: Machine, tmp_path: Path) -> None:
    """The files that are the guest need be open to all, not the directories that they are in; and
    can be named by links."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "initrd").write_bytes(machine.initrd.read_bytes())
    (tmp_path / "link").symlink_to(closed / "initrd")

    async def story() -> None:
        async with running(replace(machine, initrd=tmp_path / "link")) as (_, agent):
            assert agent.facts

    asyncio.run(story())


def test_the_end_of_the_supervisor_is_its_end(bare: Machine, open_place: Path) -> None:
    """Though QEMU does not see it."""
    (open_place / "sleeper").write_text("#!/bin/sh\nexec sleep 1000\n")
    (open_place / "sleeper").chmod(0o755)
    told, tells = os.pipe()
    supervisor = os.fork()
    if not supervisor:
        try:
            spawned = process.spawn(replace(bare, qemu=str(open_place / "sleeper")))
            os.write(tells, str(spawned.process.pid).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(tells)
    pid = int(os.read(told, 20))
    os.close(told)
    pidfd = os.pidfd_open(pid)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)


# --- users --------------------------------------------------------------------------------------


@pytest.mark.unit
def test_ranges_of_users(tmp_path: Path) -> None:
    """Below the numbers that are no user ids, above those of other programs; and another range if a
    file gives numbers of it to somebody."""
    free = users.first(tmp_path)
    assert free > 2_000_200_000
    assert all(2_000_200_000 < uid < 0x7FFE0000 for uid in users.all_of(1 << 22)[:-1])
    assert users.all_of(5)[-1] == 0x70000005
    (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "subuid").write_text(f"containers:2147483647:2147483648\nann:100000:{free}\n")
    users.first.cache_clear()
    moved = users.first(tmp_path)
    assert moved > free
    (tmp_path / "passwd").write_text(f"eve:x:{moved + 1}:100::/:/bin/sh\n")
    users.first.cache_clear()
    again = users.first(tmp_path)
    assert again > moved
    (tmp_path / "group").write_text(f"eves:x:{again + 4_194_303}:\n")
    users.first.cache_clear()
    assert users.first(tmp_path) > again
    assert users.owners(tmp_path) == [str(tmp_path / "subuid")]


def test_what_a_version_before_has_left(victim: int) -> None:
    """A QEMU whose user is of the range that it took."""
    supervisor = (1 << 22) - 1
    left = subprocess.Popen(["sleep", "1000"], user=users.all_of(supervisor)[-1])
    try:
        told = os.fork()  # which the one that is left is no child of
        if not told:
            orphans.end(supervisor)
            os._exit(0)
        os.waitpid(told, 0)
        assert left.wait(60) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()


# --- what is promised ---------------------------------------------------------------------------


@pytest.mark.unit
def test_each_promise_has_its_test() -> None:
    """The table of docs/security.md names tests that are there."""
    top = Path(__file__).parents[2]
    text = (top / "docs" / "security.md").read_text()
    _, table, _ = re.split(r"\n### Compared\n|\n## What comes from a guest", text)
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row.split("|")[5])
        assert named, row
        for path, name in named:
            assert f"def {name}(" in (top / path).read_text(), (path, name)
