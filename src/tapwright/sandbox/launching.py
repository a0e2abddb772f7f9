"""Starts the process that becomes a sandbox's supervisor.

It may be started before it is known what for, and loads its modules meanwhile; told nothing, it
ends with its caller. A program that starts sandboxes one after the other has one ready for the
next, and gives it to `lifecycle.run`. Imports little, for who calls this is in a hurry.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from typing import Self

import tapwright
from tapwright.command import LOG_LEVEL_VARIABLE

MESSAGE_BYTES = 16 * 1024
_WORDS_BYTES = 4096

# Forks, so that whoever called us need not wait for the sandbox's end. Without `site`, which takes
# a third of the interpreter's start, and of which nothing is needed but the path.
_BOOT = """import os, sys
if os.fork(): os._exit(0)
os.chdir("/")
caller = int(sys.argv[1])
os.closerange(3, caller)
os.closerange(caller + 1, 1 << 20)
os.set_inheritable(caller, False)
sys.path.insert(0, sys.argv[2])
from tapwright.sandbox.supervisor import main
main(caller)
"""


class Launch:
    """A supervisor that waits to be told of its sandbox. A context manager: at its end a supervisor
    that was told nothing goes away. Raises OSError."""

    def __init__(self) -> None:
        self._pid = 0
        self.socket, theirs = socket.socketpair()
        self._words = os.memfd_create("tapwright-supervisor")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        # Above those that are put in place, lest one is written over before it is.
        fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (theirs, null, self._words)]
        theirs.close()
        os.close(null)
        caller, null, words = fds
        path = str(Path(tapwright.__file__).parent.parent)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, directory: Path, alive_fd: int) -> None:
        """Give it its sandbox, with the `alive` lock. It may have died: its silence tells."""
        level = os.environ.get(LOG_LEVEL_VARIABLE, "warning")
        message = json.dumps({"directory": str(directory.absolute()), "log_level": level})
        with contextlib.suppress(OSError):
            socket.send_fds(self.socket, [message.encode()], [alive_fd])

    def last_words(self) -> str:
        """What the interpreter said last, where the supervisor has not come as far as its log."""
        return os.pread(self._words, _WORDS_BYTES, 0).decode(errors="replace").strip()

    def close(self) -> None:
        if self._words < 0:
            return
        self.socket.close()
        os.close(self._words)
        self._words = -1
        if self._pid:
            with contextlib.suppress(ChildProcessError):  # somebody waits for all children
                os.waitpid(self._pid, 0)  # the one that has forked
