"""Who may do what: modes of files and directories, sticky ones, set-user-id programs."""

import os
import shutil
import socket
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
    write,
)

_GROUP = 5000


def _connected(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path)


_ON_FILES: dict[str, Callable[[str], object]] = {
    "read": read,
    "write": lambda path: os.open(path, os.O_WRONLY),
    "both": lambda path: os.open(path, os.O_RDWR),
    "truncate": lambda path: os.truncate(path, 1),
    "execute": lambda path: os.execv(path, [path]),
    "access to read": lambda path: system("access", path, os.R_OK),
    "access to write": lambda path: system("access", path, os.W_OK),
    "access to execute": lambda path: system("access", path, os.X_OK),
    "stat": os.stat,
    "chmod": lambda path: os.chmod(path, os.stat(path).st_mode & 0o7777),
    "chown": lambda path: os.chown(path, -1, os.getgid()),
    "utime": lambda path: os.utime(path),
    "set attribute": lambda path: os.setxattr(path, "user.a", b"b"),
    "get attribute": lambda path: os.getxattr(path, "user.b"),
    "link": lambda path: os.link(path, f"{path}-linked-{os.getuid()}"),
}
_IN_DIRECTORIES: dict[str, Callable[[str], object]] = {
    "list": os.listdir,
    "stat in it": lambda path: os.stat(f"{path}/theirs"),
    "stat of nothing": lambda path: os.stat(f"{path}/nothing"),
    "read in it": lambda path: read(f"{path}/theirs"),
    "write in it": lambda path: os.open(f"{path}/theirs", os.O_WRONLY),
    "create": lambda path: write(f"{path}/new-{os.getuid()}"),
    "mkdir": lambda path: os.mkdir(f"{path}/sub-{os.getuid()}"),
    "symlink": lambda path: os.symlink("x", f"{path}/soft-{os.getuid()}"),
    "rename": lambda path: os.rename(f"{path}/theirs", f"{path}/theirs2"),
    "rename back": lambda path: os.rename(f"{path}/theirs2", f"{path}/theirs"),
    "rename out": lambda path: os.rename(f"{path}/theirs", f"theirs-{os.getuid()}"),
    "unlink": lambda path: os.unlink(f"{path}/theirs"),
    "rmdir": lambda path: os.rmdir(f"{path}/empty"),
    "chdir": os.chdir,
    "temporary": lambda path: os.open(path, os.O_TMPFILE | os.O_RDWR),
    "open": lambda path: os.open(path, os.O_RDONLY),
    "path": lambda path: os.open(path, os.O_PATH),
}
_WHO = {"owner": (USER, ()), "member": (OTHER, (_GROUP,)), "another": (OTHER, ())}


@check
def files_by_mode() -> Outcome:
    """All operations by the owner, a member of the group, and another; also by root."""
    os.chmod(".", 0o777)
    paths = []
    for bits in (0o000, 0o400, 0o200, 0o100, 0o644, 0o070, 0o007, 0o060, 0o666, 0o444):
        paths.append(path := f"{bits:03o}")
        write(path, b"#!/bin/true\n")
        os.setxattr(path, "user.b", b"c")
        os.chown(path, USER, _GROUP)
        os.chmod(path, bits)
    return {
        who: in_child(lambda: {path: _all_of(_ON_FILES, path) for path in paths}, user, groups)
        for who, (user, groups) in {**_WHO, "root": (0, ())}.items()
    }


def _all_of(operations: dict[str, Callable[[str], object]], path: str) -> dict[str, str]:
    found = {}
    for name, call in operations.items():
        if name == "execute":
            found[name] = _executed(path)  # in a child, for it would not come back
        else:
            found[name] = error(call, path)
    return found


def _executed(path: str) -> str:
    pid = os.fork()
    if pid == 0:
        said = error(os.execv, path, [path])
        os._exit({"EACCES": 3, "ENOENT": 4}.get(said, 5))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return {0: "ok", 3: "EACCES", 4: "ENOENT"}.get(code, f"exit {code}")


@check
def directories_by_mode() -> Outcome:
    os.chmod(".", 0o777)
    outcome: Outcome = {}
    tried = {name: call for name, call in _IN_DIRECTORIES.items() if name != "chdir"}
    for who, (user, groups) in _WHO.items():
        paths = []
        for bits in (0o000, 0o400, 0o100, 0o300, 0o500, 0o700, 0o770, 0o707, 0o711, 0o1777):
            paths.append(path := f"{bits:o}-{who}")
            os.mkdir(path)
            write(f"{path}/theirs")
            os.mkdir(f"{path}/empty")
            os.chown(path, USER, _GROUP)
            os.chmod(path, bits)
        outcome[who] = in_child(
            lambda of=paths: {path: _all_of(tried, path) for path in of},  # type: ignore[misc]
            user,
            groups,
        )
    return outcome


@check
def sticky_directories() -> Outcome:
    os.mkdir("tmp")
    os.chmod("tmp", 0o1777)
    for name, user in (("mine", USER), ("theirs", OTHER), ("roots", 0)):
        write(f"tmp/{name}")
        os.chown(f"tmp/{name}", user, user)
        os.chmod(f"tmp/{name}", 0o666)
        os.mkdir(f"tmp/{name}-d")
        os.chown(f"tmp/{name}-d", user, user)

    def tried() -> dict[str, list[str]]:
        found = {}
        for name in ("theirs", "roots", "mine"):
            write(f"tmp/own-{name}")
            found[name] = [
                error(os.rename, f"tmp/{name}", f"tmp/{name}2"),
                error(os.rename, f"tmp/own-{name}", f"tmp/{name}"),
                error(os.unlink, f"tmp/{name}"),
                error(os.rmdir, f"tmp/{name}-d"),
                error(os.link, f"tmp/{name}", f"tmp/{name}-l"),
            ]
        return found

    outcome: Outcome = {"a user": in_child(tried, USER)}
    os.chown("tmp", OTHER, OTHER)
    outcome["its owner"] = in_child(lambda: os.unlink("tmp/roots"), OTHER)
    os.chmod("tmp", 0o3777)
    outcome["with set-group-id"] = mode("tmp")
    return outcome


@check
def changing_what_is_anothers() -> Outcome:
    write("file")
    os.chown("file", USER, USER)

    def by_owner() -> list[str]:
        return [
            error(os.chmod, "file", 0o755),
            error(os.chown, "file", OTHER, -1),
            error(os.chown, "file", -1, 7),
            error(os.chown, "file", -1, 6),
            owner("file"),
            error(os.chown, "file", USER, USER),
            owner("file"),
        ]

    def by_another() -> list[str]:
        return [
            error(os.chmod, "file", 0o777),
            error(os.chown, "file", OTHER, -1),
            error(os.chown, "file", -1, OTHER),
            error(os.chown, "file", -1, -1),
            error(os.setxattr, "file", "user.a", b"b"),
            error(os.unlink, "file"),
        ]

    return {
        "owner": in_child(by_owner, USER, groups=(7,)),
        "another": in_child(by_another, OTHER),
        "then": owner("file"),
    }


@check
def running_as_its_owner() -> Outcome:
    """Set-user-id and set-group-id programs. By itself, `id` tells of the real and the effective
    user and group."""
    outcome: Outcome = {}
    os.chmod(".", 0o755)
    for bits in (0o755, 0o4755, 0o2755, 0o6755, 0o4700):
        path = f"./id-{bits:o}"
        shutil.copy("/usr/bin/id", path)
        os.chown(path, USER, _GROUP)
        os.chmod(path, bits)
        outcome[f"{bits:o}"] = in_child(lambda p=path: _said([p]), OTHER)  # type: ignore[misc]
    shutil.copy("/usr/bin/id", "./script-less")
    write("script", b"#!./id-4755 -u\n", 0o755)
    os.chmod("script", 0o6755)
    outcome["script"] = in_child(lambda: _said(["./script"]), OTHER)
    return outcome


def _said(command: list[str]) -> str:
    """As subprocess, that costs less."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        said = error(os.execv, command[0], command)
        os.write(1, said.encode())
        os._exit(1)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said.strip()


@check
def without_privileges_of_root() -> Outcome:
    """Root that has given up its capabilities over files is a user as others."""
    write("file")
    os.chown("file", USER, USER)
    os.chmod("file", 0o600)
    os.mkdir("directory")
    os.chown("directory", USER, USER)
    os.chmod("directory", 0o700)

    def tried() -> list[str]:
        # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_CHOWN
        import ctypes

        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        sets = (ctypes.c_uint32 * 6)()
        system("capget", header, sets)
        for number in (0, 1, 2, 3):
            sets[0] &= ~(1 << number)
        system("capset", header, sets)
        return [
            error(read, "file"),
            error(os.listdir, "directory"),
            error(write, "directory/new"),
            error(os.chmod, "file", 0o777),
            error(os.chown, "file", 0, 0),
            error(os.unlink, "file"),
        ]

    return {"root": in_child(tried)}
