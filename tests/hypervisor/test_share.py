"""The share itself: what a QEMU that a guest has taken over could reach by it, which is tried here
by speaking to the helper as QEMU does (hw/9pfs/9p-proxy.h)."""

import errno
import os
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tapwright.errors import HypervisorError
from tapwright.hypervisor import process
from tapwright.hypervisor import share as share_module
from tapwright.hypervisor.share import Share
from tapwright.linux import libc, mounts
from tapwright.linux.seccomp import Filter
from tests.host import eventually

UID = 0x70000000 + os.getpid()
OPEN, CREATE, MKNOD, MKDIR, SYMLINK, LSTAT, READLINK = 2, 3, 4, 5, 6, 8, 9
RENAME, REMOVE = 15, 16
SUCCESS = 0
OPEN_CALLS = ("2", "257")  # open, openat


@pytest.fixture
def connections() -> Iterator[tuple[socket.socket, socket.socket]]:
    """QEMU's end, and the helper's."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def share(connections: tuple[socket.socket, socket.socket]) -> Iterator[Share]:
    started = Share.start(UID, connections[1])
    connections[1].close()
    started.seal()
    yield started
    started.kill()


@pytest.fixture
def qemu_end(connections: tuple[socket.socket, socket.socket]) -> socket.socket:
    return connections[0]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    place.mkdir()
    (place / "file").write_text("shared")
    return place


def show(share: Share, directory: str, **sources: Path) -> None:
    with ExitStack() as done:
        fds = {name: mounts.clone(str(path)) for name, path in sources.items()}
        for fd in fds.values():
            done.callback(os.close, fd)
        share.attach(directory, fds)


def seen(share: Share) -> list[str]:
    """All that is in the share."""
    top = f"/proc/{share.process.pid}/root/"
    command = ["find", top, "-mindepth", "1", "-printf", "/%P\\n"]
    return sorted(subprocess.check_output(command, text=True).split())


def text(value: str) -> bytes:
    return struct.pack("=H", len(value.encode())) + value.encode()


def ask(qemu_end: socket.socket, kind: int, content: bytes) -> int:
    """0, or the errno that comes back."""
    qemu_end.sendall(struct.pack("=II", kind, len(content)) + content)
    kind, size = struct.unpack("=II", qemu_end.recv(8, socket.MSG_WAITALL))
    answer = qemu_end.recv(size, socket.MSG_WAITALL)
    return 0 if kind == SUCCESS else -int(struct.unpack_from("=i", answer)[0])


def opened(qemu_end: socket.socket, path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor. Raises OSError."""
    content = text(path) + struct.pack("=I", flags)
    qemu_end.sendall(struct.pack("=II", OPEN, len(content)) + content)
    data, fds, _, _ = socket.recv_fds(qemu_end, 4, 1)
    if not fds:
        code = -struct.unpack("=i", data)[0]
        raise OSError(code, os.strerror(code))
    return fds[0]


def made(qemu_end: socket.socket, kind: int, content: bytes, uid: int = 0) -> int:
    return ask(qemu_end, kind, struct.pack("=II", uid, uid) + content)


def node(path: str, mode: int) -> bytes:
    return text(path) + struct.pack("=IQ", mode, os.makedev(1, 3))


def fields(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


# --- the share ---------------------------------------------------------------------------------


def test_there_is_nothing_but_what_is_shared(share: Share, tree: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    assert seen(share) == []
    show(share, "one", tree=tree, file=tree / "file")
    show(share, "one", again=tree)
    show(share, "two", tree=tree)
    one = ["/one", "/one/again", "/one/again/file", "/one/file", "/one/tree", "/one/tree/file"]
    two = ["/two", "/two/tree", "/two/tree/file"]
    assert seen(share) == [*one, *two]
    assert Path("/proc/self/mountinfo").read_text() == before
    share.detach("one")
    assert seen(share) == two
    share.detach("one")
    share.detach("two")
    assert seen(share) == []
    show(share, "one", tree=tree)
    assert seen(share) == ["/one", "/one/tree", "/one/tree/file"]


def test_all_or_nothing(share: Share, tree: Path) -> None:
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
    with pytest.raises(HypervisorError, match="one can't be shared: File exists"):
        show(share, "one", new=tree, tree=tree)
    assert seen(share) == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b"])
def test_names(share: Share, tree: Path, name: str) -> None:
    with pytest.raises(HypervisorError, match="can't be the name"):
        show(share, name, tree=tree)
    with pytest.raises(HypervisorError, match="can't be the name"):
        show(share, "one", **{name: tree})
    with pytest.raises(HypervisorError, match="can't be the name"):
        share.detach(name)
    assert seen(share) == []


# --- its helper --------------------------------------------------------------------------------


def test_the_helper_has_little(share: Share) -> None:
    assert eventually(lambda: fields(share.process.pid)["CapBnd"] == ["0" * 16])
    status = fields(share.process.pid)
    kept = sum(1 << bit for bit in (0, 1, 3, 4, 6, 7, 27))
    assert int(status["CapPrm"][0], 16) == int(status["CapEff"][0], 16) == kept
    assert (status["Uid"][0], status["Seccomp"][0], status["Groups"]) == (str(UID), "2", [])
    links = {os.readlink(path) for path in Path(f"/proc/{share.process.pid}/fd").iterdir()}
    assert {link.partition(":")[0] for link in links} == {"socket", "pipe", "/dev/null"}


# Calls that the helper itself never makes, and what comes of them: number, arguments, errno.
REFUSED: dict[str, tuple[int, tuple[int | bytes, ...], int]] = {
    "setresuid": (117, (1000, 0, 0), errno.EPERM),
    "setresgid": (119, (1000, 0, 0), errno.EPERM),
    "mknod": (133, (b"/dev/shm/twtest", stat.S_IFCHR | 0o666, 0x103), errno.EPERM),
    "mknodat": (259, (-100, b"/dev/shm/twtest", stat.S_IFBLK | 0o666, 0x103), errno.EPERM),
    "a namespace of users": (56, (0x10000000, 0, 0, 0, 0), errno.EPERM),
    "fork": (57, (), errno.ENOSYS),
    "setuid": (105, (1000,), errno.ENOSYS),
    "unshare": (272, (0x10000000,), errno.ENOSYS),
    "kill": (62, (os.getpid(), 0), errno.ENOSYS),
    "pidfd_open": (434, (os.getpid(), 0), errno.ENOSYS),
    "ptrace": (101, (0, 0, 0, 0), errno.ENOSYS),
    "socket": (41, (1, 1, 0), errno.ENOSYS),
    "mount": (165, (b"none", b"/mnt", b"tmpfs", 0, 0), errno.ENOSYS),
    "memfd_create": (319, (b"twtest", 0), errno.ENOSYS),
}


@pytest.mark.parametrize("call", REFUSED)
def test_what_one_that_was_taken_over_may_not_call(call: str) -> None:
    number, arguments, expected = REFUSED[call]
    allowed = Filter(share_module._ALLOWED, share_module._CHECKED)
    child = os.fork()
    if not child:
        found = 0
        try:
            allowed.install()
            libc.syscall(number, *arguments)
        except OSError as error:
            found = error.errno or 0
        finally:
            os._exit(found)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected


def test_it_reaches_nothing_else(share: Share, qemu_end: socket.socket, tree: Path) -> None:
    show(share, "one", tree=tree)
    os.close(opened(qemu_end, "/one/tree/file"))
    for path in (
        *("/etc/shadow", "etc/shadow", "/../../etc/shadow", "../" * 20 + "etc/shadow"),
        *("/one/tree/../../../etc/shadow", "/proc/self/root/etc/shadow", "/usr/bin/env"),
    ):
        with pytest.raises(FileNotFoundError):
            opened(qemu_end, path)
    (tree / "planted").symlink_to("/etc")
    (tree / "beside").symlink_to(tree)
    for path in ("/one/tree/planted/shadow", "/one/tree/beside/file"):
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            opened(qemu_end, path)
    # What QEMU gets of it is a descriptor, from which it could walk on its own.
    directory = opened(qemu_end, "/one/tree")
    try:
        assert os.listdir(directory) == os.listdir(tree)
        top = os.open("../" * 20, os.O_RDONLY, dir_fd=directory)
        assert os.listdir(top) == ["one"]
        os.close(top)
    finally:
        os.close(directory)


def test_devices_can_be_neither_made_nor_opened(
    share: Share, qemu_end: socket.socket, tree: Path
) -> None:
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    show(share, "one", tree=tree)
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        assert made(qemu_end, MKNOD, node("/one/tree/device", kind | 0o666)) == errno.EPERM
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG):
        assert made(qemu_end, MKNOD, node(f"/one/tree/{kind}", kind | 0o644), uid=1000) == 0
        assert (tree / str(kind)).lstat().st_uid == 1000
    with pytest.raises(PermissionError):
        opened(qemu_end, "/one/tree/null", os.O_RDWR)


def test_what_can_t_be_written_to(share: Share, qemu_end: socket.socket, tree: Path) -> None:
    with ExitStack() as done:
        fd = mounts.clone(str(tree), read_only=True)
        done.callback(os.close, fd)
        share.attach("one", {"tree": fd})
    for path in ("/one/tree/new", "/one/new", "/new"):
        assert made(qemu_end, MKDIR, text(path) + struct.pack("=I", 0o755)) == errno.EROFS
    assert ask(qemu_end, REMOVE, text("/one/tree")) in (errno.EBUSY, errno.EROFS)
    assert ask(qemu_end, RENAME, text("/one") + text("/two")) == errno.EROFS
    assert (tree / "file").read_text() == "shared"


def test_users_come_and_go(share: Share, qemu_end: socket.socket, tree: Path) -> None:
    """After files of another user the helper can still do all that it could."""
    show(share, "one", tree=tree)
    for uid in (0, 1000, 0, 65534):
        assert made(
            qemu_end, MKDIR, text(f"/one/tree/of-{uid}") + struct.pack("=I", 0o755), uid
        ) in (
            0,
            errno.EEXIST,
        )
        assert (tree / f"of-{uid}").stat().st_uid == uid


def test_it_ends_with_its_last_user(share: Share, qemu_end: socket.socket) -> None:
    qemu_end.close()
    assert share.process.wait(10) == 0


def test_one_that_hangs_is_ended_after_its_supervisor(tree: Path) -> None:
    """It can be made to open a FIFO, and then does not see that its socket was closed."""
    os.mkfifo(tree / "fifo")
    told, tells = os.pipe()
    supervisor = os.fork()
    if not supervisor:
        try:
            qemu_end, theirs = socket.socketpair()
            share = Share.start(0x70000000 + os.getpid(), theirs)
            share.seal()
            show(share, "one", tree=tree)
            content = text("/one/tree/fifo") + struct.pack("=I", os.O_RDONLY)
            qemu_end.sendall(struct.pack("=II", OPEN, len(content)) + content)
            os.write(tells, str(share.process.pid).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(tells)
    helper = int(os.read(told, 20))
    os.close(told)
    assert eventually(lambda: Path(f"/proc/{helper}/syscall").read_text().split()[0] in OPEN_CALLS)
    process.end_orphans(supervisor)
    assert not has_ended(helper), "its supervisor lives"
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    assert not has_ended(helper), "so it was not this that ended it"
    process.end_orphans(supervisor)
    assert has_ended(helper)


def has_ended(pid: int) -> bool:
    try:
        return fields(pid)["State"][0] == "Z"
    except FileNotFoundError:
        return True


def test_without_the_program(
    monkeypatch: pytest.MonkeyPatch, connections: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.setattr("tapwright.hypervisor.share._HELPERS", ("/nowhere/virtfs-proxy-helper",))
    with pytest.raises(HypervisorError, match="install qemu-system-common"):
        Share.start(UID, connections[1])


def test_one_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, connections: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.setattr("tapwright.hypervisor.share._HELPERS", ("/usr/bin/true",))
    started = Share.start(UID, connections[1])
    try:
        with pytest.raises(HypervisorError, match="did not start: it said nothing"):
            started.seal()
    finally:
        started.kill()
