"""Commands that the agent runs in the guest itself, outside of all containers."""

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.guest import oom
from tapwright.agent.guest.events import Children, Watcher
from tapwright.agent.guest.refusal import RefusedError
from tapwright.agent.guest.streams import Answer, Process

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "dumb",
}
_TIOCSCTTY = 0x540E  # include/uapi/asm-generic/ioctls.h


class Command(Process):
    """A running command. It has a terminal of its own if the request has `terminal`.

    Raises OSError when the command can't be started, RefusedError for arguments that no program can
    take.
    """

    def __init__(
        self, request: dict[str, Any], watch: Watcher, children: Children, answer: Answer
    ) -> None:
        super().__init__(watch, answer)
        words = [*request["argv"], *request.get("env", {}).values(), request.get("cwd") or ""]
        if not request["argv"] or any("\0" in word for word in words):
            raise RefusedError("argv must have words, and no word a NUL")
        if request.get("terminal"):
            process = self._start_on_terminal(request)
        else:
            stdin = subprocess.PIPE if request.get("stdin") else subprocess.DEVNULL
            process = _started(request, stdin, subprocess.PIPE, subprocess.PIPE)
            outputs = {protocol.STDOUT: process.stdout, protocol.STDERR: process.stderr}
            pipes = {kind: _taken(pipe) for kind, pipe in outputs.items()}
            self.attach(_taken(process.stdin), pipes)
        self._pid = process.pid
        process.returncode = 0  # `children` waits for the process, not subprocess
        children.expect(process.pid, self.exited)

    def _start_on_terminal(self, request: dict[str, Any]) -> "subprocess.Popen[bytes]":
        master, slave = os.openpty()
        try:
            process = _started(request, slave, slave, slave, _take_terminal)
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        self.attach_terminal(master)
        return process

    def signal(self, number: int) -> None:
        """Send a signal to the command, and to what it started in its session."""
        with contextlib.suppress(OSError):  # the command has ended, or there is no such signal
            os.killpg(self._pid, number)

    def cancel(self) -> None:
        self.signal(signal.SIGKILL)
        super().cancel()


def _started(
    request: dict[str, Any],
    stdin: int,
    stdout: int,
    stderr: int,
    at_first: Callable[[], None] | None = None,
) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        request["argv"],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**ENVIRONMENT, **request.get("env", {})},
        cwd=request.get("cwd") or "/",
        start_new_session=True,
        preexec_fn=at_first,
        bufsize=0,
    )
    oom.may_be_killed(process.pid)
    return process


def _take_terminal() -> None:
    """Make stdin the controlling terminal of the session, which has none (tty_ioctl(4))."""
    fcntl.ioctl(0, _TIOCSCTTY, 0)


def _taken(pipe: Any) -> int:
    """Detach a pipe of a Popen, and return its descriptor; -1 if there is no pipe."""
    if pipe is None:
        return -1
    fd = os.dup(pipe.fileno())
    pipe.close()
    return fd
