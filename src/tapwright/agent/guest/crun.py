"""Runs crun, the low-level runtime, without waiting for it (crun(1)).

A process that crun makes becomes a child of the agent when crun ends, as with conmon: the agent is
a child subreaper (prctl(2)). So the agent sees the end of every process of a container.
"""

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tapwright.agent.guest import oom
from tapwright.agent.guest.events import Children
from tapwright.linux import libc
from tapwright.linux.files import closing

PROGRAM = "/usr/bin/crun"
STATE = "/run/crun"

Done = Callable[[str], None]

_REASON_BYTES = 4096
_JSON = json.JSONDecoder()
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Stdio(NamedTuple):
    stdin: int = subprocess.DEVNULL
    stdout: int = subprocess.DEVNULL
    stderr: int = subprocess.DEVNULL


class Crun:
    """Runs crun, and makes this process the parent of the processes that crun leaves behind. Raises
    OSError."""

    def __init__(self, children: Children) -> None:
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        self._children = children
        self._program = _sealed(PROGRAM)

    def run(
        self,
        words: Sequence[str],
        done: Done,
        sheet: dict[str, Any] | None = None,
        stdio: Stdio = Stdio(),  # noqa: B008 - it is immutable
        until_executed: Sequence[int] = (),
        oom_score: int = oom.AS_OTHERS,
    ) -> None:
        """Start crun. When crun has ended, call `done` with "", or with the reason of its failure.

        In `words`, `{}` stands for the path of a file that contains `sheet` as JSON. The process
        that crun makes has the descriptors `until_executed` until it executes its program, because
        crun sets FD_CLOEXEC on all descriptors that are not the program's, and has `oom_score`.
        Raises OSError when crun can't be started.
        """
        log = os.memfd_create("log")
        given = [log, self._program]
        try:
            if sheet is not None:
                given.append(_memory_file(sheet))
                words = [word.replace("{}", f"/proc/self/fd/{given[-1]}") for word in words]
            with _at_fixed_addresses():
                process = subprocess.Popen(
                    ["crun", f"--log=/proc/self/fd/{log}", "--log-format=json", *words],
                    executable=f"/proc/self/fd/{self._program}",
                    stdin=stdio.stdin,
                    stdout=stdio.stdout,
                    stderr=stdio.stderr,
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                    cwd="/",
                    pass_fds=[*given, *until_executed],
                )
            oom.may_be_killed(process.pid, oom_score)
        except OSError:
            os.close(log)
            raise
        finally:
            for fd in given[2:]:
                os.close(fd)
        process.returncode = 0  # `children` waits for the process, not subprocess
        over = self._children.adopt()

        def ended(status: int) -> None:
            code = os.waitstatus_to_exitcode(status)
            try:
                done(_reason(log, code) if code else "")
            finally:
                os.close(log)
                over()

        self._children.expect(process.pid, ended)


def at_random_addresses(config: dict[str, Any]) -> None:
    """Let a container's programs be at random addresses, as everywhere, although crun is not: it
    sets the execution domain of a configuration before it executes a program
    (src/libcrun/container.c)."""
    linux = config.setdefault("linux", {})
    linux["personality"] = linux.get("personality") or {"domain": "LINUX"}


def without_options_of_version_1(config: dict[str, Any]) -> None:
    """Let a mount of control groups that has no options have none. crun has options of version 1
    for it (src/libcrun/linux.c: get_default_flags), which kernels of today refuse for version 2."""
    for mount in config.get("mounts", ()):
        if mount.get("type") in ("cgroup", "cgroup2") and not mount.get("options"):
            mount["options"] = ["rw"]


def entry(text: str, start: int = 0) -> tuple[str, int] | None:
    """Return (message, end) of the entry of crun's log that begins there with a brace, a JSON
    object: a line, or several since crun 1.28. None if there is no whole one."""
    try:
        found, end = _JSON.raw_decode(text, start)
    except ValueError:
        return None
    return str(found.get("msg", "")), end


def start(container: str) -> None:
    """Do the work of `crun start`, without the time of another process. The container's first
    process waits for a byte in a FIFO (src/libcrun/status.c: libcrun_status_write_exec_fifo).
    Raises OSError when no process waits there."""
    path = f"{STATE}/{container}/exec.fifo"
    with closing(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        os.unlink(path)
        os.write(fd, b"\0")


@contextlib.contextmanager
def _at_fixed_addresses() -> Iterator[None]:
    """For the length of the block, have programs executed at the same addresses each time
    (personality(2), ADDR_NO_RANDOMIZE). QEMU keeps the translation of a program by its addresses
    (7.2: accel/tcg/cpu-exec.c, tb_htable_lookup), so an emulated guest would translate all of crun
    again each time, which takes twice as long as crun's work."""
    libc.set_personality(libc.ADDR_NO_RANDOMIZE)
    try:
        yield
    finally:
        libc.set_personality(libc.PER_LINUX)


def _sealed(program: str) -> int:
    """Copy a program to memory that no process can write to. Otherwise crun makes such a copy of
    itself each time, and executes the copy (CVE-2019-5736)."""
    fd = os.memfd_create("crun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(program, "rb") as file, open(fd, "wb", closefd=False) as copy:
        copy.write(file.read())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _memory_file(content: dict[str, Any]) -> int:
    fd = os.memfd_create("sheet")
    os.write(fd, json.dumps(content).encode())  # `dump` is written in Python, and takes 3 ms
    return fd


def _reason(log: int, code: int) -> str:
    """Return the last error in crun's log."""
    size = os.fstat(log).st_size
    text = os.pread(log, _REASON_BYTES, max(0, size - _REASON_BYTES)).decode(errors="replace")
    reason = f"crun ended with {f'signal {-code}' if code < 0 else f'status {code}'}"
    start = text.find("{")
    while start >= 0:
        # There is none in the middle of one that was cut off.
        message, end = entry(text, start) or ("", start + 1)
        reason = message or reason
        start = text.find("{", end)
    return reason
