"""Filesystems that a container mounts itself, over its files."""

import os
import shutil
import subprocess
from typing import Any

from tests.programs.checks.frame import (
    Outcome,
    check,
    error,
    in_child,
    mode,
    read,
    system,
    value,
    write,
)

_READ_ONLY, _REMOUNT, _BIND = 1, 32, 4096
_DETACH = 2


def _mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> str:
    return error(system, "mount", source, target, kind, flags, data)


def _unmount(target: str) -> str:
    return error(system, "umount2", target, _DETACH)


@check
def overlay() -> Outcome:
    """As builders of images do it in a container."""
    return _overlay("trusted", "")


@check
def overlay_with_attributes_of_users() -> Outcome:
    """As they do it without privileges."""
    return _overlay("user", ",userxattr")


def _overlay(attributes: str, more: str) -> Outcome:
    for name in ("lower/directory", "lower/late", "upper", "work", "merged"):
        os.makedirs(name)
    write("lower/file", b"lower")
    write("lower/removed")
    write("lower/directory/inside", b"inside")
    os.chown("lower/file", 5, 6)
    os.setxattr("lower/file", "user.a", b"kept")
    os.link("lower/file", "lower/linked")
    options = f"lowerdir=lower,upperdir=upper,workdir=work{more}"
    said = _mount("overlay", "merged", "overlay", data=options)
    return {"mounted": _used(attributes) if said == "ok" else said}


def _used(attributes: str) -> Outcome:
    inode = os.stat("merged/file").st_ino
    return {
        "read": read("merged/file"),
        "write": value(write, "merged/file", b"upper"),
        "copied up": value(read, "upper/file"),
        "below": read("lower/file"),
        "owner": [os.stat("merged/file").st_uid, value(os.getxattr, "merged/file", "user.a")],
        "same inode": os.stat("merged/file").st_ino == inode,
        "unlink": error(os.unlink, "merged/removed"),
        "whiteout": value(mode, "upper/removed"),
        "rmtree": value(shutil.rmtree, "merged/directory"),
        "made again": error(os.mkdir, "merged/directory"),
        "opaque": value(os.listdir, "merged/directory"),
        "mark": value(os.getxattr, "upper/directory", f"{attributes}.overlay.opaque"),
        "rename": value(os.rename, "merged/file", "merged/renamed"),
        "rename a lower directory": error(os.rename, "merged/late", "merged/later"),
        "create": error(write, "merged/new"),
        "temporary": error(os.open, "merged", os.O_TMPFILE | os.O_RDWR),
        "link": error(os.link, "merged/new", "merged/new-linked"),
        "exchange": error(system, "renameat2", -100, "merged/new", -100, "merged/renamed", 2),
        "list": sorted(os.listdir("merged")),
        "run": [shutil.copy("/bin/true", "merged/true"), subprocess.call("merged/true")],
        "unmount": _unmount("merged"),
    }


@check
def tmpfs_and_bind() -> Outcome:
    os.mkdir("memory")
    os.mkdir("bound")
    write("below", b"below")
    outcome: Outcome = {"tmpfs": _mount("tmpfs", "memory", "tmpfs", 0, "size=1m")}
    write("memory/file")
    outcome["other device"] = os.stat("memory").st_dev != os.stat(".").st_dev
    outcome["rename across"] = error(os.rename, "below", "memory/below")
    outcome["link across"] = error(os.link, "below", "memory/below")
    outcome["full"] = value(_filled, "memory/full")
    outcome["bind"] = _mount("memory", "bound", "", _BIND)
    outcome["bound"] = read("bound/file")
    outcome["rename between"] = error(os.rename, "memory/file", "bound/file2")
    outcome["busy"] = error(os.rmdir, "memory")
    outcome["move a mount point"] = error(os.rename, "memory", "moved")
    outcome["unmount"] = [_unmount("bound"), _unmount("moved"), _unmount("memory")]
    outcome["empty"] = os.listdir("memory") if os.path.exists("memory") else "moved"
    return outcome


def _filled(path: str) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    while True:
        os.write(fd, b"x" * 65536)


@check
def read_only() -> Outcome:
    os.mkdir("d")
    write("d/file")
    os.symlink("file", "d/soft")
    os.mkfifo("d/fifo")
    outcome: Outcome = {
        "bind": _mount("d", "d", "", _BIND),
        "read-only": _mount("", "d", "", _BIND | _REMOUNT | _READ_ONLY),
    }
    tries: dict[str, Any] = {
        "write": lambda: os.open("d/file", os.O_WRONLY),
        "read": lambda: os.close(os.open("d/file", os.O_RDONLY)),
        "fifo": lambda: os.open("d/fifo", os.O_RDWR),
        "create": lambda: write("d/new"),
        "create what is there": lambda: os.open("d/file", os.O_RDONLY | os.O_CREAT),
        "unlink": lambda: os.unlink("d/file"),
        "unlink nothing": lambda: os.unlink("d/nothing"),
        "mkdir": lambda: os.mkdir("d/sub"),
        "mkdir what is there": lambda: os.mkdir("d/file"),
        "rename": lambda: os.rename("d/file", "d/other"),
        "link": lambda: os.link("d/file", "d/other"),
        "chmod": lambda: os.chmod("d/file", 0o600),
        "chown": lambda: os.chown("d/file", 1, 1),
        "utime": lambda: os.utime("d/file"),
        "truncate": lambda: os.truncate("d/file", 1),
        "attribute": lambda: os.setxattr("d/file", "user.a", b"b"),
        "access": lambda: system("access", "d/file", os.W_OK),
    }
    outcome |= {name: error(call) for name, call in tries.items()}
    outcome["statfs"] = bool(os.statvfs("d").f_flag & os.ST_RDONLY)
    outcome["unmount"] = _unmount("d")
    outcome["then"] = error(os.open, "d/file", os.O_WRONLY)
    return outcome


@check
def another_root() -> Outcome:
    os.makedirs("root/etc")
    write("root/etc/name", b"inside")

    def inside() -> list[str]:
        os.chroot("root")
        os.chdir("/")
        return [read("/etc/name"), read("/../../etc/name"), ",".join(os.listdir("/"))]

    return {"chroot": in_child(inside), "outside": error(os.stat, "/etc/name")}
