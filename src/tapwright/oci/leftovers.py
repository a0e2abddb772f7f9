"""Takes back what sandboxes, spares and containers have left on the host after a reboot, or when
their processes were killed.

A sandbox, spare or container that lives holds its lock; this module takes the lock first, and so
leaves the living alone. It also leaves containers of the present boot, and their sandboxes, because
their platform still knows them, and deletes them itself.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tapwright.errors import ContainerNotFoundError, TapwrightError
from tapwright.hypervisor.template_store import Store
from tapwright.oci import state
from tapwright.sandbox import lifecycle, spares
from tapwright.state import registry

_LOCK_SECONDS = 10.0


@dataclass
class Collected:
    """The names of everything that is taken back; `given_up` and `problems` are texts."""

    containers: list[str] = field(default_factory=list)
    sandboxes: list[str] = field(default_factory=list)
    spares: list[str] = field(default_factory=list)
    drafts: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(root: str, templates: str, force: bool = False) -> Collected:
    """Take back all leftovers; `templates` is the directory of templates, or empty.

    A leftover that can't be taken back completely stays, and `problems` says why. With `force` it
    goes all the same, and `given_up` says what was left behind."""
    found = Collected()
    for container in state.listing(root):
        if state.is_of_another_boot(container):
            with _noted(found.problems, f"container {container.id}"):
                _container(found, root, container.id, force)
    known = {container.sandbox for container in state.listing(root)}
    for sandbox in registry.listing(root):
        # A container that was never finished may lack its boot; its sandbox has it.
        is_known = sandbox.id in known and not _is_of_another_boot(sandbox)
        if sandbox.status == registry.DEAD and not is_known:
            with _noted(found.problems, f"sandbox {sandbox.id}"):
                _sandbox(found, root, sandbox.id, force)
    state.sweep(root)
    found.spares = spares.sweep(root)
    if templates:
        with _noted(found.problems, "templates"):
            found.drafts = Store(Path(templates)).clear()
    return found


def _is_of_another_boot(sandbox: registry.Sandbox) -> bool:
    return sandbox.record is not None and sandbox.record.boot not in ("", state.boot())


@contextlib.contextmanager
def _noted(problems: list[str], name: str) -> Iterator[None]:
    """Note a failure, so that the other leftovers are still taken back."""
    try:
        yield
    except (TapwrightError, OSError) as error:
        problems.append(f"{name}: {error}")


def _container(found: Collected, root: str, container_id: str, force: bool) -> None:
    """Delete a container whose process, control group and shim ended with their boot. Hooks do not
    run: after a reboot, runc has forgotten them, too, because its state is in /run."""
    try:
        held = state.hold(root, container_id, _LOCK_SECONDS)
    except ContainerNotFoundError:
        return
    with contextlib.closing(held):
        container = state.load(root, container_id)
        if not state.is_of_another_boot(container):
            return  # a new container of the same name
        if container.owns:
            _sandbox(found, root, container.sandbox, force)
        held.discard()
        found.containers.append(container_id)


def _sandbox(found: Collected, root: str, sandbox_id: str, force: bool) -> None:
    left = lifecycle.delete_dead(root, sandbox_id, force)
    if left is None:
        return
    found.given_up += [f"sandbox {sandbox_id}: {what}" for what in left]
    found.sandboxes.append(sandbox_id)
