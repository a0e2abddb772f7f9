"""Unix sockets in another user's name (unix(7)): for whom a server takes its client."""

import array
import os
import socket
import struct
from collections.abc import Sequence

from tapwright.linux import libc, mounts

# Of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
_SETGROUPS, _SETRESUID, _SETRESGID, _PRCTL = 116, 117, 119, 157
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_SCM_CREDENTIALS = 2


def connect_as(
    connection: socket.socket, path: str, uid: int, gid: int, groups: Sequence[int]
) -> None:
    """Connect to the socket at a path as a user, whom its server sees (SO_PEERCRED), and whose
    rights count. The connection does not block. Raises OSError."""

    def connect() -> None:
        # The C library would change all threads. This one ends with what it has become.
        libc.syscall(_SETGROUPS, len(groups), array.array("I", groups).tobytes())
        libc.syscall(_SETRESGID, gid, gid, gid)
        libc.syscall(_SETRESUID, uid, uid, uid)
        connection.connect(path)

    was_dumpable = libc.syscall(_PRCTL, _PR_GET_DUMPABLE, 0, 0, 0, 0)
    try:
        mounts.in_thread(connect)
    finally:
        # The kernel has changed it for the process, in whose /proc/PID others could not look.
        libc.prctl(_PR_SET_DUMPABLE, was_dumpable)


def sender(uid: int, gid: int) -> tuple[int, int, bytes]:
    """The ancillary message (SCM_CREDENTIALS) that sends a datagram in a user's name, which takes
    root's rights. The pid is this process's."""
    return socket.SOL_SOCKET, _SCM_CREDENTIALS, struct.pack("=iII", os.getpid(), uid, gid)
