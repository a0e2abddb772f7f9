"""What stat shows of a file, and what changes it: modes, owners, times, counts."""

import ctypes
import os
import stat
import time
from collections.abc import Callable

from tests.programs.checks.frame import (
    OTHER,
    USER,
    Outcome,
    check,
    error,
    in_child,
    mode,
    owner,
    read,
    system,
    value,
    write,
)

_NOW, _OMIT = (1 << 30) - 1, (1 << 30) - 2


@check
def modes() -> Outcome:
    write("file")
    os.mkdir("directory")
    outcome: Outcome = {}
    for bits in (0, 0o777, 0o4755, 0o2755, 0o1755, 0o7777, 0o4000, 0o2070, 0o644):
        os.chmod("file", bits)
        os.chmod("directory", bits)
        outcome[f"{bits:o}"] = [mode("file"), mode("directory")]
    outcome["by descriptor"] = [
        error(os.fchmod, os.open("file", os.O_RDONLY), 0o4511),
        mode("file"),
    ]
    os.symlink("file", "soft")
    outcome["of a link"] = error(system, "fchmodat", -100, "soft", 0o600, 0x100)
    outcome["through a link"] = [error(os.chmod, "soft", 0o751), mode("file"), mode("soft")]
    for mask in (0, 0o022, 0o077, 0o777):

        def made(mask: int = mask) -> list[str]:
            write(f"f{mask}", mode=0o7777)
            os.mkdir(f"d{mask}", 0o7777)
            os.mkfifo(f"p{mask}", 0o666)
            os.mknod(f"n{mask}", stat.S_IFREG | 0o6666)
            return [mode(f"{kind}{mask}") for kind in "fdpn"]

        outcome[f"umask {mask:o}"] = in_child(made, umask=mask)
    return outcome


@check
def owners() -> Outcome:
    write("file")
    outcome: Outcome = {"made": owner("file")}
    for user, group in ((1, 2), (-1, 5), (6, -1), (-1, -1), (0xFFFFFFFE, 0xFFFFFFFE), (0, 0)):
        outcome[f"{user}:{group}"] = [error(os.chown, "file", user, group), owner("file")]
    outcome["made by a user"] = in_child(_made_by_a_user, USER, umask=0)
    os.mkdir("open")
    os.chmod("open", 0o777)
    outcome["made by a user there"] = in_child(lambda: _made_in("open"), USER)
    outcome["with other groups"] = in_child(lambda: _made_in("open"), OTHER, groups=(7, 8))
    return outcome


def _made_by_a_user() -> str:
    return error(write, "mine")


def _made_in(directory: str) -> list[str]:
    name = f"{directory}/of-{os.getuid()}"
    write(name)
    os.mkdir(f"{name}-d")
    os.symlink("x", f"{name}-s")
    os.mkfifo(f"{name}-p")
    return [owner(f"{name}{kind}") for kind in ("", "-d", "-s", "-p")]


_CHANGES: dict[str, Callable[[str], object]] = {
    "write": lambda path: os.write(os.open(path, os.O_WRONLY), b"x"),
    "truncate": lambda path: os.truncate(path, 1),
    "truncate to the same": lambda path: os.truncate(path, 7),
    "open to truncate": lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC),
    "allocate": lambda path: os.posix_fallocate(os.open(path, os.O_WRONLY), 0, 10),
    "copy into": lambda path: os.copy_file_range(
        os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY), 1, 0, 3
    ),
    "chown to the same": lambda path: os.chown(path, -1, os.stat(path).st_gid),
    "chown nothing": lambda path: os.chown(path, -1, -1),
    "chmod": lambda path: os.chmod(path, os.stat(path).st_mode & 0o7777),
    "link": lambda path: os.link(path, f"{path}-linked"),
    "rename": lambda path: [
        error(os.rename, path, f"{path}-r"),
        error(os.rename, f"{path}-r", path),
    ],
    "utime": lambda path: os.utime(path),
    "read": read,
}


@check
def set_ids_are_cleared() -> Outcome:
    """Bits of set-user-id and set-group-id, after what others do with the file."""
    os.chmod(".", 0o777)
    outcome: Outcome = {}
    for who, user in (("root", 0), ("owner", USER)):
        tried = {}
        for number, (name, change) in enumerate(_CHANGES.items()):
            for bits in (0o6777, 0o2767):
                path = f"{number}-{user}-{bits:o}"
                write(path)
                os.chown(path, USER, USER)
                os.chmod(path, bits)
                tried[f"{name} by {who}, {bits:o}"] = change, path
        # One child for all, for they are most of what this takes.
        said = in_child(lambda t=tried: [error(*one) for one in t.values()], user)  # type: ignore[misc]
        for (name, (_, path)), ended in zip(tried.items(), said, strict=True):
            outcome[name] = [ended, mode(path)]
    write("given")
    os.chmod("given", 0o6755)
    outcome["given to another"] = [error(os.chown, "given", 5, 5), mode("given")]
    os.mkdir("directory")
    os.chmod("directory", 0o6755)
    outcome["a directory given"] = [error(os.chown, "directory", 5, 5), mode("directory")]
    return outcome


@check
def set_group_id_on_directories() -> Outcome:
    os.mkdir("shared")
    os.chown("shared", 0, 1234)
    os.chmod("shared", 0o2777)

    def made() -> list[str]:
        paths = [f"shared/{os.getuid()}-{kind}" for kind in "fdps"]
        write(paths[0], mode=0o2775)
        os.mkdir(paths[1], 0o755)
        os.mkfifo(paths[2])
        os.symlink("x", paths[3])
        return [owner(path) for path in paths]

    outcome: Outcome = {"by root": made(), "by a user": in_child(made, USER)}
    outcome["below"] = [error(os.mkdir, "shared/0-d/e"), owner("shared/0-d/e")]
    outcome["set by a user not of the group"] = in_child(
        lambda: [error(os.chmod, f"shared/{USER}-f", 0o2755), mode(f"shared/{USER}-f")], USER
    )
    outcome["of a member"] = in_child(
        lambda: [error(os.chmod, f"shared/{USER}-f", 0o2755), mode(f"shared/{USER}-f")],
        USER,
        (1234,),
    )
    return outcome


@check
def setting_times() -> Outcome:
    write("file")
    outcome: Outcome = {}
    for name, moment in {
        "nanoseconds": 1234567890_123456789,
        "the epoch": 0,
        "before it": -1_500_000_000,
        "1901": -(1 << 31) * 10**9,
        "2038": (1 << 31) * 10**9 + 1,
        "2106": (1 << 32) * 10**9 + 999_999_999,
        "2400": 13_569_465_600 * 10**9,
    }.items():
        said = error(os.utime, "file", ns=(moment + 1, moment))
        found = os.stat("file")
        outcome[name] = [said, found.st_mtime_ns - moment, found.st_atime_ns - moment]
    fixed = 10**18

    def set_to(path: str, access: int, change: int) -> list[object]:
        os.utime(path, ns=(fixed, fixed))
        times = (ctypes.c_long * 4)(5, access, 6, change)
        said = error(system, "utimensat", -100, path, times, 0)
        found = os.stat(path)
        return [said, *(_kind_of(ns, fixed) for ns in (found.st_atime_ns, found.st_mtime_ns))]

    outcome["omitted"] = set_to("file", _OMIT, _OMIT)
    outcome["now and omitted"] = set_to("file", _NOW, _OMIT)
    outcome["omitted and set"] = set_to("file", _OMIT, 7)
    outcome["nonsense"] = set_to("file", 10**9, 0)
    os.chown("file", USER, USER)
    os.chmod("file", 0o666)
    for who, user in (("owner", USER), ("another", OTHER)):
        outcome[f"now, by {who}"] = in_child(lambda: os.utime("file"), user)
        outcome[f"set, by {who}"] = in_child(lambda: os.utime("file", (1, 2)), user)
    os.chmod("file", 0o644)
    outcome["now, without write permission"] = in_child(lambda: os.utime("file"), OTHER)
    os.mkdir("d")
    outcome["a directory"] = [error(os.utime, "d", ns=(1, 2)), os.stat("d").st_mtime_ns]
    outcome["a fifo"] = [
        error(os.mkfifo, "p"),
        error(os.utime, "p", ns=(3, 4)),
        os.stat("p").st_mtime_ns,
    ]
    fd = os.open("file", os.O_RDONLY)
    outcome["by descriptor"] = [error(os.utime, fd, ns=(7, 8)), os.stat("file").st_mtime_ns]
    return outcome


def _kind_of(moment: int, fixed: int) -> object:
    if abs(moment - time.time_ns()) < 3600 * 10**9:
        return "now"
    return "kept" if moment == fixed else moment


_TICK = 0.02
"""Longer than a tick of the clock that files are dated with."""


@check
def times_that_follow() -> Outcome:
    """Which of a file's times, and its directory's, move on by what."""
    os.mkdir("d")
    write("d/file", b"x" * 10)
    write("d/other", b"x")
    fd = os.open("d/file", os.O_RDWR)
    steps: dict[str, Callable[[], object]] = {
        "write": lambda: os.write(fd, b"y"),
        "write nothing": lambda: os.write(fd, b""),
        "truncate": lambda: os.ftruncate(fd, 5),
        "truncate to the same": lambda: os.ftruncate(fd, 5),
        "truncate by path": lambda: os.truncate("d/file", 5),
        "allocate": lambda: os.posix_fallocate(fd, 0, 10),
        "chmod": lambda: os.chmod("d/file", 0o600),
        "chmod to the same": lambda: os.chmod("d/file", 0o600),
        "chown": lambda: os.chown("d/file", 1, 1),
        "link": lambda: os.link("d/file", "d/linked"),
        "unlink": lambda: os.unlink("d/linked"),
        "rename": lambda: os.rename("d/file", "d/moved"),
        "rename over": lambda: os.rename("d/moved", "d/other"),
        "rename back": lambda: os.rename("d/other", "d/file"),
        "attribute": lambda: os.setxattr("d/file", "user.a", b"b"),
        "mkdir beside": lambda: os.mkdir("d/sub"),
        "rmdir beside": lambda: os.rmdir("d/sub"),
        "symlink beside": lambda: os.symlink("x", "d/soft"),
        "mkfifo beside": lambda: os.mkfifo("d/fifo"),
        "list": lambda: len(os.listdir("d")),
        "stat": lambda: bool(os.stat("d/file")),
        "utime": lambda: os.utime("d/file"),
    }
    outcome: Outcome = {}
    for name, step in steps.items():
        before = os.fstat(fd), os.stat("d")
        time.sleep(_TICK)
        said = value(step)
        after = os.fstat(fd), os.stat("d")
        moved = [
            f"{what} {kind}"
            for what, old, new in zip(("file", "directory"), before, after, strict=True)
            for kind in ("mtime", "ctime")
            if getattr(new, f"st_{kind}_ns") > getattr(old, f"st_{kind}_ns")
        ]
        outcome[name] = [said, *moved]
    outcome["clock"] = abs(os.stat("d/file").st_mtime - time.time()) < 2
    return outcome


@check
def times_of_reading() -> Outcome:
    write("file")
    os.utime("file", ns=(10**18, 2 * 10**18))
    outcome: Outcome = {"read": [read("file"), os.stat("file").st_atime_ns > 10**18]}
    os.utime("file", ns=(10**18, 2 * 10**18))
    fd = os.open("file", os.O_RDONLY | os.O_NOATIME)
    outcome["without"] = [value(os.read, fd, 5), os.stat("file").st_atime_ns > 10**18]
    os.symlink("file", "soft")
    os.mkdir("d")
    os.utime("d", ns=(10**18, 2 * 10**18))
    outcome["listed"] = [os.listdir("d"), os.stat("d").st_atime_ns > 10**18]
    return outcome


class _Statx(ctypes.Structure):
    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("block", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("links", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("inode", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("times", ctypes.c_int64 * 8),
        ("rest", ctypes.c_uint64 * 20),
    )


_BASIC, _BIRTH = 0x7FF, 0x800


@check
def extended_stat() -> Outcome:
    write("file", b"x" * 5000)
    os.symlink("file", "soft")
    os.chown("file", 3, 4)
    found = _Statx()
    outcome: Outcome = {}
    for name, flags in (("file", 0), ("soft", 0), ("soft", 0x100), (".", 0x2000), ("file", 0x4000)):
        said = error(system, "statx", -100, name, flags, _BASIC, ctypes.byref(found))
        outcome[f"{name} {flags:x}"] = [
            said,
            f"{found.mode:o}",
            found.uid,
            found.gid,
            bool(found.mask & _BASIC == _BASIC),
        ]
    system("statx", -100, "file", 0, _BASIC | _BIRTH, ctypes.byref(found))
    ordinary = os.stat("file")
    outcome["as stat"] = (found.links, found.size, found.blocks, found.inode) == (
        ordinary.st_nlink,
        ordinary.st_size,
        ordinary.st_blocks,
        ordinary.st_ino,
    )
    outcome["birth"] = bool(found.mask & _BIRTH)
    outcome["blocks"] = [ordinary.st_blocks, ordinary.st_blksize]
    outcome["of nothing"] = error(system, "statx", -100, "no", 0, _BASIC, ctypes.byref(found))
    outcome["nonsense"] = error(system, "statx", -100, "file", 0x6000, 1, ctypes.byref(found))
    return outcome


@check
def identity() -> Outcome:
    """One device and one inode, however the file is looked at."""
    os.mkdir("d")
    write("d/file")
    here = os.stat("d/file")
    found = {
        "again": os.stat("d/file"),
        "by descriptor": os.fstat(os.open("d/file", os.O_RDONLY)),
        "by /proc": os.stat(f"/proc/self/fd/{os.open('d/file', os.O_RDWR)}"),
        "from its directory": os.stat("file", dir_fd=os.open("d", os.O_RDONLY)),
    }
    outcome: Outcome = {
        name: [each.st_ino == here.st_ino, each.st_dev == here.st_dev]
        for name, each in found.items()
    }
    outcome["device of the directory"] = os.stat("d").st_dev == here.st_dev
    outcome["in the list"] = [
        entry.inode() == os.stat(entry.path, follow_symlinks=False).st_ino
        for entry in os.scandir("d")
    ]
    outcome["to a child"] = in_child(lambda: os.stat("d/file").st_ino == here.st_ino)
    inodes = set()
    for number in range(300):
        write(f"many-{number}", b"")
        inodes.add(os.stat(f"many-{number}").st_ino)
    outcome["all different"] = len(inodes)
    for number in range(300):
        os.chmod(f"many-{number}", 0o600)
    outcome["and stay so"] = inodes == {os.stat(f"many-{number}").st_ino for number in range(300)}
    maps = _device_in_maps("d/file")
    outcome["in maps"] = [maps[0] == here.st_ino, maps[1] == here.st_dev]
    return outcome


def _device_in_maps(path: str) -> tuple[int, int]:
    """Inode and device of a mapping, as debuggers and fuser compare them."""
    import mmap

    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ), open("/proc/self/maps") as maps:
        for line in maps:
            words = line.split()
            if words[-1].endswith("/d/file"):
                major, minor = (int(word, 16) for word in words[3].split(":"))
                return int(words[4]), os.makedev(major, minor)
    return 0, 0
