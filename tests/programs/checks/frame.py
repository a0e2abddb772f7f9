"""What checks are made of."""

import ctypes
import errno
import json
import os
import signal
import struct
from collections.abc import Callable
from typing import Any

Outcome = dict[str, Any]
"""What was tried → what became of it: plain data that JSON can carry."""

ENDED = "this check"
"""The key, alone, of a check that did not come to its end."""

Check = Callable[[], Outcome]
CHECKS: dict[str, Check] = {}

USER, OTHER = 1000, 1001
"""Users (and groups of the same number) without privileges."""

_libc = ctypes.CDLL(None, use_errno=True)
_CHILD_SECONDS = 30


def check(function: Check) -> Check:
    """Enter a function into the list as `module.function`."""
    module = function.__module__.rpartition(".")[2]
    CHECKS[f"{module}.{function.__name__}"] = function
    return function


def error(call: Callable[..., Any], *words: Any, **named: Any) -> str:
    """ "ok", or the name of the error; what the call returns does not matter."""
    try:
        call(*words, **named)
    except OSError as failed:
        return errno.errorcode[failed.errno or 0]
    return "ok"


def value(call: Callable[..., Any], *words: Any, **named: Any) -> Any:
    """What the call returns, or the name of the error."""
    try:
        found = call(*words, **named)
    except OSError as failed:
        return errno.errorcode[failed.errno or 0]
    if isinstance(found, bytes):
        return found.decode("latin-1")
    return "ok" if found is None else found


def system(name: str, *words: Any) -> int:
    """A function of the C library that os does not have. Raises OSError."""
    found: int = getattr(_libc, name)(*(_argument(word) for word in words))
    if found == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return found


def _argument(word: Any) -> Any:
    if isinstance(word, str):
        return word.encode()
    # Offsets and lengths of files are 64 bits wide; descriptors and flags take no harm from it.
    return ctypes.c_long(word) if isinstance(word, int) else word


def in_child(
    call: Callable[[], Any], user: int = 0, groups: tuple[int, ...] = (), umask: int = -1
) -> Any:
    """What the call returns (or the name of its error) in a process of its own, as this user.

    "killed by SIGNAL" where it was, also when it took too long.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(call, user, groups, umask, writer)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else json.loads(said)


def _be_child(
    call: Callable[[], Any], user: int, groups: tuple[int, ...], umask: int, writer: int
) -> None:
    said: Any = "raised nothing that is known"
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_CHILD_SECONDS)
        if user:
            become(user, groups)
        if umask >= 0:
            os.umask(umask)
        said = value(call)
    except BaseException as failed:
        said = f"{type(failed).__name__}: {failed}"
    finally:
        os.write(writer, json.dumps(said).encode())
        os._exit(0)


def become(user: int, groups: tuple[int, ...] = ()) -> None:
    os.setgroups(list(groups))
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def write(path: str, content: bytes | str = b"content", mode: int = 0o644) -> None:
    """A file with this content."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, content.encode() if isinstance(content, str) else content)
    os.close(fd)


def read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode("latin-1")


def mode(path: str) -> str:
    """Its kind and mode, as digits."""
    return f"{os.lstat(path).st_mode:o}"


def owner(path: str) -> str:
    found = os.lstat(path)
    return f"{found.st_uid}:{found.st_gid} {found.st_mode & 0o7777:o}"


def interval(kind: int, start: int = 0, length: int = 0) -> bytes:
    """struct flock: a lock of this kind from `start`; of length 0, up to the end of all files."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def link_of(fd: int, path: str) -> None:
    """A name for an open file, as open(2) describes it for O_TMPFILE; os.link does not follow
    links."""
    system("linkat", -100, f"/proc/self/fd/{fd}", -100, path, 0x400)
