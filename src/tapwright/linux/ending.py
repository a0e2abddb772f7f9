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
