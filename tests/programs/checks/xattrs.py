"""Extended attributes, access control lists, capabilities of files."""

import errno
import os
import shutil
import struct
from typing import Any

from tests.programs.checks.frame import (
    OTHER,
    USER,
    Outcome,
    check,
    error,
    in_child,
    mode,
    read,
    value,
    write,
)

_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_CAPABILITY = "security.capability"
_UNDEFINED = 0xFFFFFFFF
# virtiofsd 1.13 ends by a name that is no UTF-8.
_ANY_NAME = os.environ.get("CHECKS_ANY_NAME", "")
_OWNER, _USER, _GROUP_OWNER, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32


@check
def attributes_of_users() -> Outcome:
    write("file")
    os.mkdir("d")
    os.symlink("file", "soft")
    os.mkfifo("fifo")
    outcome: Outcome = {
        "none": value(os.getxattr, "file", "user.a"),
        "listed at first": sorted(os.listxattr("file")),
        "set": error(os.setxattr, "file", "user.a", b"one"),
        "got": value(os.getxattr, "file", "user.a"),
        "create what is there": error(os.setxattr, "file", "user.a", b"2", os.XATTR_CREATE),
        "replace what is not": error(os.setxattr, "file", "user.b", b"2", os.XATTR_REPLACE),
        "replace": error(os.setxattr, "file", "user.a", b"three\0bytes", os.XATTR_REPLACE),
        "replaced": value(os.getxattr, "file", "user.a"),
        "empty": [error(os.setxattr, "file", "user.e", b""), value(os.getxattr, "file", "user.e")],
        "directory": error(os.setxattr, "d", "user.a", b"d"),
        "through a link": value(os.getxattr, "soft", "user.a"),
        "of a link": error(os.setxattr, "soft", "user.a", b"x", follow_symlinks=False),
        "got of a link": error(os.getxattr, "soft", "user.a", follow_symlinks=False),
        "of a fifo": error(os.setxattr, "fifo", "user.a", b"x"),
        "listed": sorted(os.listxattr("file")),
        "removed": error(os.removexattr, "file", "user.a"),
        "removed again": error(os.removexattr, "file", "user.a"),
        "listed then": sorted(os.listxattr("file")),
    }
    os.setxattr("d", "user.kept", b"k")
    os.rename("d", "d2")
    outcome["kept by rename"] = value(os.getxattr, "d2", "user.kept")
    os.link("file", "linked")
    outcome["of all names"] = value(os.getxattr, "linked", "user.e")
    return outcome


@check
def names_and_sizes_of_attributes() -> Outcome:
    write("file")
    outcome: Outcome = {}
    for length in (1, 200, 255, 256, 300):
        name = f"user.{'n' * (length - 5)}" if length > 5 else "u" * length
        outcome[f"name of {length}"] = error(os.setxattr, "file", name, b"v")
    for size in (1, 100, 1000, 3000):
        write(f"f{size}")
        outcome[f"value of {size}"] = [
            error(os.setxattr, f"f{size}", "user.v", b"v" * size),
            len(value(os.getxattr, f"f{size}", "user.v")),
        ]
    for size in (5000, 65536, 65537):
        outcome[f"value of {size}"] = error(os.setxattr, "file", "user.v", b"v" * size)
    write("many")
    outcome["many"] = [error(os.setxattr, "many", f"user.{n}", b"x" * 20) for n in range(30)]
    outcome["all listed"] = len(os.listxattr("many"))
    for namespace in ("nothing.a", "user.", "user", "", "system.other", "trusted.", "security."):
        outcome[f"name {namespace!r}"] = error(os.setxattr, "file", namespace, b"x")
    if _ANY_NAME:
        os.setxattr("file", b"user.\xff\xfe", b"x")
        outcome["odd"] = value(os.getxattr, "file", b"user.\xff\xfe")
    return outcome


@check
def attributes_of_the_system() -> Outcome:
    write("file")
    os.chown("file", USER, USER)
    os.symlink("file", "soft")
    outcome: Outcome = {
        "trusted": error(os.setxattr, "file", "trusted.a", b"t"),
        "trusted of a link": error(os.setxattr, "soft", "trusted.a", b"t", follow_symlinks=False),
        "security": error(os.setxattr, "file", "security.other", b"s"),
        "got": [
            value(os.getxattr, "file", "trusted.a"),
            value(os.getxattr, "file", "security.other"),
        ],
        "listed": sorted(os.listxattr("file")),
        "overlay's": error(os.setxattr, "file", "trusted.overlay.opaque", b"y"),
        "virtiofs's": error(os.setxattr, "file", "user.virtiofs.a", b"y"),
    }

    def by_user() -> list[Any]:
        return [
            sorted(os.listxattr("file")),
            value(os.getxattr, "file", "trusted.a"),
            error(os.setxattr, "file", "trusted.b", b"t"),
            value(os.getxattr, "file", "security.other"),
            error(os.setxattr, "file", "security.other", b"t"),
            error(os.setxattr, "file", "user.mine", b"t"),
        ]

    outcome["by its owner"] = in_child(by_user, USER)
    os.chmod("file", 0o600)
    outcome["by another"] = in_child(by_user, OTHER)
    return outcome


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """(tag, permissions, id); acl(5), linux/posix_acl_xattr.h."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _entries(path: str, name: str) -> Any:
    said = value(os.getxattr, path, name)
    if said in errno.errorcode.values():
        return said
    return [list(entry) for entry in struct.iter_unpack("<HHI", said[4:].encode("latin-1"))]


def _shared(permissions: int, mask: int = 7) -> bytes:
    """For its owner all, for USER these, for others nothing."""
    return _acl(
        (_OWNER, 7, _UNDEFINED),
        (_USER, permissions, USER),
        (_GROUP_OWNER, 0, _UNDEFINED),
        (_MASK, mask, _UNDEFINED),
        (_OTHER, 0, _UNDEFINED),
    )


@check
def access_control_lists() -> Outcome:
    write("file", b"content", 0o600)
    outcome: Outcome = {"none": _entries("file", _ACCESS)}
    outcome["before"] = in_child(lambda: read("file"), USER)
    outcome["set"] = error(os.setxattr, "file", _ACCESS, _shared(4))
    outcome["got"] = _entries("file", _ACCESS)
    outcome["mode"] = mode("file")
    outcome["read"] = [in_child(lambda: read("file"), user) for user in (USER, OTHER)]
    outcome["write"] = in_child(lambda: os.open("file", os.O_WRONLY), USER)
    os.chmod("file", 0o700)
    outcome["mask by chmod"] = [_entries("file", _ACCESS), in_child(lambda: read("file"), USER)]
    os.chmod("file", 0o770)
    outcome["and back"] = in_child(lambda: read("file"), USER)
    outcome["plain list"] = error(
        os.setxattr,
        "file",
        _ACCESS,
        _acl((_OWNER, 6, _UNDEFINED), (_GROUP_OWNER, 4, _UNDEFINED), (_OTHER, 4, _UNDEFINED)),
    )
    outcome["is a mode"] = [mode("file"), _entries("file", _ACCESS)]
    outcome["incomplete"] = error(os.setxattr, "file", _ACCESS, _acl((_OWNER, 7, _UNDEFINED)))
    outcome["garbage"] = error(os.setxattr, "file", _ACCESS, b"garbage!")
    outcome["default of a file"] = error(os.setxattr, "file", _DEFAULT, _shared(4))
    outcome["removed"] = [error(os.removexattr, "file", _ACCESS), mode("file")]
    outcome["by another"] = in_child(lambda: os.setxattr("file", _ACCESS, _shared(7)), OTHER)
    os.setxattr("file", _ACCESS, _shared(6))
    outcome["listed"] = sorted(os.listxattr("file"))
    shutil.copy2("file", "copy")
    outcome["copied"] = _entries("copy", _ACCESS)
    return outcome


@check
def inherited_access_control_lists() -> Outcome:
    os.mkdir("d", 0o755)
    outcome: Outcome = {"set": error(os.setxattr, "d", _DEFAULT, _shared(6))}
    outcome["got"] = _entries("d", _DEFAULT)
    for mask in (0, 0o077):

        def made(mask: int = mask) -> list[Any]:
            write(f"d/f{mask}", mode=0o666)
            os.mkdir(f"d/d{mask}")
            os.mkfifo(f"d/p{mask}")
            os.symlink("x", f"d/s{mask}")
            return [
                [mode(f"d/{kind}{mask}"), _entries(f"d/{kind}{mask}", _ACCESS)] for kind in "fdp"
            ]

        outcome[f"umask {mask:o}"] = in_child(made, umask=mask)
    outcome["of the directory in it"] = _entries("d/d0", _DEFAULT)
    outcome["used"] = in_child(lambda: write("d/f0", b"x"), USER)
    outcome["temporary"] = value(
        lambda: f"{os.fstat(os.open('d', os.O_TMPFILE | os.O_RDWR, 0o666)).st_mode:o}"
    )
    outcome["removed"] = [error(os.removexattr, "d", _DEFAULT), _entries("d", _DEFAULT)]
    return outcome


def _capability(*numbers: int) -> bytes:
    """VFS_CAP_REVISION_2, effective (linux/capability.h)."""
    permitted = sum(1 << number for number in numbers)
    return struct.pack("<IIIII", 0x02000001, permitted, 0, 0, 0)


_BIND_SERVICE = 10


@check
def capabilities_of_files() -> Outcome:
    os.chmod(".", 0o755)
    shutil.copy("/bin/cat", "cat")
    os.chmod("cat", 0o755)
    outcome: Outcome = {"set": error(os.setxattr, "cat", _CAPABILITY, _capability(_BIND_SERVICE))}
    outcome["got"] = value(os.getxattr, "cat", _CAPABILITY)
    outcome["of a user"] = in_child(_effective, USER)
    outcome["by a user"] = in_child(
        lambda: os.setxattr("cat", _CAPABILITY, _capability(_BIND_SERVICE)), USER
    )
    outcome["by the list"] = sorted(os.listxattr("cat"))
    os.link("cat", "other-cat")
    outcome["of its link"] = value(os.getxattr, "other-cat", _CAPABILITY)
    outcome["nonsense"] = error(os.setxattr, "cat", _CAPABILITY, b"nonsense")
    outcome["removed by write"] = [
        os.write(os.open("cat", os.O_WRONLY | os.O_APPEND), b"x"),
        value(os.getxattr, "cat", _CAPABILITY),
    ]
    os.setxattr("cat", _CAPABILITY, _capability(_BIND_SERVICE))
    outcome["removed by chown"] = [
        error(os.chown, "cat", USER, USER),
        value(os.getxattr, "cat", _CAPABILITY),
    ]
    os.setxattr("cat", _CAPABILITY, _capability(_BIND_SERVICE))
    outcome["removed by truncate"] = [
        error(os.truncate, "cat", 5),
        value(os.getxattr, "cat", _CAPABILITY),
    ]
    outcome["kept by chmod"] = [
        error(os.setxattr, "cat", _CAPABILITY, _capability(_BIND_SERVICE)),
        error(os.chmod, "cat", 0o700),
        value(os.getxattr, "cat", _CAPABILITY),
    ]
    outcome["removed"] = [
        error(os.removexattr, "cat", _CAPABILITY),
        error(os.removexattr, "cat", _CAPABILITY),
    ]
    return outcome


def _effective() -> str:
    """The capabilities of a copy of cat, from the kernel."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.dup2(writer, 1)
        os.execv("./cat", ["cat", "/proc/self/status"])
    os.close(writer)
    with open(reader) as file:
        lines = file.read().splitlines()
    os.waitpid(pid, 0)
    return next((line for line in lines if line.startswith("CapEff")), "no status")
