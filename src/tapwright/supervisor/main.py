"""The supervisor: the one long-lived process of a sandbox, owner of QEMU and of the record.

`sandbox.launching` starts it, and `lifecycle.run` gives it a sandbox, whose progress it reports
(`sandbox.report`). When the sandbox fails before it runs, when its caller goes away before that,
and on a request (`sandbox.deletion`), the supervisor takes the sandbox back. On SIGTERM it only
stops QEMU: the sender takes back the rest.

It loads most of its modules while it would only wait: while the caller makes its plan, or while
QEMU starts.
"""

import gc
import importlib
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tapwright.errors import SandboxStateError, TapwrightError
from tapwright.linux import process
from tapwright.sandbox.report import Caller, Order
from tapwright.state import ownership, supervisors
from tapwright.state.record import LOG, RUNNING, Journal, load
from tapwright.supervisor import prelude

if TYPE_CHECKING:
    import asyncio

    from tapwright.supervisor.prepared import Prepared

_LATER = (
    "asyncio",
    "concurrent.futures.thread",  # asyncio.to_thread() loads it
    "tapwright.cni.runtime",
    "tapwright.agent.client",
    "tapwright.hypervisor.template",
    "tapwright.endpoint.physical",
    "tapwright.endpoint.macvtap",
    "tapwright.endpoint.tap",
    "tapwright.endpoint.tcfilter",
    "tapwright.nics.interfaces",
    "tapwright.supervisor.life",
)

_FILES = 1 << 16  # sockets of processes in containers, for the most part
_MOST_FILES = 1 << 20  # of virtiofsd


def main(caller_fd: int) -> None:
    gc.disable()  # collecting would take a fifteenth of the time that loading takes
    caller = Caller(socket.socket(fileno=caller_fd))
    for module in _LATER:
        if caller.has_spoken():
            break
        importlib.import_module(module)
    if order := caller.order():
        os.umask(0o022)
        limit_files()
        supervise(order, caller)


def load_rest() -> None:
    """Load what `supervise` needs."""
    for module in _LATER:
        importlib.import_module(module)


def limit_files() -> None:
    process.set_limits(_FILES, _MOST_FILES)


def supervise(
    order: Order,
    caller: Caller,
    prepared: "Prepared | None" = None,
    runner: "asyncio.Runner | None" = None,
) -> None:
    """Run a sandbox from its start to its end. With the guest of a spare (`prepared`), use the
    event loop of `runner`."""
    directory = order.directory
    supervisors.note(order.alive_fd)
    try:
        journal = Journal(directory, load(directory))
    except FileNotFoundError:
        sys.exit("the sandbox was deleted before it began")
    _speak_to(directory / LOG)
    # Until now: the caller made its plan while this process loaded modules.
    journal.note_phase("plan", journal.record.started)
    try:
        begun = prelude.begin(journal, caller.warn, prepared)
    except TapwrightError as error:
        caller.failed(error, _give_up(journal))
        return
    with journal.phase("modules"):
        from tapwright.supervisor.life import Life
    gc.freeze()
    gc.enable()
    life = Life(journal, begun, caller)
    life.run(order.log_level, runner)
    begun.end()
    if life.takes_down:
        from tapwright.supervisor import takedown

        with life.rights:
            takedown.rest(directory, life.left)
    if life.failure and journal.record.status != RUNNING:
        caller.failed(life.failure, [] if life.deleted else _give_up(journal))


def _speak_to(path: Path) -> None:
    """Make the log the stderr, for the interpreter's own last words."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        return  # stderr stays the memory of `Launch`, which the caller reads
    os.dup2(fd, sys.stderr.fileno())
    os.close(fd)


def _give_up(journal: Journal) -> list[str]:
    """Take back all that was made, unless another process deletes the sandbox."""
    from tapwright.state import teardown

    try:
        with ownership.taking_down(journal.directory, timeout=0) as there:
            if not there:
                return []
            left = teardown.take_back(journal)
            if left:
                journal.record.failure = "; ".join(left)
                journal.save_if_possible()
            else:
                ownership.discard(journal.directory)
            return left
    except SandboxStateError:
        return []
