"""Runs the `tapwright` command without the start of an interpreter: `run` is `subprocess.run`.

To load its modules takes a command longer than most of its work, and the suite has thousands of
commands. So each test process has a server that has loaded them, and a command is a fork of it. It
is a process of the command still, with arguments, environment, directory and stdio of its own.

A command is a new program all the same where it would inherit something that the server has not: a
namespace that the test has entered, a limit, a group. So is the first command of each kind, so that
what a fresh interpreter must load for it is seen to be there.
"""

import contextlib
import functools
import gc
import json
import os
import pkgutil
import re
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO, cast

_MOST = 100_000
"""Bytes of a request; what is larger does not fit into a packet."""

_CHUNK = 1 << 16
_DAY = 86_400.0
_THREAD = Path("/proc/thread-self")
_INHERITED = (
    *("Umask", "Uid", "Gid", "Groups", "Sig", "Cap", "NoNewPrivs", "Seccomp", "Cpus_allowed_list"),
)
_NOT_INHERITED = "SigQ", "SigPnd", "SigCgt"
_VERB = re.compile(r"[a-z][a-z-]*")
_NO_COMMANDS = ".__main__", ".testing"
_OF_INTERPRETER = "PYTHON", "LC_", "LANG"

Done = subprocess.CompletedProcess[Any]
File = int | IO[Any] | None


def run(
    command: Sequence[str],
    *,
    input: str | bytes | None = None,  # noqa: A002 - as subprocess has it
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
    capture_output: bool = False,
    text: bool = False,
    timeout: float | None = None,
    check: bool = False,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Done:
    """Run `tapwright`, which is the first of these words, or a link to it."""
    output, errors = (subprocess.PIPE, subprocess.PIPE) if capture_output else (stdout, stderr)
    process = server().start(
        list(command),
        [subprocess.PIPE if input is not None else stdin, output, errors],
        os.fspath(cwd or os.getcwd()),
        dict(os.environ if env is None else env),
    )
    if process is None:
        return subprocess.run(
            command,
            **({"stdin": stdin} if input is None else {"input": input}),
            stdout=output,
            stderr=errors,
            text=text,
            timeout=timeout,
            check=check,
            cwd=cwd,
            env=env,
        )
    status, said = process.communicate(input.encode() if isinstance(input, str) else input, timeout)
    answers = [_as_text(one) if text and one is not None else one for one in said]
    done: Done = subprocess.CompletedProcess(command, status, *answers)
    if check:
        done.check_returncode()
    return done


def _as_text(answer: bytes) -> str:
    return answer.decode().replace("\r\n", "\n").replace("\r", "\n")


@functools.cache
def server() -> "Server":
    """The one of this process."""
    return Server()


class Server:
    """The process that forks, for its client."""

    def __init__(self) -> None:
        self._inherited = inherited(os.environ)
        self._seen: set[tuple[str, ...]] = set()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.pid = self._process.pid

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.wait()

    def changed(self, environment: Mapping[str, str]) -> set[str]:
        """What a new program would inherit now, and the server has not; and the reverse."""
        return set(self._inherited).symmetric_difference(inherited(environment))

    def start(
        self, command: list[str], stdio: list[File], cwd: str, environment: dict[str, str]
    ) -> "Forked | None":
        """None where the command has to be a new program."""
        kind = tuple(word for word in command[1:] if _VERB.fullmatch(word))[:2]
        if kind not in self._seen:
            self._seen.add(kind)
            return None
        request = json.dumps([command, cwd, environment]).encode()
        if len(request) > _MOST or self.changed(environment):
            return None
        with contextlib.ExitStack() as theirs:
            fds: list[int] = []
            ours: list[FileIO | None] = []
            for number, file in enumerate(stdio):
                end = None
                if file == subprocess.PIPE:
                    fd, end = _pipe(is_read=number > 0)
                    theirs.callback(os.close, fd)
                elif file == subprocess.DEVNULL:
                    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                    theirs.callback(os.close, fd)
                elif file == subprocess.STDOUT:
                    fd = fds[1]
                elif file is None:
                    fd = number
                else:
                    fd = file if isinstance(file, int) else file.fileno()
                fds.append(fd)
                ours.append(end)
            reply, theirs_of_it = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs_of_it:
                socket.send_fds(self._connection, [request], [*fds, theirs_of_it.fileno()])
        return Forked(command, reply, ours)


def _pipe(is_read: bool) -> tuple[int, FileIO]:
    """Of a pipe, which we read or write: the command's end, and ours."""
    reader, writer = os.pipe()
    if is_read:
        return writer, FileIO(reader, "rb")
    os.set_blocking(writer, False)
    return reader, FileIO(writer, "wb")


class Forked:
    """A command that was started; `stdio` are our ends of its pipes."""

    def __init__(
        self, command: list[str], reply: socket.socket, stdio: Sequence[FileIO | None]
    ) -> None:
        self._command = command
        self._reply = reply
        self._stdio = stdio
        answer, fds, _, _ = socket.recv_fds(reply, _MOST, 1)
        if not answer:
            raise RuntimeError("the server of commands has ended")
        (self._pidfd,) = fds

    def communicate(
        self, given: bytes | None, timeout: float | None
    ) -> tuple[int, list[bytes | None]]:
        """The exit status, and what came on stdout and stderr, as subprocess has it."""
        try:
            return self._communicate(memoryview(given or b""), timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            raise
        finally:
            os.close(self._pidfd)
            for file in (self._reply, *self._stdio):
                if file:
                    file.close()

    def _communicate(
        self, left: memoryview, timeout: float | None
    ) -> tuple[int, list[bytes | None]]:
        deadline = time.monotonic() + (_DAY if timeout is None else timeout)
        stdin, *others = self._stdio
        said: dict[FileIO, bytearray] = {file: bytearray() for file in others if file}
        with selectors.DefaultSelector() as selector:
            if stdin:
                selector.register(stdin, selectors.EVENT_WRITE)
            readers: tuple[FileIO | socket.socket, ...] = self._reply, *said
            for each in readers:
                selector.register(each, selectors.EVENT_READ)
            while selector.get_map():
                if (seconds := deadline - time.monotonic()) <= 0:
                    raise subprocess.TimeoutExpired(self._command, timeout or 0)
                for key, _ in selector.select(seconds):
                    if key.fileobj is stdin:
                        left = _written(stdin, left)
                        is_over = not left
                    elif key.fileobj is self._reply:
                        status = int(self._reply.recv(_MOST))
                        is_over = True
                    else:
                        file = cast(FileIO, key.fileobj)
                        data = file.read(_CHUNK)
                        said[file] += data
                        is_over = not data
                    if is_over:
                        selector.unregister(key.fileobj)
                        cast(FileIO, key.fileobj).close()
        answers = [bytes(said[file]) if file else None for file in others]
        return os.waitstatus_to_exitcode(status), answers


def _written(file: FileIO, left: memoryview) -> memoryview:
    """What is left to write after a try."""
    try:
        return left[file.write(left[:_CHUNK]) or 0 :]
    except BrokenPipeError:  # the command wants no more
        return left[len(left) :]


def inherited(environment: Mapping[str, str]) -> tuple[str, ...]:
    """What a new program of this thread would inherit, but for its directory and its files, and
    what an interpreter takes from its environment."""
    status = (_THREAD / "status").read_text().splitlines()
    return (
        *(
            one
            for one in status
            if one.startswith(_INHERITED) and not one.startswith(_NOT_INHERITED)
        ),
        *(os.readlink(path) for path in sorted((_THREAD / "ns").iterdir())),
        *((_THREAD / name).read_text() for name in ("limits", "cgroup", "oom_score_adj")),
        str(os.getpriority(os.PRIO_PROCESS, 0)),
        *sorted(
            f"{key}={environment[key]}" for key in environment if key.startswith(_OF_INTERPRETER)
        ),
    )


def serve(connection: socket.socket) -> None:
    """Fork a command for each request, until the client has gone."""
    load()
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for fd, _ in poll.poll():
            if fd != connection.fileno():
                pid, reply = running.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                _, status = os.waitpid(pid, 0)
                with reply, contextlib.suppress(BrokenPipeError):  # the client has given it up
                    reply.send(str(status).encode())
                continue
            request, fds, _, _ = socket.recv_fds(connection, _MOST, 4)
            if not request:
                return
            *stdio, reply_fd = fds
            reply = socket.socket(fileno=reply_fd)
            pid = os.fork()
            if not pid:
                become(stdio, *json.loads(request))
            for each in stdio:
                os.close(each)
            pidfd = os.pidfd_open(pid)
            socket.send_fds(reply, [b"started"], [pidfd])
            running[pidfd] = pid, reply
            poll.register(pidfd, select.POLLIN)


def load() -> None:
    """All modules that a command could load."""
    sys.modules["_hashlib"] = None  # type: ignore[assignment]  # as the command does
    package = Path(find_spec("tapwright").origin).parent  # type: ignore[union-attr,arg-type]
    for module in pkgutil.walk_packages([str(package)], "tapwright."):
        if not module.name.endswith(_NO_COMMANDS) and ".guest" not in module.name:
            import_module(module.name)
    gc.collect()
    gc.freeze()  # what is not looked at is not copied


def _writer(number: int, like: Any) -> TextIO:
    buffer = BufferedWriter(FileIO(number, "w", closefd=False))
    return TextIOWrapper(buffer, errors=like.errors, line_buffering=like.line_buffering)


def become(
    stdio: Sequence[int], command: list[str], cwd: str, environment: dict[str, str]
) -> NoReturn:
    """Run the command as the console script does, and end."""
    try:
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        os.closerange(3, 1 << 20)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin = TextIOWrapper(BufferedReader(FileIO(0, closefd=False)), errors=sys.stdin.errors)
        sys.stdout = _writer(1, sys.stdout)
        sys.stderr = _writer(2, sys.stderr)
        sys.argv = command
        Path("/proc/self/comm").write_text("tapwright")
        from tapwright.cli import run as run_command

        run_command()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
