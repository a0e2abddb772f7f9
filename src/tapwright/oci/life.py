"""A container's life after it was made: start, signals, pause, limits, and its end."""

import contextlib
import os
import select
import signal

from tapwright.command import path as command_path
from tapwright.errors import (
    AgentError,
    ContainerNotFoundError,
    ContainerStateError,
    SandboxStateError,
    TapwrightError,
)
from tapwright.linux import ending, files
from tapwright.oci import state
from tapwright.oci.log import Log
from tapwright.oci.state import Container
from tapwright.sandbox import client, deletion
from tapwright.sandbox.client import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LOCK_SECONDS = 60.0
_GUEST_SECONDS = 15.0
_SHIM_SECONDS = 5.0
_SETTLE_SECONDS = 1.0

_UNSTARTABLE = {
    state.STOPPED: "cannot start a container that has stopped",
    state.RUNNING: "cannot start an already running container",
}


def start(root: str, container_id: str, log: Log) -> None:
    """Execute the container's program. If a hook of `poststart` fails, kill it. Raises
    ContainerStateError, and the guest's refusals."""
    with contextlib.closing(state.hold(root, container_id, _LOCK_SECONDS)) as held:
        container = state.load(root, container_id)
        status = state.status(root, container)
        if status != state.CREATED:
            raise ContainerStateError(
                _UNSTARTABLE.get(status, f"cannot start a container in the {status} state")
            )
        sandbox = client.named(root, container.sandbox)
        # Interfaces may have come since `create` (docker from version 26 on).
        sync(sandbox, container)
        _see_to_its_end(root, container, sandbox, log)
        container.started = True
        held.save(container)
        try:
            sandbox.call("start_container", id=container_id)
        except TapwrightError:
            container.started = False
            held.save(container)
            raise
        _run_poststart(root, container)


def kill(root: str, container_id: str, number: int, all_processes: bool) -> None:
    """Send a signal to the container's first process, or to `all_processes`; signal 0 only checks.

    Raises ContainerNotFoundError, ContainerStateError when it does not run.
    """
    container = state.load(root, container_id)
    # In a shared pid namespace, other processes may live on when the first one has ended.
    if not all_processes and not state.is_running(container):
        raise ContainerStateError(state.NOT_RUNNING)
    if not number:
        return
    try:
        sandbox = client.named(root, container.sandbox, _GUEST_SECONDS)
        sandbox.call("signal_container", id=container_id, signal=number, all=all_processes)
    except TapwrightError as error:
        if _ends(container, _SETTLE_SECONDS):
            if not all_processes:
                raise ContainerStateError(state.NOT_RUNNING) from None
        elif isinstance(error, ContainerStateError | ContainerNotFoundError):
            # The process has ended, but not all of its output is written yet.
            raise ContainerStateError(state.NOT_RUNNING) from None
        elif number == signal.SIGKILL and isinstance(error, AgentError | SandboxStateError):
            # The guest does not answer. For the platform, the container ends with its shim.
            _kill_shim(container)
        else:
            raise


def pause(root: str, container_id: str) -> None:
    """Freeze the container's processes. Raises ContainerStateError."""
    _switch(root, container_id, "pause_container", paused=True)


def resume(root: str, container_id: str) -> None:
    """Thaw the container's processes. Raises ContainerStateError for a container that is not
    paused."""
    _switch(root, container_id, "resume_container", paused=False)


def update(root: str, container_id: str, resources: "dict[str, Any]", log: Log) -> None:
    """Set the container's limits (linux.resources) in the guest and on the host; the VM grows and
    shrinks with them.

    Raises ContainerStateError, and HypervisorError when the VM can't grow; then nothing has
    changed.
    """
    from tapwright.oci import cgroup, guest

    container = state.running(root, container_id)
    cgroup.check_update(container, resources)
    of_guest = guest.resources(resources, log)
    sandbox = client.named(root, container.sandbox)
    answer = sandbox.call("update_container", id=container_id, resources=of_guest)
    for warning in (answer or {}).get("warnings", ()):
        log.warn(warning)
    cgroup.update(container, resources, answer is not None, log)


def delete(root: str, container_id: str, force: bool, log: Log) -> None:
    """Delete a container and all that it holds; if it started its sandbox, the sandbox, too.

    With `force` this ends a running container, and accepts that none exists. Raises
    ContainerNotFoundError, ContainerStateError for a running container, NetworkError for what can't
    be taken back.
    """
    try:
        held = state.hold(root, container_id, _LOCK_SECONDS)
    except ContainerNotFoundError:
        if force:
            state.sweep(root)
            return
        raise
    with contextlib.closing(held):
        container = _load_or_guess(root, container_id)
        status = state.status(root, container)
        if status in (state.RUNNING, state.PAUSED) and not force:
            raise ContainerStateError(
                f"cannot delete container {container_id} that is not stopped: {status}"
            )
        for left in take_down(root, container, force):
            log.warn(f"given up: {left}")
        run_poststop(container, log)
        held.discard()


def take_down(root: str, container: Container, force: bool) -> list[str]:
    """End the container, and the sandbox that it owns; wait for the shim's end. Return in words
    what `force` gave up. Raises as `delete` does."""
    from tapwright.oci import cgroup  # `start` and `kill` do without

    left = []
    if container.owns:
        if not deletion.is_by_supervisor(client.directory_of(root, container.sandbox)):
            from tapwright.sandbox import lifecycle

            left = lifecycle.delete_from_here(root, container.sandbox, force)
    else:
        left = _leave(client.named(root, container.sandbox, _GUEST_SECONDS), container.id)
    if not _ends(container, _SHIM_SECONDS):
        _kill_shims(container)
    if kept := cgroup.remove(container):
        left.append(kept)
    return left


def _leave(sandbox: Supervisor, container_id: str) -> list[str]:
    """Take a member out of its sandbox. Return in words what was given up: a guest that refuses or
    hangs must not prevent the deletion."""
    left = []
    for op, arguments in (
        ("delete_container", {"id": container_id, "force": True}),
        ("unshare", {"container": container_id}),
    ):
        try:
            sandbox.call(op, **arguments)
        except SandboxStateError:
            pass  # the sandbox has ended, with all its containers; or its guest hangs
        except TapwrightError as error:
            left.append(str(error))
    return left


def sync(sandbox: Supervisor, container: Container) -> None:
    """Make the guest's network equal to the sandbox's network namespace. Raises NetworkError."""
    if container.netns:
        sandbox.call("sync", at_once=True)


def _see_to_its_end(root: str, container: Container, sandbox: Supervisor, log: Log) -> None:
    """Ask the supervisor to delete the container at its end if its monitor has died by then. The
    monitor called `create`, and is the parent of the shim."""
    if state.parent_of(container.pid) != container.caller:
        return
    # Podman's conmon becomes the command that deletes. CRI-O's conmon ends before that; CRI-O
    # deletes.
    monitor_deletes = "--exit-command" in state.command_of(container.caller)
    is_crios = any(key.startswith("io.kubernetes.cri-o.") for key in container.annotations)
    if is_crios and not monitor_deletes:
        return
    sandbox.call_if_known(
        "delete_when_abandoned",
        log.warn,
        process=container.pid,
        monitor=container.caller,
        monitor_deletes=monitor_deletes,
        bundle=container.bundle,
        command=[command_path(), "--root", root, "delete", "--force", container.id],
    )


def _switch(root: str, container_id: str, op: str, paused: bool) -> None:
    with contextlib.closing(state.hold(root, container_id, _LOCK_SECONDS)) as held:
        container = state.running(root, container_id)
        before, container.paused = container.paused, paused
        held.save(container)
        try:
            client.named(root, container.sandbox).call(op, id=container_id)
        except BaseException as error:
            container.paused = before
            held.save(container)
            if isinstance(error, ContainerStateError) and before is paused:
                raise ContainerStateError(
                    state.NOT_RUNNING if paused else "container not paused"
                ) from None
            raise


def _run_poststart(root: str, container: Container) -> None:
    """Run the container's hooks of `poststart`. The first one that fails ends the container
    (runtime.md, "Lifecycle"; runc and crun have always done so). Raises ContainerStateError."""
    if "poststart" in container.hooks:
        from tapwright.oci import hooks

        shown = state.oci_state(container, state.RUNNING)
        try:
            hooks.run("poststart", container.hooks["poststart"], shown)
        except ContainerStateError:
            with contextlib.suppress(ContainerStateError):  # it has ended by itself
                kill(root, container.id, signal.SIGKILL, False)
            _ends(container, _GUEST_SECONDS)
            raise


def run_poststop(container: Container, log: Log) -> None:
    """Run the container's hooks of `poststop`."""
    if "poststop" in container.hooks:
        from tapwright.oci import hooks

        shown = state.oci_state(container, state.STOPPED)
        hooks.run_poststop(container.hooks["poststop"], shown, log)


def _load_or_guess(root: str, container_id: str) -> Container:
    """The container; for a damaged file a guess, so that it can be deleted: a container of that
    name with a sandbox of its own."""
    try:
        return state.load(root, container_id)
    except ContainerStateError:
        from tapwright.oci import cgroup
        from tapwright.oci.pods import sandbox_id

        sandbox = sandbox_id(container_id)
        guess = Container(id=container_id, bundle="", sandbox=sandbox, owns=True)
        guess.cgroup, guess.cgroup_kind = cgroup.of_sandbox(root, sandbox), cgroup.PLATFORMS
        return guess


def _ends(container: Container, seconds: float) -> bool:
    """Whether the shim ends within the time."""
    if not state.is_running(container):
        return True
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return True
    with files.closing(pidfd):
        # Check again: only now, with the pidfd open, can no other process get this pid.
        return not state.is_running(container) or bool(select.select([pidfd], [], [], seconds)[0])


def _kill_shim(container: Container) -> None:
    ending.end(container.pid, _SHIM_SECONDS, lambda: state.is_running(container))


def _kill_shims(container: Container) -> None:
    """Kill all shims of the container, because their callers wait for them."""
    from tapwright.oci import shim

    _kill_shim(container)
    for pid in shim.pids_of(container.id):
        ending.end(pid, _SHIM_SECONDS, lambda: pid in shim.pids_of(container.id))  # noqa: B023
