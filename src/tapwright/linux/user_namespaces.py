"""User namespaces (user_namespaces(7)) without a program in them, for id-mapped mounts."""

import os
from collections.abc import Iterable

from tapwright.linux import libc
from tapwright.linux.files import closing

Mapping = tuple[int, int, int]
"""(first id in the namespace, first id outside of it, how many), as in /proc/PID/uid_map."""


def nameless(users: Iterable[Mapping], groups: Iterable[Mapping]) -> int:
    """Make a user namespace with these mappings, and return its descriptor, with which it ends.
    Raises OSError."""
    ready, tell = os.pipe2(os.O_CLOEXEC)
    wait, release = os.pipe2(os.O_CLOEXEC)
    # Only a process without threads can make one, and another one has to write its mappings.
    pid = os.fork()
    if not pid:
        try:
            os.close(release)
            libc.unshare(libc.CLONE_NEWUSER)
            os.write(tell, b"\n")
            os.read(wait, 1)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        if not os.read(ready, 1):
            raise OSError("the kernel makes no user namespace (user.max_user_namespaces)")
        for kind, mappings in (("uid", users), ("gid", groups)):
            _write(f"/proc/{pid}/{kind}_map", mappings)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (ready, wait, release):
            os.close(fd)
        os.waitpid(pid, 0)


def _write(path: str, mappings: Iterable[Mapping]) -> None:
    text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in mappings)
    # All in one call, the only one that the kernel takes.
    with closing(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as fd:
        os.write(fd, text.encode())
