"""Runs one executable once, within bounds of time and output."""

import errno
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

OUTPUT_LIMIT = 4 * 1024 * 1024
_CHUNK = 64 * 1024
_BUSY_SECONDS = 5.0
_BUSY_PAUSE = 0.02
# Python ignores these, and a child would inherit that.
_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)


class Finished(NamedTuple):
    """The end of a run. `status` is the exit status, or minus the signal; `failure` says why `run`
    killed the process, and is empty if the process ended by itself. Of a long output, only the end
    is here."""

    status: int
    stdout: bytes
    stderr: bytes
    failure: str


def run(
    path: str,
    environment: Mapping[str, str],
    stdin: bytes,
    timeout: float,
    keep_fds: Iterable[int] = (),
    answers: bool = True,
) -> Finished:
    """Run an executable to its end, but no longer than `timeout` seconds.

    The process and its children inherit `keep_fds`. When it takes too long, or an answer on stdout
    (`answers`) is longer than OUTPUT_LIMIT, this kills it with its process group. All other output
    may be of any length, as with libcni, and only its end is kept. Raises OSError when the process
    can't be started.

    This uses posix_spawn(3), because importing `subprocess` would take as long as a small plugin.
    """
    pipes: list[int] = []
    try:
        source = _above_standard(os.memfd_create("stdin"), pipes)
        with open(source, "wb", closefd=False) as file:
            file.write(stdin)
        os.lseek(source, 0, os.SEEK_SET)
        ends = [_above_standard(fd, pipes) for _ in range(2) for fd in os.pipe()]
        actions = [
            (os.POSIX_SPAWN_DUP2, source, 0),
            (os.POSIX_SPAWN_DUP2, ends[1], 1),
            (os.POSIX_SPAWN_DUP2, ends[3], 2),
            # A descriptor duplicated onto itself is one that stays open.
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep_fds),
        ]
        pid = _spawn(path, environment, actions)
        for fd in (source, ends[1], ends[3]):
            os.close(fd)
            pipes.remove(fd)
        return _watch(pid, ends[0], ends[2], timeout, answers)
    finally:
        for fd in pipes:
            os.close(fd)


def _above_standard(fd: int, opened: list[int]) -> int:
    """The descriptor, moved to 3 or more: a caller may have closed 0, 1 or 2."""
    if fd < 3:
        import fcntl

        low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(low)
    opened.append(fd)
    return fd


def _spawn(path: str, environment: Mapping[str, str], actions: list[tuple[int, int, int]]) -> int:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return os.posix_spawn(
                path,
                [path],
                environment,
                file_actions=actions,
                setpgroup=0,
                setsigmask=(),
                setsigdef=_SIGNALS,
            )
        except OSError as error:
            # An installer is writing the file, and no event says when it is done.
            if error.errno != errno.ETXTBSY or time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_PAUSE)


def _watch(pid: int, stdout: int, stderr: int, timeout: float, answers: bool) -> Finished:
    """Collect the output until the process has ended. This does not wait for the end of the pipes,
    because background processes may keep them open."""
    output = {stdout: bytearray(), stderr: bytearray()}
    deadline = time.monotonic() + timeout
    status, failure = None, ""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        for fd in (pidfd, stdout, stderr):
            poll.register(fd, select.POLLIN)
        while status is None and not failure:
            ready = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
            if not ready:
                failure = f"it did not end within {timeout:g} s"
            if pidfd in ready:
                status = os.waitpid(pid, 0)[1]
                _drain(output)
                ready = []
            for fd in ready:
                if not _read(fd, output[fd]):
                    poll.unregister(fd)
            if answers and len(output[stdout]) > OUTPUT_LIMIT:
                failure = f"it printed more than {OUTPUT_LIMIT} bytes"
            for data in output.values():
                if len(data) > OUTPUT_LIMIT:
                    del data[: len(data) // 2]
    finally:
        os.close(pidfd)
        if status is None:
            os.killpg(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
    exit_status = os.waitstatus_to_exitcode(status)
    return Finished(exit_status, bytes(output[stdout]), bytes(output[stderr]), failure)


def _read(fd: int, data: bytearray) -> bool:
    """Read what has come; return False at the end of the file."""
    chunk = os.read(fd, _CHUNK)
    data += chunk
    return bool(chunk)


def _drain(output: dict[int, bytearray]) -> None:
    """Read what the process wrote before it ended: a pipe holds 1 MiB at most (pipe(7))."""
    for fd, data in output.items():
        os.set_blocking(fd, False)
        most = len(data) + OUTPUT_LIMIT
        try:
            while len(data) <= most and _read(fd, data):
                pass
        except BlockingIOError:
            pass  # another process still holds the other end
