"""A process in a container, from its creation by crun to the end of its output."""

import contextlib
import itertools
import os
import select
import signal
import stat
from collections.abc import Callable
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.guest import executable, files, oom
from tapwright.agent.guest.console import Console
from tapwright.agent.guest.crun import Crun, Done, Stdio
from tapwright.agent.guest.events import Children, Watcher
from tapwright.agent.guest.leftovers import LAUNCHES
from tapwright.agent.guest.refusal import FAILED, RefusedError, error_reply
from tapwright.agent.guest.streams import Answer, Process
from tapwright.linux import libc
from tapwright.linux.files import closing

# Files have a number as their name: an id may be longer than the name of a socket may be (unix(7)).
_numbers = itertools.count()


class ContainerProcess(Process):
    """The first process of a container, or another process in it, which executes `program`.

    `pid` is 0 until crun has made the process. `on_exit` is called when the process has ended,
    `on_cancel` when its client has gone.
    """

    def __init__(
        self, watch: Watcher, children: Children, crun: Crun, answer: Answer, program: str
    ) -> None:
        super().__init__(watch, answer)
        self._children = children
        self._program = program
        self._crun = crun
        self._console: Console | None = None
        self._pipes: list[int] = []
        self._not_executed = -1  # a pipe that ends when the process executes its program
        self._when_executed: list[Callable[[], None]] = []
        self._is_cancelled = False
        self._is_silent = True
        self._begun: dict[int, bytes] = {}  # by output, the first part of crun's line
        self._ends_as: int | None = None
        self.pid = 0
        self.on_exit = _nothing
        self.on_cancel = _nothing

    def launch(
        self,
        words: list[str],
        container: str,
        terminal: bool,
        done: Done,
        sheet: dict[str, Any] | None = None,
        check: Callable[[int], str] = lambda _: "",
        undo: Callable[[Callable[[], None]], None] = lambda then: then(),
        oom_score: int = oom.AS_OTHERS,
        null_stdin: bool = False,
    ) -> None:
        """Make the process with crun, by these words and the container's id. `done` is called with
        "" on success, else with the reason of the failure. `check` is called with the pid of the
        new process; it returns what is wrong with the process, or "". The process has `oom_score`
        until crun gives it another one. Its stdin may be the null device.

        On a failure, `undo` is called first; it takes back what was made, and then calls its
        argument. Only then is the failure answered, because the caller may use the id again at
        once. Raises OSError.
        """
        os.makedirs(LAUNCHES, exist_ok=True)
        launch = f"{LAUNCHES}/{next(_numbers)}"
        pid_file = f"{launch}.pid"
        words = [*words, f"--pid-file={pid_file}"]
        theirs: list[int] = []
        self._not_executed, held = os.pipe2(os.O_CLOEXEC)
        try:
            if terminal:
                self._console = Console(f"{launch}.sock")
                words.append(f"--console-socket={launch}.sock")
            else:
                theirs = self._make_pipes(null_stdin)
            ended = self._when_launched(pid_file, done, check, undo)
            self._crun.run([*words, container], ended, sheet, Stdio(*theirs), [held], oom_score)
        except BaseException:
            self._drop()
            os.close(self._not_executed)
            raise
        finally:
            for fd in (*theirs, held):
                os.close(fd)
        os.set_blocking(self._not_executed, False)
        self._watch.add(self._not_executed, select.EPOLLIN, self._executed)

    def when_executed(self, call: Callable[[], None]) -> None:
        """Call `call` when the process has executed its program, or can't do so any more."""
        if self._not_executed < 0:
            call()
        else:
            self._when_executed.append(call)

    def signal(self, number: int) -> None:
        if self.pid and not self.has_exited:
            with contextlib.suppress(OSError):  # there is no such signal
                os.kill(self.pid, number)

    def kill_as(self, code: int) -> None:
        """Kill the process, and report that it has ended with this exit status."""
        self._ends_as = code << 8
        self.signal(signal.SIGKILL)

    def tell_oom_kills(self, count: int) -> None:
        """Report how many processes of the container the kernel has killed by now because memory
        was used up."""
        if not self._is_over:
            self._answer.send(protocol.OOM, b'{"kills": %d}' % count)

    def cancel(self) -> None:
        self._is_cancelled = True
        self.signal(signal.SIGKILL)
        super().cancel()
        self.on_cancel()

    def exited(self, status: int) -> None:
        self.on_exit()
        super().exited(status if self._ends_as is None else self._ends_as)

    def _passed_on(self, kind: int, output: bytes) -> bytes:
        # The program wrote the first output, or crun did in its place.
        if not self._is_silent and kind not in self._begun:
            return output
        begun = self._begun.pop(kind, b"") + output
        self._is_silent = not begun
        if output and executable.is_a_part(begun):
            self._begun[kind] = begun
            return b""
        return executable.in_runcs_words(begun, self._program)

    def _when_launched(
        self,
        pid_file: str,
        done: Done,
        check: Callable[[int], str],
        undo: Callable[[Callable[[], None]], None],
    ) -> Done:
        def launched(reason: str) -> None:
            terminal = -1
            try:
                if not reason:
                    self.pid = int(files.read(pid_file))
                    terminal = self._console.terminal() if self._console else -1
                    reason = check(self.pid)
            except (OSError, ValueError) as error:
                reason = f"crun's process can't be taken over: {error}"
                self.signal(signal.SIGKILL)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(pid_file)
            done(reason)
            if reason:
                reason = executable.refused_in_runcs_words(reason, self._program)
                if terminal >= 0:
                    os.close(terminal)
                self._drop()
                refusal = error_reply(RefusedError(reason, FAILED))
                undo(lambda: self.fail(refusal))
                return
            # The output comes after STARTED: what crun itself wrote is in crun's log, too.
            self._answer.send(protocol.STARTED, b'{"pid": %d}' % self.pid)
            self._attach(terminal)
            self._children.expect(self.pid, self.exited)

        return launched

    def _attach(self, terminal: int) -> None:
        if terminal >= 0:
            self.attach_terminal(terminal)
        else:
            stdin, stdout, stderr = self._pipes
            self._pipes = []
            self.attach(stdin, {protocol.STDOUT: stdout, protocol.STDERR: stderr})
        self._drop()
        if self._is_cancelled:
            self.signal(signal.SIGKILL)
            self._close()

    def _make_pipes(self, null_stdin: bool) -> list[int]:
        """Keep one end of each of three pipes; return the other ends, for stdin, stdout and
        stderr. With `null_stdin` there are two, and the null device."""
        if null_stdin:
            stdin, ours = _null_device(), -1
        else:
            stdin, ours = os.pipe2(os.O_CLOEXEC)
        stdout_read, stdout = os.pipe2(os.O_CLOEXEC)
        stderr_read, stderr = os.pipe2(os.O_CLOEXEC)
        self._pipes = [ours, stdout_read, stderr_read]
        return [stdin, stdout, stderr]

    def _executed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._not_executed, 1)
            self._note_executed()

    def _note_executed(self) -> None:
        self._watch.remove(self._not_executed)
        os.close(self._not_executed)
        self._not_executed = -1
        while self._when_executed:
            self._when_executed.pop(0)()

    def _drop(self) -> None:
        """Close the descriptors of a process that was never made."""
        for fd in self._pipes:
            if fd >= 0:
                os.close(fd)
        self._pipes = []
        if self._console:
            self._console.close()


def _null_device() -> int:
    """Open a null device that no other process has: crun 1.8 makes a process's stdin its user's
    (src/libcrun/container.c: maybe_chown_std_streams), who could then close the guest's to others.
    In /proc/PID/fd it is called /dev/null all the same."""
    with closing(libc.detached_mount("tmpfs", mode="755")) as place:
        os.mkdir("dev", dir_fd=place)
        os.mknod("dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=place)
        os.chmod("dev/null", 0o666, dir_fd=place)
        return os.open("dev/null", os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)


def _nothing() -> None:
    """The default of the callbacks: do nothing."""
