"""Asks a sandbox's own supervisor to delete it.

The supervisor has loaded all modules for that; loading them would take a command most of its time.
If the supervisor has died, does not answer or fails, `lifecycle.delete` takes back the rest by the
journal. Imports little, because verbs of the OCI runtime call this.
"""

import os
import select
import socket

from tapwright.linux import filelock
from tapwright.sandbox import environment, wire
from tapwright.state import supervisors

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | os.PathLike[str]

REQUEST = "delete"
"""With it come stderr and the environment of the process that asks, for plugins. There is no
answer: the supervisor hangs up, and ends when the sandbox is deleted."""

_STDERR = 2
_ANSWER_SECONDS = 2.0


def is_by_supervisor(directory: "Path") -> bool:
    """Ask the supervisor to delete the sandbox; return whether it did, and has ended.

    A supervisor that takes long has locked the directory, so the caller can wait for the lock. This
    does not ask when the directory is locked already: then the sandbox is being deleted.
    """
    pid = supervisors.pid_of(directory)
    try:
        pidfd = os.pidfd_open(pid or 0)
    except OSError:
        return False  # the supervisor has ended
    try:
        return (
            supervisors.is_it(directory, pid or 0)
            and not filelock.is_held(directory)
            and _is_done(directory, pidfd)
            and not os.path.exists(directory)
        )
    except OSError:
        return False  # it takes no requests yet, or no more
    finally:
        os.close(pidfd)


def ask(directory: "Path") -> socket.socket:
    """Ask the supervisor, and do not wait. Raises OSError."""
    connection = wire.connected(directory, _ANSWER_SECONDS)
    try:
        with environment.handed_over() as ours:
            wire.send(connection, {"op": REQUEST}, [_STDERR, ours])
    except BaseException:
        connection.close()
        raise
    return connection


def _is_done(directory: "Path", supervisor: int) -> bool:
    """Whether the supervisor has ended, in time. Raises OSError."""
    with ask(directory) as connection:
        watched: list[int | socket.socket] = [supervisor, connection]
        while there := select.select(watched, [], [], _ANSWER_SECONDS)[0]:
            if supervisor in there:
                return True
            if connection.recv(1):
                return False  # a refusal: an older version does not know the request
            watched.remove(connection)
    return False
