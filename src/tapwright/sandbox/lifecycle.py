"""Runs and deletes sandboxes: plain blocking calls, for commands and programs."""

import importlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tapwright.dataclass import replace
from tapwright.errors import (
    NetworkError,
    NewerRecordError,
    SandboxStateError,
    UsageError,
)
from tapwright.hypervisor.machine import Machine
from tapwright.linux import boot, claims, ending, netns
from tapwright.progress import Progress
from tapwright.sandbox import deletion, report
from tapwright.sandbox.launching import Launch, Waiting
from tapwright.sandbox.report import Silence
from tapwright.state import ids, ownership, supervisors
from tapwright.state import record as record_file
from tapwright.state.record import LOG, Journal, Record, Spec, load
from tapwright.state.registry import directory_of

_DELETE_SECONDS = 60.0
_SUPERVISOR_SECONDS = 10.0
_PID_PAUSE = 0.01
_LATER = (
    "tapwright.hypervisor.orphans",
    "tapwright.state.teardown",
    "tapwright.cni.runtime",
    "tapwright.endpoint.tcfilter",  # that of most interfaces
)


def run(
    root: str | Path,
    sandbox_id: str,
    spec: Spec,
    progress: Progress = lambda text: None,
    started: float | None = None,
    launch: Launch | None = None,
    warn: Progress = lambda text: None,
    waiting: Callable[[Waiting], None] = lambda supervisor: None,
) -> Record:
    """Make a sandbox; return when its guest is on its networks.

    A namespace that is given as /proc/PID/ns/net is bound in /run/netns under the sandbox's name,
    so it exists until the sandbox goes.

    `warn` gets a line for each difference from the request. Phases count from `started` (monotonic
    clock); `launch` is a supervisor that was started before. `waiting` gets each supervisor for
    which this call waits; to give up, shut its socket down, and the supervisor takes everything
    back. After a failure, all that was made has been taken back. Raises UsageError,
    SandboxExistsError, and what `Bringup.run` does.
    """
    ids.check(sandbox_id)
    if spec.netns and netns.is_own(spec.netns):
        raise UsageError(f"{spec.netns} is this host's own namespace; a sandbox would cut it off")
    used = spec.netns or netns.path_of(f"tapwright-{sandbox_id}")
    if spec.netns and netns.is_of_a_process(spec.netns):
        # The namespace must outlive the process, whose number another process may have later.
        spec = replace(spec, netns=netns.for_others(spec.netns))
        used = netns.path_of(f"tapwright-{sandbox_id}")
    record = Record(
        id=sandbox_id,
        spec=spec,
        created=time.time(),
        started=time.monotonic() if started is None else started,
        netns="" if spec.in_host_netns else used,
        boot=boot.current(),
    )
    from tapwright.sandbox import spares  # which a deletion has no use for

    if spare := spares.take(root, spec):
        with spare:
            waiting(spare)
            try:
                return _run_by(spare, root, record, progress, warn)
            except Silence:
                pass  # only time is lost
    with launch or Launch() as supervisor:
        waiting(supervisor)
        try:
            return _run_by(supervisor, root, record, progress, warn)
        except Silence as silence:
            said = str(silence) or "it said nothing"
            raise SandboxStateError(f"the sandbox's supervisor died: {said}") from None


def _run_by(
    supervisor: Waiting, root: str | Path, record: Record, progress: Progress, warn: Progress
) -> Record:
    """Raises the errors of the start. When the supervisor dies, raises Silence with its last words,
    after everything is taken back."""
    directory, alive_fd = ownership.claim(directory_of(root), record)
    supervisor.tell(directory, alive_fd)
    os.close(alive_fd)
    try:
        report.follow(supervisor.socket, progress, warn)
        return load(directory)
    except Silence:
        said = _last_of_log(directory) or supervisor.last_words()
        delete(root, record.id)
        raise Silence(said) from None


def delete(root: str | Path, sandbox_id: str, force: bool = False) -> list[str]:
    """End the sandbox and take back all that it holds, in any state; do nothing when it does not
    exist.

    Raises NetworkError when something could not be taken back: then the sandbox stays, dead, and
    can be deleted again. With `force` this removes it all the same, and returns in words what was
    left behind. From a damaged record, this takes back what can be read. Raises SandboxStateError
    when another process is deleting the sandbox, NewerRecordError without `force`.
    """
    if deletion.is_by_supervisor(directory_of(root) / sandbox_id):
        return []
    return delete_from_here(root, sandbox_id, force)


def delete_from_here(root: str | Path, sandbox_id: str, force: bool = False) -> list[str]:
    """`delete`, for a caller that has asked the supervisor in vain."""
    directory = directory_of(root) / sandbox_id
    with ownership.taking_down(directory, _DELETE_SECONDS) as there:
        if not there:
            return []
        from tapwright.state import rebinding

        rebinding.bind_again(directory)
        return _take_down(directory, force)


def delete_dead(root: str | Path, sandbox_id: str, force: bool = False) -> list[str] | None:
    """Delete a sandbox that no process makes or supervises any more. Do nothing, and return None,
    when it does not exist, or lives. Otherwise raises and returns what `delete` does."""
    directory = directory_of(root) / sandbox_id
    with ownership.taking_down(directory, _DELETE_SECONDS) as there:
        # The dead stay dead: no other sandbox gets the directory's name as long as it is locked.
        if not there or supervisors.is_alive(directory):
            return None
        return _take_down(directory, force)


def _take_down(directory: Path, force: bool) -> list[str]:
    """Take down a sandbox whose directory is locked."""
    _end_supervisor(directory)
    record = _load_or_guess(directory, force)
    from tapwright.state import teardown

    left = teardown.take_back(Journal(directory, record))
    if left and not force:
        raise NetworkError(
            f"sandbox {directory.name!r} is not fully taken back: {'; '.join(left)}. Mend that and "
            "delete it again; --force gives up what can't be undone"
        )
    ownership.discard(directory)
    return left


def sweep(root: str | Path) -> None:
    """Remove directories that a killed or failed deletion has left behind."""
    with suppress(OSError):
        claims.sweep(directory_of(root))


def _load_or_guess(directory: Path, force: bool) -> Record:
    """The record; of a damaged one the journal, with guesses for the rest."""
    try:
        return load(directory)
    except NewerRecordError as error:
        if not force:
            raise NewerRecordError(
                f"{error}, or --force, which gives up what this one can't undo"
            ) from None
    except SandboxStateError:
        pass
    try:
        held = record_file.held(directory)
    except SandboxStateError as error:
        ownership.discard(directory)
        raise SandboxStateError(
            f"{error}. The sandbox is gone, but what it held on the host is not known: look "
            "for its namespace, and for leases of its networks"
        ) from None
    spec = Spec(Machine(Path(), Path()))
    return Record(directory.name, spec, time.time(), time.monotonic(), "", held=held)


def _end_supervisor(directory: Path) -> None:
    """End the supervisor and its QEMU, and wait until both are gone."""
    deadline = time.monotonic() + _SUPERVISOR_SECONDS
    while supervisors.is_alive(directory):
        if time.monotonic() > deadline:
            raise SandboxStateError(
                f"sandbox {directory.name!r} is still being made by another call: wait until that "
                "one has ended, or end it, and delete the sandbox again"
            )
        if pid := supervisors.pid_of(directory):
            if not _end(directory, pid):
                break  # something that it started has the lock, and outlives it
        else:
            time.sleep(_PID_PAUSE)  # a supervisor that starts writes its pid; no event says when
    if pid := supervisors.pid_of(directory):
        from tapwright.hypervisor import orphans

        orphans.end(pid)


def _end(directory: Path, pid: int) -> bool:
    """End the supervisor; return whether that pid was its own."""
    return ending.end(
        pid,
        _SUPERVISOR_SECONDS,
        lambda: supervisors.is_it(directory, pid),
        (signal.SIGTERM, signal.SIGKILL),
        # While it ends, load what is needed next.
        meanwhile=lambda: [importlib.import_module(module) for module in _LATER],
    )


def _last_of_log(directory: Path) -> str:
    with suppress(OSError):
        if lines := (directory / LOG).read_text(errors="replace").strip().splitlines():
            return lines[-1]
    return ""
