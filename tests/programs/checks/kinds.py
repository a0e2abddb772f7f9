"""Every operation on every kind of file: which error comes of which (the idea of pjdfstest)."""

import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from tests.programs.checks.frame import Outcome, check, error, mode, system, write

_RENAME_NOREPLACE, _RENAME_EXCHANGE, _RENAME_WHITEOUT = 1, 2, 4
_CREAT = os.O_CREAT | os.O_WRONLY


def _file(path: str) -> None:
    write(path, b"some content")


def _full(path: str) -> None:
    os.mkdir(path)
    write(f"{path}/inside")


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def _to_file(path: str) -> None:
    write(f"{path}-target")
    os.symlink(f"{os.path.basename(path)}-target", path)


def _to_directory(path: str) -> None:
    os.mkdir(f"{path}-target")
    os.symlink(f"{os.path.basename(path)}-target", path)


def _loop(path: str) -> None:
    os.symlink(os.path.basename(path), path)


def _device(path: str) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


KINDS: dict[str, Callable[[str], Any]] = {
    "file": _file,
    "directory": os.mkdir,
    "full directory": _full,
    "fifo": os.mkfifo,
    "socket": _socket,
    "device": _device,
    "link to a file": _to_file,
    "link to a directory": _to_directory,
    "dangling link": lambda path: os.symlink("nowhere", path),
    "link to itself": _loop,
    "missing": lambda path: None,
}


def _opened(flags: int) -> Callable[[str], None]:
    return lambda path: os.close(os.open(path, flags | os.O_NONBLOCK, 0o644))


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path)


def _into(path: str) -> None:
    os.mkdir(f"{path}-directory")
    os.rename(f"{path}-directory", path)


def _over(path: str) -> None:
    write(f"{path}-other")
    os.rename(f"{path}-other", path)


def _linked_over(path: str) -> None:
    write(f"{path}-other")
    os.link(f"{path}-other", path)


def _renamed(path: str, flags: int, source: str) -> None:
    system("renameat2", -100, source, -100, path, flags)


def _exchanged(path: str) -> None:
    write(f"{path}-other")
    _renamed(path, _RENAME_EXCHANGE, f"{path}-other")


def _no_replace(path: str) -> None:
    write(f"{path}-other")
    _renamed(path, _RENAME_NOREPLACE, f"{path}-other")


def _whiteout(path: str) -> None:
    _renamed(f"{path}-away", _RENAME_WHITEOUT, path)


def _truncated(path: str) -> None:
    os.truncate(path, 3)


def _watched(path: str) -> None:
    fd = system("inotify_init1", os.O_CLOEXEC)
    try:
        system("inotify_add_watch", fd, path, 0xFFF)
    finally:
        os.close(fd)


OPERATIONS: dict[str, Callable[[str], Any]] = {
    "open to read": _opened(os.O_RDONLY),
    "open to write": _opened(os.O_WRONLY),
    "open for both": _opened(os.O_RDWR),
    "open, create": _opened(_CREAT),
    "open, create, exclusive": _opened(_CREAT | os.O_EXCL),
    "open, truncate": _opened(os.O_WRONLY | os.O_TRUNC),
    "open, directory": _opened(os.O_DIRECTORY),
    "open, not following": _opened(os.O_NOFOLLOW),
    "open, path": _opened(os.O_PATH),
    "open, path, not following": _opened(os.O_PATH | os.O_NOFOLLOW),
    "open, temporary": _opened(os.O_TMPFILE | os.O_RDWR),
    "open below it": lambda path: _opened(_CREAT)(f"{path}/below"),
    "open with a slash": lambda path: _opened(os.O_RDONLY)(f"{path}/"),
    "stat": os.stat,
    "lstat": os.lstat,
    "statfs": os.statvfs,
    "access": lambda path: os.stat(path) and system("access", path, os.R_OK | os.W_OK),
    "unlink": os.unlink,
    "unlink with a slash": lambda path: os.unlink(f"{path}/"),
    "rmdir": os.rmdir,
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": _device,
    "bind": _socket,
    "connect": _connect,
    "symlink": lambda path: os.symlink("target", path),
    "readlink": os.readlink,
    "link from it": lambda path: os.link(path, f"{path}-linked", follow_symlinks=False),
    "link from its target": lambda path: system("linkat", -100, path, -100, f"{path}-ed", 0x400),
    "link to it": _linked_over,
    "rename away": lambda path: os.rename(path, f"{path}-renamed"),
    "rename a file over it": _over,
    "rename a directory over it": _into,
    "rename, exchanging": _exchanged,
    "rename, not replacing": _no_replace,
    "rename, leaving a whiteout": _whiteout,
    "rename into itself": lambda path: os.rename(path, f"{path}/below"),
    "chmod": lambda path: os.chmod(path, 0o640),
    "chown": lambda path: os.chown(path, 5, 6),
    "lchown": lambda path: os.lchown(path, 5, 6),
    "utime": lambda path: os.utime(path, (1, 2)),
    "utime of a link": lambda path: os.utime(path, (1, 2), follow_symlinks=False),
    "truncate": _truncated,
    "chdir": os.chdir,
    "list": os.listdir,
    "set attribute": lambda path: os.setxattr(path, "user.a", b"value"),
    "set attribute of a link": lambda path: os.setxattr(
        path, "user.a", b"value", follow_symlinks=False
    ),
    "get attribute": lambda path: os.getxattr(path, "user.a"),
    "list attributes": os.listxattr,
    "watch": _watched,
    "execute": lambda path: os.execv(path, ["it"]),
}
"""On a fresh file of the kind. None of them succeeds in executing it."""


@check
def every_operation_on_every_kind() -> Outcome:
    here = os.getcwd()
    outcome: Outcome = {}
    for number, (operation, call) in enumerate(OPERATIONS.items()):
        for kind, make in KINDS.items():
            directory = f"{here}/{number}-{kind}"
            os.mkdir(directory)
            os.chdir(directory)
            make("it")
            said = error(call, "it")
            os.chdir(directory)
            outcome[f"{operation}: {kind}"] = f"{said} {_left()}"
    return outcome


def _left() -> str:
    """What is there afterwards."""
    return " ".join(f"{name}={mode(name)}" for name in sorted(os.listdir(".")))
