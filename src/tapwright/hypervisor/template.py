"""A template: a guest that was booted once, warmed and saved, from which others start.

A guest starts from it in the saved state: with the pages of its memory, which all guests share
until they write to them, and the state of its devices. A guest whose memory a vhost-user backend
shares has a copy of the pages. A template was saved without a NIC, so each guest gets its own. What
guests must not share is renewed: random numbers with the first message to the agent, clock and name
by a request.

Only root can write to a template: QEMU gets its memory as a sealed memfd, and its state by a
read-only descriptor.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tapwright.errors import AgentError, HypervisorError, TapwrightError
from tapwright.hypervisor import warming
from tapwright.hypervisor.machine import Machine, SavedMemory
from tapwright.hypervisor.qemu import Qemu
from tapwright.hypervisor.qmp import QmpError
from tapwright.hypervisor.restoring import CAPABILITIES, Restoring
from tapwright.hypervisor.template_pages import DamagedError
from tapwright.hypervisor.template_store import (
    RETRY_SECONDS,
    STATE,
    Store,
    Template,
    describe,
    key_of,
)
from tapwright.linux import memfd
from tapwright.linux.files import closing
from tapwright.progress import Progress

Elsewhere = Callable[[int], Awaitable[None]]
"""A function that makes another process make a template, and returns when it is made. It gives that
process the lock, a descriptor that the caller closes. Raises HypervisorError, AgentError,
OSError."""


_PAUSE = 0.02
_SAVE_SECONDS = 30.0
_PIECE = 1 << 20


class RefusedError(HypervisorError):
    """QEMU has started, and refuses the template."""


async def find_or_make(
    machine: Machine,
    directory: Path,
    limit_mib: int,
    boot_seconds: float,
    progress: Progress,
    again: bool = False,
    elsewhere: Elsewhere | None = None,
) -> Template:
    """Return the template of a machine. If there is none, make it, here or `elsewhere`; if another
    process is making it, wait for that. The caller closes the template. All templates in the
    directory may take `limit_mib`, 0 for any size; the ones unused for longest are removed.

    Raises HypervisorError, AgentError, OSError with the reason why it can't be made. What failed a
    short time ago is not tried again, unless `again`.
    """
    store = Store(directory, limit_mib)
    description = describe(machine)
    key = key_of(description)
    if template := store.find(key):
        return template
    async with _only_maker(store, progress) as lock:
        if template := store.find(key):
            return template
        if (reason := store.failure(key, RETRY_SECONDS)) and not again:
            raise HypervisorError(f"it could not be made a short time ago: {reason}")
        store.check_room(machine.memory_mib)
        progress("make the template that guests start from (once for this guest)")
        if elsewhere:
            await elsewhere(lock)
        else:
            await make(machine, store, boot_seconds)
        if template := store.find(key):
            return template
    raise HypervisorError("the template is damaged as soon as it is made; is its disk sound?")


async def make(machine: Machine, store: Store, boot_seconds: float) -> None:
    """Make a machine's template, under the store's lock; a failure is noted in the store. Raises
    HypervisorError, AgentError, OSError."""
    description = describe(machine)
    try:
        await _make(machine, store, description, boot_seconds)
    except (TapwrightError, OSError) as error:
        store.note_failure(key_of(description), str(error))
        raise


async def restored(machine: Machine, restoring: Restoring) -> Qemu:
    """Return the QEMU of a guest whose restoration has begun, when the guest runs.

    Raises HypervisorError, and its subclass RefusedError; then QEMU has ended.
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
    """Remove a template from which a guest could not be started, if the template is to blame. A
    template that was not damaged would fail again, and is not made anew at once."""
    if not isinstance(reason, DamagedError | RefusedError | AgentError):
        return
    store = Store(directory)
    store.drop(template.key)
    if not isinstance(reason, DamagedError):
        store.note_failure(template.key, str(reason))


@contextlib.asynccontextmanager
async def _only_maker(store: Store, progress: Progress) -> AsyncIterator[int]:
    """Hold the templates' lock; yield its descriptor."""
    waits = False
    with closing(store.lock()) as fd:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waits:
                    progress("wait for a template that is being made")
                waits = True
                # Not in a thread, which could not stop waiting when this process must end.
                await asyncio.sleep(_PAUSE)
        yield fd


async def _make(
    machine: Machine, store: Store, description: dict[str, Any], boot_seconds: float
) -> None:
    memory = memfd.create("tapwright-new", machine.memory_mib << 20)
    with closing(memory), store.draft() as draft:
        async with warming.warmed(machine, SavedMemory(memory, False), boot_seconds) as qemu:
            await _save(qemu, draft / STATE)
        # Not in a thread, which would go on when this task is cancelled.
        store.publish(draft, description, memory)


async def _save(qemu: Qemu, path: Path) -> None:
    """Write the state of the devices. The guest stands still from then on. It must not be stopped
    before: a restored guest would be stopped, too."""
    saved: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def note(data: dict[str, Any]) -> None:
        status = str(data.get("status"))
        if status in ("completed", "failed", "cancelled") and not saved.done():
            saved.set_result(status)

    qemu.qmp.on_event("MIGRATION", note)
    await qemu.qmp.execute("migrate-set-capabilities", capabilities=CAPABILITIES)
    # By a pipe: since version 11, QEMU does not write to a file that it gets as a descriptor
    # (migration/fd.c).
    reading, writing = os.pipe()
    with closing(reading):
        with closing(writing):
            await qemu.qmp.execute_with_fd(writing, "getfd", fdname="state")
        content = asyncio.create_task(_content(reading))
        try:
            await qemu.qmp.execute("migrate", uri="fd:state")
            async with asyncio.timeout(_SAVE_SECONDS):
                status = await saved
                if status == "completed":
                    state = await content
        except TimeoutError:
            raise HypervisorError(f"QEMU did not save it in {_SAVE_SECONDS:g} s") from None
        finally:
            content.cancel()
            await asyncio.gather(content, return_exceptions=True)
    if status != "completed":
        raise HypervisorError(f"QEMU could not save it: {qemu.last_words()}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(state)


async def _content(fd: int) -> bytes:
    """Return everything from a pipe, until its other end is closed."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    content = bytearray()
    while True:
        readable = asyncio.Event()
        loop.add_reader(fd, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(fd)
        piece = os.read(fd, _PIECE)
        if not piece:
            return bytes(content)
        content += piece
