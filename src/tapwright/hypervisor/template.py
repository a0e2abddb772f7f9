"""A guest that was booted once, warmed and saved, to start others from.

A guest starts from it as it was: with the pages of its memory, which all guests share until they
write to them, and the state of its devices. One whose memory a vhost-user backend is to share has a
copy of the pages. It was saved without a NIC, so each gets its own. What guests must not share is
renewed: random numbers when the agent is greeted, clock and name when it is told.

Nobody but root can write to a template: QEMU gets its memory as a sealed memfd, and its state by a
descriptor for reading.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tapwright.errors import AgentError, HypervisorError, TapwrightError
from tapwright.hypervisor import warming
from tapwright.hypervisor.machine import Machine, SavedMemory
from tapwright.hypervisor.qemu import Qemu
from tapwright.hypervisor.qmp import QmpError
from tapwright.hypervisor.restoring import CAPABILITIES, Restoring
from tapwright.hypervisor.template_store import (
    STATE,
    DamagedError,
    Store,
    Template,
    describe,
    key_of,
)
from tapwright.linux import memfd

Progress = Callable[[str], None]

_log = logging.getLogger(__name__)

_PAUSE = 0.02
_SAVE_SECONDS = 30.0
_RETRY_SECONDS = 600.0


class RefusedError(HypervisorError):
    """QEMU has started, and does not take the template."""


async def find_or_make(
    machine: Machine,
    directory: Path,
    boot_seconds: float,
    progress: Progress,
    again: bool = False,
) -> Template:
    """The template of a machine, made where there is none; when another process is making it, that
    one is waited for. Close it when done.

    Raises HypervisorError, AgentError, OSError: why it can't be made. What failed a short time ago
    is not tried again, unless `again`.
    """
    store = Store(directory)
    description = describe(machine)
    key = key_of(description)
    if template := store.find(key):
        return template
    async with _only_maker(store):
        if template := store.find(key):
            return template
        if (reason := store.failure(key, _RETRY_SECONDS)) and not again:
            raise HypervisorError(f"it could not be made a short time ago: {reason}")
        progress("make the template that guests start from (once for this guest)")
        try:
            await _make(machine, store, description, boot_seconds)
        except (TapwrightError, OSError) as error:
            store.note_failure(key, str(error))
            raise
        if template := store.find(key):
            return template
    raise HypervisorError("the template is damaged as soon as it is made; is its disk sound?")


async def restored(machine: Machine, restoring: Restoring) -> Qemu:
    """The QEMU of a guest that was begun to be restored, when the guest runs.

    Raises HypervisorError, among them RefusedError; QEMU has ended then.
    """
    try:
        qemu = await Qemu.of(machine, restoring.spawned)
    except QmpError as error:
        raise RefusedError(str(error)) from None
    try:
        await qemu.resumed()
    except HypervisorError as error:
        await qemu.kill()
        raise RefusedError(str(error)) from None
    except BaseException:
        await qemu.kill()
        raise
    return qemu


def give_up(directory: Path, template: Template, reason: Exception) -> None:
    """Remove a template that a guest could not be started from, if the template is to blame. One
    that was not damaged would fail again, and is not made anew at once."""
    if not isinstance(reason, DamagedError | RefusedError | AgentError):
        return
    store = Store(directory)
    store.drop(template.key)
    if not isinstance(reason, DamagedError):
        store.note_failure(template.key, str(reason))


@contextlib.asynccontextmanager
async def _only_maker(store: Store) -> AsyncIterator[None]:
    fd = store.lock()
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Not in a thread: who is told to end while he waits would have to wait on.
                await asyncio.sleep(_PAUSE)
        yield
    finally:
        os.close(fd)


async def _make(
    machine: Machine, store: Store, description: dict[str, Any], boot_seconds: float
) -> None:
    memory = memfd.create("tapwright-new", machine.memory_mib << 20)
    try:
        with store.draft() as draft:
            async with warming.warmed(machine, SavedMemory(memory, False), boot_seconds) as qemu:
                await _save(qemu, draft / STATE)
            # Not in a thread, which would go on when this is given up.
            store.publish(draft, description, memory)
    finally:
        os.close(memory)


async def _save(qemu: Qemu, path: Path) -> None:
    """Write the state of the devices. The guest stands still from then on.

    QEMU is not told to stop it before: it would be as still when it is restored.
    """
    saved: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def note(data: dict[str, Any]) -> None:
        status = str(data.get("status"))
        if status in ("completed", "failed", "cancelled") and not saved.done():
            saved.set_result(status)

    qemu.qmp.on_event("MIGRATION", note)
    await qemu.qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        await qemu.qmp.execute_with_fd(fd, "getfd", fdname="state")
        await qemu.qmp.execute("migrate", uri="fd:state")
        try:
            status = await asyncio.wait_for(saved, _SAVE_SECONDS)
        except TimeoutError:
            raise HypervisorError(f"QEMU did not save it in {_SAVE_SECONDS:g} s") from None
    finally:
        os.close(fd)
    if status != "completed":
        raise HypervisorError(f"QEMU could not save it: {qemu.last_words()}")
