"""Has a sandbox deleted by its own supervisor.

The supervisor has loaded all that this takes, which else takes a command most of its time. Whatever
it leaves, because it has died, does not answer or has failed, is left to `lifecycle.delete`, which
takes it back by the journal. Imports little, for verbs of the OCI runtime call this.
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
"""With it come stderr and the environment of the process that asks, which plugins then have. It has
no answer: the supervisor hangs up, and ends when it is done."""

_STDERR = 2
_ANSWER_SECONDS = 2.0


def is_by_supervisor(directory: "Path") -> bool:
    """Ask the supervisor; whether nothing of the sandbox is left, the supervisor neither.

    A supervisor that is at it for long has locked the directory by then, so that it can be waited
    for. One whose directory is locked is not asked: its sandbox is being deleted.
    """
    pid = supervisors.pid_of(directory)
    try:
        pidfd = os.pidfd_open(pid or 0)
    except OSError:
        return False  # there is none
    try:
        return (
            supervisors.is_it(directory, pid or 0)
            and not filelock.is_held(directory)
            and _is_done(directory, pidfd)
            and not os.path.exists(directory)
        )
    except OSError:
        return False  # it does not take requests: not yet, or not any more
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
                return False  # a refusal: it is of a version that does not know the request
            watched.remove(connection)
    return False
