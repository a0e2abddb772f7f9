"""Child processes: bound to their parent's life, and waited for (prctl(2), pidfd_open(2))."""

import os
import signal
import subprocess
from typing import TYPE_CHECKING

from tapwright.linux import libc

if TYPE_CHECKING:
    import asyncio


def die_with(parent: int) -> None:
    """Have the calling process killed when its parent, of that pid, ends; for between fork and
    exec. Ends the process when the parent has ended already."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def ended(process: subprocess.Popen[bytes]) -> "asyncio.Future[None]":
    """A future that is done when the process has ended; its exit status has been fetched then."""
    import asyncio  # slow to load, and not needed to start a process

    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    pidfd = os.pidfd_open(process.pid)

    def note() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        process.wait()
        if not future.done():  # whoever waited may have been cancelled
            future.set_result(None)

    loop.add_reader(pidfd, note)
    return future
