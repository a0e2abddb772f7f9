"""Files that are open while their names change or go: what a descriptor stands for."""

import fcntl
import mmap
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from typing import Any

from tests.programs.checks.frame import (
    Outcome,
    check,
    error,
    in_child,
    link_of,
    mode,
    read,
    system,
    value,
    write,
)

_EMPTY_PATH = 0x1000


def _removed() -> int:
    fd = os.open("removed", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"0123456789")
    os.unlink("removed")
    return fd


def _replaced() -> int:
    fd = os.open("replaced", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"0123456789")
    write("other", b"another one's content")
    os.rename("other", "replaced")
    return fd


def _moved() -> int:
    os.mkdir("moved")
    fd = os.open("moved/file", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"0123456789")
    os.rename("moved", "moved-away")
    return fd


def _in_removed_directory() -> int:
    os.mkdir("directory")
    fd = os.open("directory/file", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"0123456789")
    shutil.rmtree("directory")
    return fd


def _temporary() -> int:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o644)
    os.write(fd, b"0123456789")
    return fd


_WAYS: dict[str, Callable[[], int]] = {
    "removed": _removed,
    "replaced": _replaced,
    "in a moved directory": _moved,
    "in a removed directory": _in_removed_directory,
    "O_TMPFILE": _temporary,
}


def _mapped(fd: int) -> str:
    with mmap.mmap(fd, 4096) as mapped:
        mapped[0:4] = b"map!"
        mapped.flush()
    return os.pread(fd, 4, 0).decode()


def _again(fd: int) -> str:
    """By its link in /proc, as programs open what they were handed."""
    return read(f"/proc/self/fd/{fd}")


def _truncated_again(fd: int) -> int:
    with open(f"/proc/self/fd/{fd}", "r+b") as file:
        file.truncate(3)
    return os.fstat(fd).st_size


def _locked(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_EX)


def _seen_by_a_child(fd: int) -> Any:
    return in_child(lambda: [os.fstat(fd).st_size, os.pread(fd, 4, 0).decode("latin-1")])


_STEPS: dict[str, Callable[[int], Any]] = {
    "size": lambda fd: os.fstat(fd).st_size,
    "links": lambda fd: os.fstat(fd).st_nlink,
    "read": lambda fd: os.pread(fd, 20, 0).decode(),
    "seek to the end": lambda fd: os.lseek(fd, 0, os.SEEK_END),
    "append": lambda fd: os.write(fd, b"more"),
    "size then": lambda fd: os.fstat(fd).st_size,
    "truncate": lambda fd: os.ftruncate(fd, 6000),
    "allocate": lambda fd: os.posix_fallocate(fd, 0, 8192),
    "size after that": lambda fd: os.fstat(fd).st_size,
    "chmod": lambda fd: os.fchmod(fd, 0o4711),
    "chown": lambda fd: os.fchown(fd, 7, 8),
    "mode": lambda fd: f"{os.fstat(fd).st_mode:o} {os.fstat(fd).st_uid}:{os.fstat(fd).st_gid}",
    "utime": lambda fd: os.utime(fd, ns=(10**18, 10**18 + 5)),
    "time": lambda fd: os.fstat(fd).st_mtime_ns - 10**18,
    "set attribute": lambda fd: os.setxattr(fd, "user.a", b"value"),
    "attribute": lambda fd: os.getxattr(fd, "user.a").decode(),
    "statfs": lambda fd: os.fstatvfs(fd).f_namemax,
    "sync": os.fsync,
    "map": _mapped,
    "open again": lambda fd: _again(fd)[:4],
    "truncate by the other": _truncated_again,
    "locks": _locked,
    "by a child": _seen_by_a_child,
    "chmod by /proc": lambda fd: os.chmod(f"/proc/self/fd/{fd}", 0o600),
    "stat by /proc": lambda fd: f"{os.stat(f'/proc/self/fd/{fd}').st_mode:o}",
    "xattrs by /proc": lambda fd: os.listxattr(f"/proc/self/fd/{fd}"),
    "link": lambda fd: link_of(fd, "linked"),
    "link by descriptor": lambda fd: system("linkat", fd, "", -100, "linked-2", _EMPTY_PATH),
    "links in the end": lambda fd: os.fstat(fd).st_nlink,
    "close": os.close,
}


@check
def everything_on_a_descriptor() -> Outcome:
    outcome: Outcome = {}
    here = os.getcwd()
    for way, make in _WAYS.items():
        os.mkdir(way)
        os.chdir(way)
        fd = value(make)
        if isinstance(fd, str):
            outcome[way] = fd
        else:
            steps = {step: value(call, fd) for step, call in _STEPS.items()}
            left = {name: mode(name) for name in sorted(os.listdir("."))}
            outcome[way] = {**steps, "left": left}
        os.chdir(here)
    return outcome


@check
def two_with_one_name() -> Outcome:
    """The name is used again while the first file is open."""
    outcome: Outcome = {}
    files = []
    for number in range(5):
        file = open("name", "w+")  # noqa: SIM115
        file.write(str(number) * (number + 1))
        file.flush()
        files.append(file)
        if number % 2:
            os.unlink("name")
        else:
            write("next")
            os.rename("next", "name")
    outcome["sizes"] = [os.fstat(file.fileno()).st_size for file in files]
    outcome["contents"] = [os.pread(file.fileno(), 9, 0).decode() for file in files]
    inodes = [os.fstat(file.fileno()).st_ino for file in files]
    outcome["different inodes"] = len(set(inodes))
    outcome["links"] = [os.fstat(file.fileno()).st_nlink for file in files]
    for file in files:
        file.close()
    return outcome


@check
def many_open_and_removed() -> Outcome:
    descriptors = []
    for number in range(500):
        fd = os.open(f"f{number}", os.O_RDWR | os.O_CREAT)
        os.write(fd, str(number).encode())
        descriptors.append(fd)
    for number in range(0, 500, 2):
        os.unlink(f"f{number}")
    for number in range(1, 500, 2):
        os.rename(f"f{number}", f"f{number - 1}")
    return {
        "right": sum(
            os.pread(fd, 9, 0) == str(number).encode() and os.fstat(fd).st_nlink == number % 2
            for number, fd in enumerate(descriptors)
        ),
        "inodes": len({os.fstat(fd).st_ino for fd in descriptors}),
        "left": len(os.listdir(".")),
    }


@check
def temporary_files_of_python() -> Outcome:
    tempfile.tempdir = os.getcwd()
    outcome: Outcome = {}
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 10000)
        file.flush()
        outcome["size"] = os.fstat(file.fileno()).st_size
        file.truncate(5)
        outcome["truncated"] = [os.fstat(file.fileno()).st_size, file.seek(0, 2)]
    with tempfile.NamedTemporaryFile() as named:
        named.write(b"12345")
        named.flush()
        outcome["named"] = read(named.name)
    with tempfile.SpooledTemporaryFile(max_size=10) as spooled:
        spooled.write(b"a" * 50)
        spooled.truncate(3)
        outcome["spooled"] = spooled.seek(0, 2)
    with tempfile.TemporaryDirectory() as directory:
        write(f"{directory}/x")
    outcome["left"] = os.listdir(".")
    return outcome


@check
def temporary_without_a_name() -> Outcome:
    outcome: Outcome = {
        "to read": error(os.open, ".", os.O_TMPFILE | os.O_RDONLY),
        "in nothing": error(os.open, "nothing", os.O_TMPFILE | os.O_RDWR),
    }
    write("file")
    outcome["in a file"] = error(os.open, "file", os.O_TMPFILE | os.O_RDWR)
    flags = os.O_TMPFILE | os.O_RDWR
    outcome["exclusive"] = value(
        lambda: error(link_of, os.open(".", flags | os.O_EXCL, 0o600), "linked")
    )
    outcome["mode"] = in_child(
        lambda: f"{os.fstat(os.open('.', flags, 0o666)).st_mode:o}", umask=0o027
    )
    os.chmod(".", 0o2777)
    os.chown(".", 0, 1234)
    outcome["group"] = value(lambda: os.fstat(os.open(".", flags, 0o666)).st_gid)
    outcome["linked"] = value(_temporary_and_linked)
    return outcome


def _temporary_and_linked() -> list[object]:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"whole")
    os.setxattr(fd, "user.a", b"b")
    said = [error(link_of, fd, name) for name in ("linked", "second", "second")]
    links = os.fstat(fd).st_nlink
    return [*said, links, read("linked"), mode("second"), os.listxattr("linked")]


@check
def removed_directories() -> Outcome:
    here = os.getcwd()
    os.mkdir("d")
    fd = os.open("d", os.O_DIRECTORY)
    os.chdir("d")
    os.rmdir("../d")
    outcome: Outcome = {
        "getcwd": error(os.getcwd),
        "list": value(os.listdir, fd),
        "list .": value(os.listdir, "."),
        "create": error(write, "x"),
        "mkdir": error(os.mkdir, "x"),
        "up": error(os.stat, ".."),
        "links": os.fstat(fd).st_nlink,
        "mode": f"{os.fstat(fd).st_mode:o}",
        "chmod": error(os.fchmod, fd, 0o700),
        "chmod .": error(os.chmod, ".", 0o711),
        "link in /proc": os.readlink(f"/proc/self/fd/{fd}").endswith("/d (deleted)"),
        "sync": error(os.fsync, fd),
    }
    os.chdir(here)
    os.mkdir("d")
    write("d/new")
    outcome["a new one of its name"] = [os.listdir("d"), value(os.listdir, fd)]
    outcome["not the same"] = os.fstat(fd).st_ino != os.stat("d").st_ino
    return outcome


@check
def offsets_are_shared() -> Outcome:
    write("file", b"0123456789")
    fd = os.open("file", os.O_RDWR)
    copy = os.dup(fd)
    fresh = os.open("file", os.O_RDONLY)
    os.read(fd, 2)
    outcome: Outcome = {"copy": value(os.read, copy, 2), "fresh": value(os.read, fresh, 2)}
    outcome["child"] = in_child(lambda: os.read(fd, 2))
    outcome["after the child"] = value(os.read, fd, 2)
    outcome["flags"] = [
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND),
        bool(fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_APPEND),
    ]
    os.write(copy, b"end")
    outcome["appended"] = [read("file"), os.lseek(fd, 0, os.SEEK_CUR)]
    return outcome


@check
def handed_over() -> Outcome:
    """A descriptor that another process was given, of a file without a name."""
    left, right = socket.socketpair()

    def receive() -> str:
        _, descriptors, _, _ = socket.recv_fds(right, 10, 1)
        os.pwrite(descriptors[0], b"by the child", 10)
        return os.pread(descriptors[0], 10, 0).decode()

    fd = _removed()
    socket.send_fds(left, [b"x"], [fd])
    outcome: Outcome = {"read": in_child(receive)}
    outcome["written"] = value(os.pread, fd, 50, 0)
    return outcome


@check
def descriptors_of_paths() -> Outcome:
    """O_PATH."""
    write("file", b"content")
    os.symlink("file", "soft")
    fd = os.open("file", os.O_PATH)
    link = os.open("soft", os.O_PATH | os.O_NOFOLLOW)
    return {
        "read": error(os.read, fd, 1),
        "stat": f"{os.fstat(fd).st_mode:o}",
        "chmod": error(os.fchmod, fd, 0o600),
        "sync": error(os.fsync, fd),
        "attribute": error(os.setxattr, fd, "user.a", b""),
        "chown": error(os.chown, fd, 1, 1),
        "chown of an empty path": error(system, "fchownat", fd, "", 1, 2, _EMPTY_PATH),
        "opened": value(read, f"/proc/self/fd/{fd}"),
        "a link": f"{os.fstat(link).st_mode:o}",
        "a link read": value(os.readlink, "", dir_fd=link),
        "moved": [error(os.rename, "file", "moved"), error(os.unlink, "moved")],
        "then": os.fstat(fd).st_nlink,
        "opened then": value(read, f"/proc/self/fd/{fd}"),
    }
