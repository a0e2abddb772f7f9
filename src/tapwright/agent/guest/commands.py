"""Commands that the agent runs in the guest itself, beside all containers."""

import contextlib
import os
import signal
import subprocess
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.guest.events import Children, Watcher
from tapwright.agent.guest.streams import Answer, Process

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "dumb",
}


class Command(Process):
    """One running command.

    Raises OSError when it can't be started, ValueError, KeyError and TypeError for a request that
    makes no sense.
    """

    def __init__(
        self, request: dict[str, Any], watch: Watcher, children: Children, answer: Answer
    ) -> None:
        super().__init__(watch, answer)
        process = subprocess.Popen(
            [str(word) for word in request["argv"]],
            stdin=subprocess.PIPE if request.get("stdin") else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **request.get("env", {})},
            cwd=request.get("cwd") or "/",
            start_new_session=True,
            bufsize=0,
        )
        self._pid = process.pid
        process.returncode = 0  # `children` waits for it, not subprocess
        outputs = {protocol.STDOUT: process.stdout, protocol.STDERR: process.stderr}
        self.attach(_taken(process.stdin), {kind: _taken(pipe) for kind, pipe in outputs.items()})
        children.expect(process.pid, self.exited)

    def signal(self, number: int) -> None:
        """Send a signal to the command and what it started in its session."""
        with contextlib.suppress(OSError):  # it has ended, or there is no such signal
            os.killpg(self._pid, number)

    def cancel(self) -> None:
        self.signal(signal.SIGKILL)
        super().cancel()


def _taken(pipe: Any) -> int:
    """A pipe of a Popen as a plain descriptor; -1 where there is none."""
    if pipe is None:
        return -1
    fd = os.dup(pipe.fileno())
    pipe.close()
    return fd
