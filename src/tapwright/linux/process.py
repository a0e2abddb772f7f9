"""Child processes: bound to their parent's life, and awaited (prctl(2), pidfd_open(2))."""

import contextlib
import os
import resource
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tapwright.linux import libc
from tapwright.linux.files import closing

if TYPE_CHECKING:
    import asyncio


def die_with(parent: int) -> None:
    """Make the kernel kill the calling process when its parent, of this pid, ends. If the parent
    has ended already, the process ends now. For use between fork and exec."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def die_with_other(parent: int) -> None:
    """Do the same for a parent given as a pidfd: a process in another pid namespace does not see
    its parent's pid."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent], [], [], 0)[0]:
        os._exit(1)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Make the next process that the calling thread starts within the block the first of a new pid
    namespace (pid_namespaces(7)). Start one process in the block, and no thread. Raises OSError."""
    with closing(os.open("/proc/thread-self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)) as own:
        libc.unshare(libc.CLONE_NEWPID)
        try:
            yield
        finally:
            libc.setns(own, libc.CLONE_NEWPID)


_STACK_BYTES = 8 << 20  # the kernel's default (include/uapi/linux/resource.h, _STK_LIM)
_LOCKED_BYTES = 64 << 20
_LIMITS = {
    resource.RLIMIT_CORE: 0,  # a dump would have a guest's memory in it
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_STACK: _STACK_BYTES,
    resource.RLIMIT_MEMLOCK: _LOCKED_BYTES,
    **dict.fromkeys(
        (
            *(resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE),
            *(resource.RLIMIT_NPROC, resource.RLIMIT_RSS),
        ),
        resource.RLIM_INFINITY,
    ),
}
_NO_MORE: Mapping[int, int] = {}


def set_limits(files: int, most_files: int, more: Mapping[int, int] = _NO_MORE) -> None:
    """Give the calling process fixed limits (getrlimit(2)), whatever it inherited: no core dumps,
    `files` open files, which it may raise to `most_files`, and no limit on what a control group
    limits. `more` overrides these. A limit that the process may not raise (without
    CAP_SYS_RESOURCE) stays."""
    wanted = {kind: (limit, limit) for kind, limit in {**_LIMITS, **more}.items()}
    for kind, (soft, hard) in {**wanted, resource.RLIMIT_NOFILE: (files, most_files)}.items():
        try:
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError):
            hard = resource.getrlimit(kind)[1]
            least = hard if soft == resource.RLIM_INFINITY else soft
            resource.setrlimit(kind, (least if hard == -1 else min(least, hard), hard))


def ended(process: subprocess.Popen[bytes]) -> "asyncio.Future[None]":
    """Return a future that is done when the process has ended; its exit status is collected by
    then."""
    import asyncio  # slow to load, and not needed to start a process

    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    pidfd = os.pidfd_open(process.pid)

    def note() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        process.wait()
        if not future.done():  # the awaiting task may have been cancelled
            future.set_result(None)

    loop.add_reader(pidfd, note)
    return future
