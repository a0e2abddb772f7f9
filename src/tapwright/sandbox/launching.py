"""Starts the process that becomes a sandbox's supervisor.

The process may start before its sandbox is known, and loads its modules meanwhile; without an order
it ends with its caller. A program that starts sandboxes one after the other keeps a process ready
for the next one, and gives it to `lifecycle.run`. This module imports little, because each start
waits for it.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from typing import Self

import tapwright
from tapwright.command import LOG_LEVEL_VARIABLE
from tapwright.sandbox import environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

SPARES = "spares"
"""The directory of those supervisors that have a guest already (`spares`), below the root."""
_WORDS_BYTES = 4096

# asyncio and hashlib do without OpenSSL, which saves memory of each supervisor, and some of its
# start.
_WITHOUT_OPENSSL = 'sys.modules |= {"ssl": None, "_hashlib": None}'

# Forks, so that the caller does not have to wait for the sandbox's end. Without `site`, which takes
# a third of the interpreter's start, and is needed only for the path.
_BOOT = f"""import os, sys
if os.fork(): os._exit(0)
os.chdir("/")
caller = int(sys.argv[1])
os.closerange(3, caller)
os.closerange(caller + 1, 1 << 20)
os.set_inheritable(caller, False)
{_WITHOUT_OPENSSL}
sys.path.insert(0, sys.argv[2])
from tapwright.supervisor.main import main
main(caller)
os._exit(0)  # a deletion waits: the interpreter would tidy up
"""

# For work without a caller; its order is on stdin, and the descriptors that it got start at 3.
_BACKGROUND = f"""import os, sys
os.chdir("/")
given = int(sys.argv[1])
os.closerange(3 + given, 1 << 20)
for fd in range(3, 3 + given): os.set_inheritable(fd, False)
{_WITHOUT_OPENSSL}
sys.path.insert(0, sys.argv[2])
from tapwright.supervisor.background import main
main()
os._exit(0)
"""


def in_background(work: str, given: "Sequence[int]" = (), **order: object) -> None:
    """Start a process for some `work` of `background`, which goes on whatever becomes of this
    process. It gets the order, which JSON can represent, and copies of the `given` descriptors, as
    3, 4, … Raises OSError."""
    # The process that forks has loaded what the forked one needs.
    import signal

    from tapwright.linux import cgroups

    content = os.memfd_create("tapwright-order")
    fds = [content]
    try:
        os.pwrite(content, json.dumps({"work": work, **order}).encode(), 0)
        fds.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        # Above those that are put in place, lest one is written over before it is.
        least = 3 + len(given)
        fds += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least) for fd in (*fds, *given)]
        order_fd, null, *others = fds[2:]
        places = [(order_fd, 0), (null, 1), (null, 2), *zip(others, range(3, least), strict=True)]
        command = [sys.executable, "-P", "-S", "-c", _BACKGROUND, str(len(given)), _package_path()]
        top = cgroups.entrances()
        fds += top
        pid = os.fork()
        if not pid:
            try:
                signal.set_wakeup_fd(-1)  # by which the caller would take our signals for its own
                # Before anything else, even before exec: otherwise a process that removes the group
                # would find this one in it, or half out; and the group's limits are the sandbox's.
                cgroups.enter(top)
                _go_on_alone(command, places)
            finally:
                os._exit(errno.EAGAIN)
        # Another part of the program may collect all children.
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, 0)[1]:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    finally:
        for fd in fds:
            os.close(fd)


def _go_on_alone(command: "list[str]", places: "Sequence[tuple[int, int]]") -> None:
    """Become another program, as no process's child; `places` maps descriptors to their numbers
    there."""
    os.setsid()
    if os.fork():
        os._exit(0)
    for fd, place in places:
        os.dup2(fd, place)
    os.execv(command[0], command)  # noqa: S606 - our own interpreter


def _package_path() -> str:
    return str(Path(tapwright.__file__).parent.parent)


def ahead(root: "str | os.PathLike[str]") -> "AbstractContextManager[Launch | None]":
    """Start a supervisor before its sandbox is known, because it has as much to load as its caller.
    None where the root has spares: one of them is likely to fit. Raises OSError."""
    return contextlib.nullcontext() if _has_spares(root) else Launch()


def _has_spares(root: "str | os.PathLike[str]") -> bool:
    try:
        return any(not name.startswith(".") for name in os.listdir(os.path.join(root, SPARES)))
    except OSError:
        return False


class Waiting:
    """A supervisor that waits at the other end of a socket for its sandbox. A context manager: at
    its end a supervisor that got none goes away."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, directory: Path, alive_fd: int) -> None:
        """Give the waiting supervisor its sandbox, with the `alive` lock, and the environment and
        priority of this process, as if this process had started it. A supervisor that has died does
        not answer."""
        level = os.environ.get(LOG_LEVEL_VARIABLE, "warning")
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        content = {"directory": str(directory.absolute()), "log_level": level, "nice": nice}
        with environment.handed_over() as theirs, contextlib.suppress(OSError):
            message = json.dumps(content).encode()
            socket.send_fds(self.socket, [message], [alive_fd, theirs])

    def last_words(self) -> str:
        """What the process printed, if it died before it had opened its log."""
        return ""

    def close(self) -> None:
        self.socket.close()


class Launch(Waiting):
    """A supervisor that is started now. Raises OSError."""

    def __init__(self) -> None:
        self._pid = 0
        connection, theirs = socket.socketpair()
        super().__init__(connection)
        self._words = os.memfd_create("tapwright-supervisor")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        # Above those that are put in place, lest one is written over before it is.
        fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (theirs, null, self._words)]
        theirs.close()
        os.close(null)
        caller, null, words = fds
        path = _package_path()
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-S", "-c", _BOOT, str(caller), path],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, null, 1),
                    (os.POSIX_SPAWN_DUP2, words, 2),
                    (os.POSIX_SPAWN_DUP2, caller, caller),  # which is not closed then
                ],
                setsid=True,
            )
        except BaseException:
            self.close()
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def last_words(self) -> str:
        return os.pread(self._words, _WORDS_BYTES, 0).decode(errors="replace").strip()

    def close(self) -> None:
        if self._words < 0:
            return
        self.socket.close()
        os.close(self._words)
        self._words = -1
        if self._pid:
            # Another part of the program may collect all children.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)  # the one that has forked
