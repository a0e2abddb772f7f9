"""Ends processes by their pids, which others can have as soon as these have ended (pidfd_open(2)).

Imports little, for verbs of the OCI runtime end processes, too.
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
    """Send the signals in turn, and wait so many seconds after each, until the process has ended.

    `is_it` says, before each signal, whether the process with this pid is the one that is meant,
    now that the pid can't become another's; `meanwhile` is called after each. Return whether the
    process was there. Raises OSError.
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
