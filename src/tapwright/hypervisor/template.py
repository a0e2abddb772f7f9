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
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from tapwright.errors import AgentError, HypervisorError, TapwrightError
from tapwright.hypervisor import warming
from tapwright.hypervisor.qemu import Machine, Qemu, SavedMemory
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

_CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},  # the memory is in our hands already
    {"capability": "events", "state": True},
]


class RefusedError(HypervisorError):
    """QEMU has started, and does not take the template."""


class Holders(Protocol):
    """Those who hold the memory of a template in a memfd: the others, and oneself."""

    def paths(self) -> Iterable[str]:
        """Where memory may be found, as /proc/PID/fd/N."""

    def enter(self, fd: int) -> None:
        """Let others find this one, as long as this process has it."""


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


def memory_of(machine: Machine, template: Template, holders: Holders) -> SavedMemory:
    """The memory that a guest is to be restored with. Raises DamagedError, OSError."""
    if machine.has_private_memory:
        return SavedMemory(_sealed(template, holders), is_complete=True)
    return SavedMemory(_copied(machine, template), is_complete=True, is_own=True)


def _sealed(template: Template, holders: Holders) -> int:
    """A sealed memfd with the memory of a template: that of another process, or a new one."""
    fd = _taken_over(template, holders)
    if fd is None:
        # One fills it, the others take it over.
        fcntl.flock(template.directory, fcntl.LOCK_EX)
        try:
            fd = _taken_over(template, holders)
            if fd is None:
                fd = template.fill()
            holders.enter(fd)
        finally:
            fcntl.flock(template.directory, fcntl.LOCK_UN)
        return fd
    holders.enter(fd)
    return fd


def _copied(machine: Machine, template: Template) -> int:
    """Memory such as the machine would be booted with, with the pages of a template."""
    size = template.memory_size
    if machine.hugepages:
        fd = memfd.create("tapwright-own", size, huge_pages=True)
    else:
        fd = memfd.create_in(machine.memory_directory, size)
    try:
        template.copy_to(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


async def restore(machine: Machine, template: Template, memory: SavedMemory) -> Qemu:
    """Start a guest from a template. It runs as soon as QEMU has read the state; one that can't
    read it ends. Memory that is the guest's own is closed here.

    Raises HypervisorError, among them RefusedError.
    """
    try:
        qemu = await Qemu.start(machine, memory)
    finally:
        if memory.is_own:
            os.close(memory.fd)
    try:
        await qemu.qmp.execute("migrate-set-capabilities", capabilities=_CAPABILITIES)
        os.lseek(template.state, 0, os.SEEK_SET)
        await qemu.qmp.execute_with_fd(template.state, "getfd", fdname="state")
        await qemu.qmp.execute("migrate-incoming", uri="fd:state")
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


def _taken_over(template: Template, holders: Holders) -> int | None:
    for path in holders.paths():
        fd = memfd.open_sealed(path, template.memory_name, template.memory_size)
        if fd is not None:
            return fd
    return None


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
    await qemu.qmp.execute("migrate-set-capabilities", capabilities=_CAPABILITIES)
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
