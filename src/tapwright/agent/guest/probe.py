"""Runs the program `probing` in a process that is a copy of the agent. The copy has its modules
loaded already; a new interpreter would take a second to start on emulated processors."""

import os
import signal
from contextlib import suppress
from typing import NoReturn

from tapwright.agent import protocol
from tapwright.agent.guest import oom, probing
from tapwright.agent.guest.events import Children, Watcher
from tapwright.agent.guest.streams import Answer, Process

_MOST_DESCRIPTORS = 1 << 16


class Probe(Process):
    """The process talks over its stdin and stdout, as `probing` says, and writes the reason of a
    failure to stderr. Raises OSError when it can't be started."""

    def __init__(self, watch: Watcher, children: Children, answer: Answer) -> None:
        super().__init__(watch, answer)
        (stdin, mine), (out, stdout), (err, stderr) = (os.pipe() for _ in range(3))
        try:
            self._pid = os.fork()
            if not self._pid:
                _go_on_as_program([stdin, stdout, stderr])
        except OSError:
            for fd in (mine, out, err):
                os.close(fd)
            raise
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)
        oom.may_be_killed(self._pid)
        self.attach(mine, {protocol.STDOUT: out, protocol.STDERR: err})
        children.expect(self._pid, self.exited)

    def signal(self, number: int) -> None:
        if not self.has_exited:
            with suppress(OSError):  # there is no such signal
                os.kill(self._pid, number)

    def cancel(self) -> None:
        self.signal(signal.SIGKILL)
        super().cancel()


def _go_on_as_program(pipes: list[int]) -> NoReturn:
    """Become the program. The copy closes all of the agent's descriptors: a second user of the port
    would disturb the agent."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, fd in enumerate(pipes):
            os.dup2(fd, number)
        os.closerange(3, _MOST_DESCRIPTORS)
        probing.serve(0, 1)
        status = 0
    except BaseException as error:
        with suppress(BaseException):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)
