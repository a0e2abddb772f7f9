"""Ends processes by their pids. A pid may belong to another process as soon as its process has
ended, so this uses pidfds (pidfd_open(2)).

The module imports little, because verbs of the OCI runtime use it, too.
"""

import os
import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PF_EXITING = 0x4  # include/linux/sched.h


def end(
    pid: int,
    seconds: float,
    is_it: "Callable[[], bool]",
    signals: "Sequence[int]" = (signal.SIGKILL,),
    meanwhile: "Callable[[], object]" = lambda: None,
) -> bool:
    """Send the signals in turn, and wait `seconds` after each, until the process has ended.

    Before each signal, `is_it` says whether the process with this pid is the right one; by then the
    pid can't become another process's. `meanwhile` is called after each signal. Returns whether the
    process existed. Raises OSError.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        was_there = False
        for number in signals:
            if not is_it():
                break
            was_there = True
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                break
            meanwhile()
            if select.select([pidfd], [], [], seconds)[0]:
                break
        return was_there
    finally:
        os.close(pidfd)


def await_exit(pid: int, seconds: float) -> None:
    """Wait until a process that is about to end has ended, `seconds` at most; return at once for
    any other.

    The kernel frees a process's locks before it gives its children a new parent and their signal
    (kernel/exit.c: do_exit calls exit_files, then exit_notify). In between it closes sockets, which
    can take long. Raises OSError.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _is_exiting(pid):
            select.select([pidfd], [], [], seconds)
    finally:
        os.close(pidfd)


def _is_exiting(pid: int) -> bool:
    """Whether the kernel has begun to end the process (proc(5): the flags in `stat`)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return bool(int(file.read().rpartition(")")[2].split()[6]) & _PF_EXITING)
    except (FileNotFoundError, ProcessLookupError):
        return False
