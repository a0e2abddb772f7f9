"""The share itself: what a guest whose kernel was taken over, and a QEMU that was taken over, could
reach by it, which is tried here by speaking to the daemon as they do."""

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tapwright.errors import HypervisorError
from tapwright.hypervisor import orphans, virtiofsd
from tapwright.hypervisor.machine import Daemon
from tapwright.hypervisor.share import Share
from tapwright.linux import libc, mounts
from tapwright.linux.process import die_with
from tests.host import eventually, open_files
from tests.hypervisor.shares import UID, fields, has_ended, said, seen, show
from tests.hypervisor.taken_over import TakenOver, taken_over
from tests.hypervisor.vhost_user_fs import (
    CREATE,
    OPENDIR,
    RENAME2,
    RMDIR,
    ROOT,
    SETATTR,
    SETLKW,
    EndedError,
    Guest,
    text,
)


@contextlib.contextmanager
def refused(*codes: int) -> Iterator[None]:
    """It comes to one of these errors, or, without any, to whichever."""
    with pytest.raises(OSError, match=r"^\[Errno ") as raised:
        yield
    assert not codes or raised.value.errno in codes, raised.value


# --- the share ---------------------------------------------------------------------------------


@pytest.mark.smoke
def test_there_is_nothing_but_what_is_shared(share: Share, guest: Guest, tree: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    assert (seen(share), guest.names(ROOT)) == ([], [])
    show(share, "one", tree=tree, file=tree / "file")
    assert show(share, "two", again=tree) == {"again": "one/tree"}
    (tree / "below").mkdir()
    show(share, "two", below=tree / "below")
    one, two = ["/one", "/one/tree", "/one/tree/below", "/one/tree/file"], ["/two", "/two/below"]
    assert seen(share) == sorted([*one, "/one/file", *two])
    assert (guest.names(ROOT), guest.names(guest.walk("one").node)) == (
        ["one", "two"],
        ["file", "tree"],
    )
    assert Path("/proc/self/mountinfo").read_text() == before
    assert share.detach("one") == ["one/file"]
    assert seen(share) == [*one, *two]
    assert share.detach("one") == []
    assert share.detach("two") == ["one/tree", "two/below"]
    assert (seen(share), guest.names(ROOT)) == ([], [])
    assert show(share, "one", tree=tree) == {"tree": "one-2/tree"}
    assert Path("/proc/self/mountinfo").read_text() == before


def test_what_it_was_loaded_from_is_there_until_it_has_been(share: Share, tree: Path) -> None:
    with ExitStack() as done:
        guest = Guest(share.connection)
        done.callback(guest.close)
        guest.frontend.features()
        root = Path(f"/proc/{share.process.pid}/root")
        assert {"usr", "virtiofsd", "proc", "processes"} <= set(os.listdir(root))
        share.seal()
        assert os.listdir(root) == []
        # It has begun: what it still has open is its own.
        guest.begin()
        for name in ("usr", "proc", "processes", "virtiofsd", "etc", "lib", "lib64"):
            with refused(errno.ENOENT):
                guest.entry(ROOT, name)
        show(share, "one", tree=tree)
        file = guest.walk("one/tree/file").node
        assert guest.read(file, guest.open(file)) == b"shared"


def test_what_is_mounted_in_it_is_restricted_once(share: Share, guest: Guest, tree: Path) -> None:
    """Whoever waits for changes of its mounts is called for what it does itself, and then not
    again."""
    (tree / "below").mkdir()
    show(share, "one", tree=tree)
    share.restrict()
    process = f"/proc/{share.process.pid}"
    with open(f"{process}/mountinfo") as table, select.epoll() as changes:
        changes.register(table, select.EPOLLPRI)
        mount = mounts.clone(str(tree))
        with open(f"{process}/ns/mnt") as namespace:
            mounts.within(namespace.fileno(), lambda: mounts.attach(mount, "/one/tree/below"))
        os.close(mount)
        assert changes.poll(0)
        share.restrict()
        (options,) = (line.split()[5] for line in table if " /one/tree/below " in line)
        assert {"nosuid", "nodev", "noexec", "nosymfollow"} <= set(options.split(","))
        assert changes.poll(0)
        share.restrict()
        assert not changes.poll(0)


def test_all_or_nothing(share: Share, guest: Guest, tree: Path) -> None:
    attached = libc.detached_mount("tmpfs")
    used_up = os.open(tree, os.O_PATH)  # no mount
    try:
        with pytest.raises(HypervisorError, match="one can't be shared"):
            share.attach("one", {"good": attached, "bad": used_up})
    finally:
        os.close(attached)
        os.close(used_up)
    assert seen(share) == []
    show(share, "one", tree=tree)
    before = seen(share)
    (tree.parent / "other").mkdir()
    with pytest.raises(HypervisorError, match="one can't be shared: File exists"):
        show(share, "one", new=tree.parent / "other", tree=tree.parent)
    assert seen(share) == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b"])
@pytest.mark.usefixtures("guest")
def test_names(share: Share, tree: Path, name: str) -> None:
    before = seen(share)
    with pytest.raises(HypervisorError, match="can't be the name"):
        show(share, name, tree=tree)
    with pytest.raises(HypervisorError, match="can't be the name"):
        share.attach("one", {name: -1})
    with pytest.raises(HypervisorError, match="can't be the name"):
        share.detach(name)
    assert seen(share) == before


# --- its daemon --------------------------------------------------------------------------------


def test_the_daemon_has_little(share: Share, guest: Guest) -> None:
    status = fields(share.process.pid)
    kept = sum(1 << bit for bit in (0, 1, 3, 4, 6, 7, 27, 31))
    for which in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[which][0], 16) & ~kept == 0, which
    for which in ("CapInh", "CapAmb"):
        assert int(status[which][0], 16) == 0, which
    for which in ("Uid", "Gid"):
        assert status[which] == [str(UID), "0", "0", "0"]
    assert (status["Seccomp"][0], status["Groups"]) == ("2", [])
    assert int(status["Seccomp_filters"][0]) == 2  # ours, and its own
    assert status["NSpid"] == [str(share.process.pid), "1"]
    limits = Path(f"/proc/{share.process.pid}/limits").read_text().splitlines()
    (core,) = [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
    (files,) = [line.split()[3:5] for line in limits if line.startswith("Max open files")]
    assert core == ["0", "0"]
    assert (
        files[0] == files[1] == Path("/proc/self/limits").read_text().split("files")[1].split()[1]
    )
    assert Path(f"/proc/{share.process.pid}/environ").read_bytes() == b""


def test_what_it_has_open(share: Share, guest: Guest) -> None:
    """Nothing by which it could get out of its namespace, or into another one."""
    kinds = set()
    for link in Path(f"/proc/{share.process.pid}/fd").iterdir():
        target = os.readlink(link)
        if not target.startswith("/"):
            kinds.add(target.partition(":")[0])
        elif target == "/":
            assert os.listdir(link) == []
        else:  # of processes it sees only itself
            ours = target.startswith(("/1/", "/proc", "/memfd:twtest-guest"))
            assert ours or target == "/dev/null", target
    assert kinds <= {"socket", "pipe", "anon_inode"}


# --- one that was taken over -------------------------------------------------------------------

NOT_PERMITTED, NONE_SUCH = "EPERM", "ESRCH"
PATH = "b'/one/tree/new'"
PID = "victim"  # root's process, and one that it might like to reach
_SIGINFO = "struct.pack('=iii116x', 9, 0, -1)"
CALLS = {
    # number, arguments: what comes of it
    "another real user": ("117, 1000, 0, 0", NOT_PERMITTED),
    "another real group": ("119, 1000, 0, 0", NOT_PERMITTED),
    "setuid": ("105, 1000", NOT_PERMITTED),
    "setgid": ("106, 1000", NOT_PERMITTED),
    "setreuid": ("113, 1000, -1", NOT_PERMITTED),
    "setregid": ("114, 1000, -1", NOT_PERMITTED),
    "the disk": (f"133, {PATH}, {stat.S_IFBLK | 0o666}, 0x800", NOT_PERMITTED),
    "a block device of any number": (f"259, -100, {PATH}, {stat.S_IFBLK}, 0x103", NOT_PERMITTED),
    "the memory": (f"133, {PATH}, {stat.S_IFCHR | 0o666}, 0x101", NOT_PERMITTED),
    "the kernel's log": (f"259, -100, {PATH}, {stat.S_IFCHR}, 0x10b", NOT_PERMITTED),
    "a terminal": (f"259, -100, {PATH}, {stat.S_IFCHR}, 0x400", NOT_PERMITTED),
    "a FUSE": (f"259, -100, {PATH}, {stat.S_IFCHR}, 0xae5", NOT_PERMITTED),
    "a namespace of users": ("272, 0x10000000", NOT_PERMITTED),
    "a namespace of mounts": ("272, 0x20000", NOT_PERMITTED),
    "a process in a namespace": ("56, 0x10010000, 0, 0, 0, 0", NOT_PERMITTED),
    "a process": ("56, 17, 0, 0, 0, 0", NOT_PERMITTED),
    "a process, by words in memory": ("435, 0, 0", "ENOSYS"),
    "fork": ("57,", NOT_PERMITTED),
    "vfork": ("58,", NOT_PERMITTED),
    "a namespace of another one": ("308, 3, 0", NOT_PERMITTED),
    "kill": (f"62, {PID}, 0", NOT_PERMITTED),
    "tkill": (f"200, {PID}, 0", NOT_PERMITTED),
    "tgkill": (f"234, {PID}, {PID}, 0", NONE_SUCH),
    "a signal with words": (f"129, {PID}, 9, {_SIGINFO}", NONE_SUCH),
    "a signal to a thread with words": (f"297, {PID}, {PID}, 9, {_SIGINFO}", NONE_SUCH),
    "a signal when it can be read": (f"72, 0, 8, {PID}", NONE_SUCH),  # F_SETOWN
    "a descriptor of a process": (f"434, {PID}, 0", NOT_PERMITTED),
    "a signal to that": ("424, 3, 9, 0, 0", NOT_PERMITTED),
    "a descriptor of its": ("438, 3, 0, 0", NOT_PERMITTED),
    "ptrace": (f"101, 16, {PID}, 0, 0", NOT_PERMITTED),
    "memory of a process": (f"310, {PID}, 0, 0, 0, 0, 0", NOT_PERMITTED),
    "into memory of a process": (f"311, {PID}, 0, 0, 0, 0, 0", NOT_PERMITTED),
    "limits of a process": (f"302, {PID}, 7, 0, 0", NONE_SUCH),
    "priority of a process": (f"141, 0, {PID}, 19", NONE_SUCH),
    "processors of a process": (f"203, {PID}, 8, bytes([1, 0, 0, 0, 0, 0, 0, 0])", NONE_SUCH),
    "a comparison with a process": (f"312, {PID}, 1, 0, 0, 0", NONE_SUCH),
    "a socket": ("41, 1, 1, 0", NOT_PERMITTED),
    "a connection": ("42, 3, b'', 0", NOT_PERMITTED),
    "a mount": ("165, b'none', b'/one', b'tmpfs', 0, 0", NOT_PERMITTED),
    "no mount": ("166, b'/one', 2", NOT_PERMITTED),
    "a mount's copy": ("428, -100, b'/one', 1", NOT_PERMITTED),
    "a mount's attributes": ("442, -100, b'/one', 0, bytes(32), 32", NOT_PERMITTED),
    "another place for a mount": ("429, 3, b'', -100, b'/one', 4", NOT_PERMITTED),
    "a filesystem": ("430, b'proc', 0", NOT_PERMITTED),
    "another root": ("155, b'/one', b'/one'", NOT_PERMITTED),
    "a file by its handle": ("304, 3, bytes(8), 0", NOT_PERMITTED),
    "shared memory": ("29, 0, 4096, 0o1600", NOT_PERMITTED),
    "somebody's shared memory": ("30, 0, 0, 0", NOT_PERMITTED),
    "semaphores": ("64, 0, 1, 0o1600", NOT_PERMITTED),
    "somebody's semaphores": ("65, 0, bytes(6), 1", NOT_PERMITTED),
    "a queue": ("68, 0, 0o1600", NOT_PERMITTED),
    "somebody's queue": ("70, 0, bytes(16), 8, 0, 0", NOT_PERMITTED),
    "a queue with a name": ("240, b'twtest', 0o102, 0o600, 0", NOT_PERMITTED),
    "a key": ("248, b'user', b'twtest', b'x', 1, -3", NOT_PERMITTED),
    "keys": ("250, 0, -3, 0", NOT_PERMITTED),
    "a program in the kernel": ("321, 0, bytes(120), 120", NOT_PERMITTED),
    "counters": ("298, bytes(120), 0, -1, -1, 0", NOT_PERMITTED),
    "io_uring": ("425, 8, bytes(120)", NOT_PERMITTED),
    "userfaultfd": ("323, 1", NOT_PERMITTED),
    "a module": ("313, 0, b'', 0", NOT_PERMITTED),
    "the host's name": ("170, b'x', 1", NOT_PERMITTED),
    "the end of the host": ("169, 0xfee1dead, 672274793, 0, 0", NOT_PERMITTED),
    "the kernel's messages": ("103, 3, bytes(9), 8", NOT_PERMITTED),
    "the clock": ("227, 0, bytes(16)", NOT_PERMITTED),
}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TakenOver]:
    """One that has /one/tree, in which all of this is: a file, links, a program, a device."""
    place = tmp_path_factory.mktemp("taken")
    tree = place / "tree"
    tree.mkdir()
    (tree / "file").write_text("shared")
    (tree / "planted").symlink_to("/one/tree/file")
    (tree / "up").symlink_to("../..")
    (tree / "program").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "program").chmod(0o4755)
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    with taken_over(UID, place) as daemon:
        show(daemon.share, "one", tree=tree)
        yield daemon


@pytest.fixture(scope="module")
def victim() -> Iterator[int]:
    """A process of root's, which lives on."""
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield child.pid
        assert child.poll() is None
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        child.kill()


@pytest.mark.parametrize("what", CALLS)
def test_what_one_that_was_taken_over_may_not_call(
    taken: TakenOver, victim: int, what: str
) -> None:
    call, expected = CALLS[what]
    call = call.replace(PID, str(victim))
    before = taken.does("sorted(os.listdir('/one/tree')), os.getresuid(), os.getresgid()")
    assert taken.does(f"call({call})") == expected
    assert taken.does("sorted(os.listdir('/one/tree')), os.getresuid(), os.getresgid()") == before


def test_what_one_that_was_taken_over_reaches(taken: TakenOver) -> None:
    assert taken.does("os.listdir('/')") == "['one']"
    assert taken.does("os.listdir(os.open('../../../..', 0))") == "['one']"
    assert taken.does("open('/one/tree/file').read()") == "'shared'"
    for path in ("/one/tree/planted", "/one/tree/up/one"):
        assert taken.does(f"os.open('{path}', 0)") == "ELOOP"
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        assert taken.does(f"os.open('/one/tree/null', {flags})") == "EACCES"
    assert taken.does("os.execv('/one/tree/program', ['sh'])") == "EACCES"
    for path in ("/usr/bin/python3", "/virtiofsd", "/bin/sh"):
        assert taken.does(f"os.execv('{path}', ['sh'])") == "ENOENT"
    for path in ("/new", "/one/new", "/../new"):
        assert taken.does(f"os.mkdir('{path}')") == "EROFS"
    assert taken.does("os.rmdir('/one')") == "EROFS"
    assert taken.does("os.chmod('/', 0o777)") == "EROFS"


def test_what_one_that_was_taken_over_has(taken: TakenOver) -> None:
    """Before it has given up anything itself."""
    status = fields(taken.share.process.pid)
    kept = sum(1 << bit for bit in (0, 1, 3, 4, 6, 7, 8, 18, 27, 31))
    for which in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[which][0], 16) == kept, which
    assert (status["Groups"], status["Seccomp_filters"]) == ([], ["1"])
    assert os.readlink(f"/proc/{taken.share.process.pid}/cwd") == "/"


def test_of_processes_one_that_was_taken_over_sees_itself(taken: TakenOver, victim: int) -> None:
    """By the directory that it keeps, though that is no longer mounted."""
    top = "os.open('../..', 0, dir_fd=processes)"
    assert taken.does("os.getpid()") == "1"
    assert taken.does(f"sorted(os.listdir({top}))") == "['1', 'self', 'thread-self']"
    for path in (
        f"{victim}/root/etc/shadow",
        f"{victim}/fd",
        "sys/kernel",
        "mounts",
        "net",
        "keys",
    ):
        assert taken.does(f"os.open('{path}', 0, dir_fd={top})") == "ENOENT"
    assert taken.does(f"os.listdir(os.open('1/root', 0, dir_fd={top}))") == "['one']"
    assert taken.does(f"os.listdir(os.open('1/cwd', 0, dir_fd={top}))") == "['one']"
    for path in ("1/oom_score_adj", "1/uid_map", "1/comm", "1/mem"):
        assert taken.does(f"os.open('{path}', 1, dir_fd={top})") == "EROFS"
    assert taken.does("os.readlink('0', dir_fd=processes)") == "'/dev/null'"


def test_one_that_was_taken_over_is_found(taken: TakenOver) -> None:
    """By its real user, whatever it has done about it."""
    taken.does("os.setresuid(-1, 1000, -1)")
    assert fields(taken.share.process.pid)["Uid"][0] == str(UID)
    taken.does("os.setresuid(-1, 0, -1)")


# --- what leads nowhere ------------------------------------------------------------------------


NAMES = (
    "..",
    ".",
    "a/b",
    "../secret",
    "../../../..",
    "/",
    "/etc",
    "/etc/twtest",
    "./file",
    "file/",
    "",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", ["root", "container", "tree", "file"])
def test_names_that_are_none(
    guest: Guest, share: Share, tree: Path, top: int, at: str, name: str
) -> None:
    """One of the daemons refuses them, the other one takes some for paths: they are none that lead
    out of what is shared, or change anything but what the guest may change."""
    (tree.parent / "secret").write_text("the host's")
    file = guest.entry(top, "file").node
    place = {"root": ROOT, "container": guest.walk("one").node, "tree": top, "file": file}[at]
    root = Path(f"/proc/{share.process.pid}/root")
    inside = {path.stat().st_ino for path in (root, root / "one", tree, tree / "file")}
    host = sorted(os.listdir("/etc")), sorted(os.listdir("/")), sorted(os.listdir(tree.parent))
    with contextlib.suppress(OSError):
        assert guest.entry(place, name).inode in inside
    for make in (guest.create, guest.mkdir, guest.remove):
        with contextlib.suppress(OSError):
            make(place, name)
    with contextlib.suppress(OSError):
        guest.remove(place, name, RMDIR)
    with contextlib.suppress(OSError):
        guest.mknod(place, name, stat.S_IFIFO | 0o644)
    with contextlib.suppress(OSError):
        guest.symlink(place, name, "/etc")
    with contextlib.suppress(OSError):
        guest.link(file, place, name)
    for old_place, old, new_place, new in ((place, name, top, "new"), (top, "file", place, name)):
        with contextlib.suppress(OSError):
            guest.rename(old_place, old, new_place, new)
        exchange = struct.pack("=QII", new_place, 2, 0)
        with contextlib.suppress(OSError):
            guest.call(RENAME2, old_place, exchange + text(old) + text(new))
    now = sorted(os.listdir("/etc")), sorted(os.listdir("/")), sorted(os.listdir(tree.parent))
    assert now == host
    assert (tree.parent / "secret").read_text() == "the host's"
    assert (guest.names(ROOT), guest.names(guest.walk("one").node)) == (["one"], ["tree"])


def test_a_file_is_opened_as_the_guest_asks(guest: Guest, tree: Path, top: int) -> None:
    """Its kernel has checked that the program may have it so."""
    path = tree / "file"
    os.utime(path, ns=(10**18, 2 * 10**18))
    file = guest.entry(top, "file").node
    assert guest.read(file, guest.open(file, os.O_RDONLY | os.O_NOATIME)) == b"shared"
    assert path.stat().st_atime_ns == 10**18


def test_links_are_not_followed(guest: Guest, tree: Path, top: int) -> None:
    """Neither those that the guest plants, nor those that are there, and wherever they point: to
    files of the host, above the share, into /proc, to what the share has itself."""
    secret = tree.parent / "secret"
    secret.write_text("the host's")
    secret.chmod(0o600)
    targets = ["/etc/shadow", "../secret", "../../one/tree/file", "file", "/proc/1/root/etc", "/"]
    for number, target in enumerate(targets):
        (tree / f"host-{number}").symlink_to(target)
        guest.symlink(top, f"guest-{number}", target)
    for name in [f"{who}-{number}" for who in ("host", "guest") for number in range(len(targets))]:
        link = guest.entry(top, name)
        assert stat.S_ISLNK(link.mode)
        assert guest.readlink(link.node) == targets[int(name[-1])]
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_PATH, os.O_RDONLY | os.O_NOFOLLOW):
            with refused(errno.ELOOP, errno.EBADF, errno.EINVAL):
                guest.read(link.node, guest.open(link.node, flags))
        with refused(errno.ENOTDIR, errno.ELOOP, errno.EBADF):
            guest.open(link.node, os.O_RDONLY, OPENDIR)
        for below in ("shadow", "tree", "file"):
            with refused():
                guest.entry(link.node, below)
            with refused():
                guest.create(link.node, below)
        # Where it is the last name, the link is what is meant.
        with refused(errno.EEXIST, errno.ELOOP, errno.EBADF):
            guest.create(top, name)
        for code in (struct.pack("=II", 1 << 3, 0), struct.pack("=II", 1 << 0, 0)):  # size, mode
            with contextlib.suppress(OSError):
                guest.call(SETATTR, link.node, code + bytes(80))
        with contextlib.suppress(OSError):
            guest.set_attribute(link.node, "user.x", b"x")
    assert secret.read_text() == "the host's"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((tree / "file").stat().st_mode) == 0o644
    assert (tree / "file").read_text() == "shared"
    assert os.listxattr(tree / "file") == os.listxattr(secret) == []


def test_a_name_that_becomes_a_link(guest: Guest, tree: Path, top: int) -> None:
    """What a node is stays what it is: it is no path, that somebody could exchange on the way."""
    (tree / "directory").mkdir()
    (tree / "directory" / "inside").write_text("shared")
    directory, file = guest.entry(top, "directory").node, guest.entry(top, "file").node
    for name in ("directory", "file"):
        (tree / name).rename(tree / f"was-{name}")
        (tree / name).symlink_to("/etc")
    assert guest.names(directory) == ["inside"]
    assert guest.read(file, guest.open(file)) == b"shared"
    with refused(errno.ENOENT):
        guest.entry(directory, "shadow")
    guest.create(directory, "new")
    assert sorted(os.listdir(tree / "was-directory")) == ["inside", "new"]


def test_nodes_of_devices(guest: Guest, tree: Path, top: int) -> None:
    """What everybody may have can be made, what could be the host's can't; none is opened."""
    tree.chmod(0o1777)
    for number, kind in enumerate((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG)):
        assert guest.mknod(top, str(number), kind | 0o644, uid=1000).uid == 1000
        assert stat.S_IFMT((tree / str(number)).lstat().st_mode) == kind
    harmless = [(1, minor) for minor in (3, 5, 7, 8, 9)] + [(5, 0), (5, 2), (0, 0)]
    for major, minor in harmless:
        made = guest.mknod(top, f"{major}:{minor}", stat.S_IFCHR | 0o666, major << 8 | minor)
        assert made.device == major << 8 | minor
        assert (tree / f"{major}:{minor}").stat().st_rdev == os.makedev(major, minor)
    before = sorted(os.listdir(tree))
    for device in (0x101, 0x102, 0x104, 0x10B, 0x400, 0x501, 0xA7B, 0xAE5, 0xFE00, 0x10000003):
        with refused(errno.EPERM):
            guest.mknod(top, "device", stat.S_IFCHR | 0o666, device)
    for device in (0, 0x103, 0x700, 0x800, 0xFE00):
        with refused(errno.EPERM):
            guest.mknod(top, "device", stat.S_IFBLK | 0o666, device)
    assert sorted(os.listdir(tree)) == before
    os.mknod(tree / "disk", 0o60666, os.makedev(7, 0))
    os.mknod(tree / "zero", 0o20666, os.makedev(1, 5))
    for name in ("disk", "zero", "1:5"):
        node = guest.entry(top, name).node
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_NONBLOCK):
            with refused(errno.EACCES, errno.EBADF, errno.ENXIO, errno.EINVAL):
                guest.read(node, guest.open(node, flags))
        with refused():
            guest.create(top, name)


def test_what_can_t_be_written_to(guest: Guest, share: Share, tree: Path) -> None:
    show(share, "one", read_only=True, tree=tree)
    one = guest.walk("one").node
    top, file = guest.entry(one, "tree").node, guest.walk("one/tree/file").node
    for place in (ROOT, one, top):
        with refused(errno.EROFS):
            guest.mkdir(place, "new")
        with refused(errno.EROFS):
            guest.create(place, "new")
        with refused(errno.EROFS):
            guest.symlink(place, "new", "/")
        with refused(errno.EROFS, errno.EPERM, errno.EXDEV):
            guest.link(file, place, "new")
        with refused(errno.EROFS):
            guest.set_attribute(place, "user.x", b"x")
        with refused(errno.EROFS):
            guest.call(SETATTR, place, struct.pack("=II", 1, 0) + bytes(80))  # its mode
    with refused(errno.EROFS):
        guest.open(file, os.O_RDWR)
    with refused(errno.EROFS):
        guest.remove(top, "file")
    for place, name in ((ROOT, "one"), (one, "tree")):
        with refused(errno.EROFS, errno.EBUSY):
            guest.remove(place, name, RMDIR)
        with refused(errno.EROFS, errno.EBUSY):
            guest.rename(place, name, place, "new")
    assert (tree / "file").read_text() == "shared"
    assert os.listdir(tree) == ["file"]


def test_no_way_from_one_mount_into_another(guest: Guest, share: Share, tmp_path: Path) -> None:
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    show(share, "one", read_only=True, read=tmp_path / "read")
    show(share, "one", write=tmp_path / "write")
    read, write = guest.walk("one/read").node, guest.walk("one/write").node
    with refused():
        guest.link(guest.entry(read, "file").node, write, "linked")
    with refused():
        guest.rename(read, "file", write, "moved")
    with refused():
        guest.rename(write, "file", read, "moved")
    assert (tmp_path / "read/file").read_text() == "read"


def test_what_is_no_longer_shared(guest: Guest, share: Share, tree: Path, top: int) -> None:
    """A node that the guest still knows leads to what it was, as an open file does; and neither up
    from there, nor to what is mounted in its place."""
    share.detach("one")
    assert guest.names(ROOT) == []
    for name in ("..", "../..", "/", "../one/tree"):
        with contextlib.suppress(OSError):
            assert guest.names(guest.entry(top, name).node) == ["file"]


def test_users_come_and_go(guest: Guest, tree: Path, top: int) -> None:
    """After files of another user the daemon can still do all that it could; and is
    nobody else than it was asked to be."""
    tree.chmod(0o1777)
    for uid in (0, 1000, 0, 65534, 1000):
        name = f"of-{uid}"
        with contextlib.suppress(FileExistsError):
            assert guest.mkdir(top, name, uid).uid == uid
        assert (tree / name).stat().st_uid == (tree / name).stat().st_gid == uid
    guest.mkdir(guest.entry(top, "of-1000").node, "new", 0)
    assert (tree / "of-1000" / "new").stat().st_uid == 0


# --- its ends ----------------------------------------------------------------------------------


def test_it_ends_with_its_last_user(share: Share, guest: Guest) -> None:
    guest.frontend.close()
    assert share.process.wait(60) == 0


def test_it_ends_before_anybody_has_spoken_to_it(share: Share) -> None:
    share.connection.close()
    assert share.process.wait(60) is not None


def test_nothing_that_it_would_wait_for(guest: Guest, tree: Path, top: int) -> None:
    """A FIFO that nobody writes to, a lock that the host has: it would not see that its connection
    was closed, and nobody else would get an answer."""
    os.mkfifo(tree / "fifo")
    fifo = guest.entry(top, "fifo").node
    for flags in (os.O_RDONLY, os.O_WRONLY):
        with refused():
            guest.open(fifo, flags)
        with refused():
            guest.call(CREATE, top, struct.pack("=IIII", flags, 0o644, 0, 0) + text("fifo"))
    with (tree / "file").open() as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        fcntl.lockf((tree / "file").open("r+"), fcntl.LOCK_EX)
        file = guest.entry(top, "file").node
        for is_flock in (0, 1):
            lock = 1, 0, 1 << 62, fcntl.F_WRLCK, 0, is_flock, 0
            with refused():
                guest.call(SETLKW, file, struct.pack("=QQQQIIII", guest.open(file), *lock))


def test_one_that_hangs_is_ended_after_its_supervisor(daemon: Daemon, tree: Path) -> None:
    """Whatever it hangs in: here, it is stopped."""
    told, tells = os.pipe()
    supervisor = os.fork()
    if not supervisor:
        try:
            die_with(os.getppid())
            share = Share.start(0x70000000 + os.getpid(), daemon)
            os.kill(share.process.pid, signal.SIGSTOP)
            os.write(tells, str(share.process.pid).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(tells)
    pid = int(os.read(told, 20))
    os.close(told)
    assert eventually(lambda: fields(pid)["State"][0] == "T")
    orphans.end(supervisor)
    assert not has_ended(pid), "its supervisor lives"
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    assert not has_ended(pid), "so it was not this that ended it"
    orphans.end(supervisor)
    assert has_ended(pid)


# --- programs that are none --------------------------------------------------------------------


@pytest.mark.unit
def test_without_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    assert virtiofsd.program_of(Daemon("/nowhere/virtiofsd")) == virtiofsd.program_of(Daemon())
    monkeypatch.setattr(virtiofsd, "PATHS", ("/nowhere/a", "/nowhere/b"))
    with pytest.raises(HypervisorError, match=r"no virtiofsd.* at /nowhere/a and /nowhere/b; inst"):
        Share.start(UID, Daemon())
    with pytest.raises(HypervisorError, match=r" at /nowhere/virtiofsd and /nowhere/a and /now"):
        Share.start(UID, Daemon("/nowhere/virtiofsd"))


@pytest.mark.unit
def test_arguments_that_are_ours(daemon: Daemon) -> None:
    """Kata's files have some of them."""
    more = ("--announce-submounts", "--xattr", "--sandbox=none", "--fd=7", "--thread-pool-size=1")
    program = virtiofsd.program_of(daemon)
    ours = virtiofsd.arguments(program, 3, daemon)
    given = virtiofsd.arguments(program, 3, replace(daemon, extra=more))
    kept = [] if "--sandbox=chroot" in ours else ["--sandbox=none"]  # which that one has not
    assert given == [*ours, *kept, "--thread-pool-size=1"]


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["directory", "not executable", "empty"])
def test_what_is_no_program(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "virtiofsd"
    if kind == "directory":
        path.mkdir()
    else:
        path.write_text("" if kind == "empty" else "#!/usr/bin/true\n")
        path.chmod(0o755 if kind == "empty" else 0o644)
    opened = len(open_files())
    with pytest.raises(HypervisorError):
        Share.start(UID, Daemon(str(path)))
    assert len(open_files()) == opened


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 0", ""),
        ("echo 'virtiofsd: unknown option: --fd' >&2; exit 1", "unknown option: --fd"),
    ],
)
def test_one_that_does_not_start(tmp_path: Path, script: str, words: str) -> None:
    program = tmp_path / "virtiofsd"
    program.write_text(f"#!/usr/bin/sh\n{script}\n")
    program.chmod(0o755)
    share = Share.start(UID, Daemon(str(program)))
    guest = Guest(share.connection)
    try:
        with pytest.raises(EndedError):
            guest.begin()
        assert words in said(share)
    finally:
        guest.close()
        share.kill()
        os.close(share.stderr)
