"""Run and delete sandboxes: plain blocking calls, for commands and programs."""

import importlib
import json
import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tapwright import errors
from tapwright.errors import NetworkError, SandboxStateError, TapwrightError, UsageError
from tapwright.linux import netns
from tapwright.sandbox import ownership
from tapwright.sandbox.launching import Launch
from tapwright.sandbox.record import LOG, Journal, Record, Spec, load
from tapwright.sandbox.registry import directory_of

Progress = Callable[[str], None]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_DELETE_SECONDS = 60.0
_SUPERVISOR_SECONDS = 10.0
_PID_PAUSE = 0.01


def check_id(sandbox_id: str) -> None:
    """Raises UsageError for what can't be a sandbox's id."""
    if not _ID.fullmatch(sandbox_id):
        raise UsageError(
            f"{sandbox_id!r} is not a sandbox id: 1 to 64 letters, digits, '_', '.', '-', "
            "the first a letter or digit"
        )


def run(
    root: str | Path,
    sandbox_id: str,
    spec: Spec,
    progress: Progress = lambda text: None,
    started: float | None = None,
    launch: Launch | None = None,
) -> Record:
    """Make a sandbox; return when its guest is on its networks.

    `started` (monotonic clock) is where its phases are counted from; `launch` a supervisor that was
    started before. When it fails, all that was made has been taken back. Raises UsageError,
    SandboxExistsError, and what `Bringup.run` does.
    """
    check_id(sandbox_id)
    if spec.netns and netns.is_own(spec.netns):
        raise UsageError(f"{spec.netns} is this host's own namespace; a sandbox would cut it off")
    record = Record(
        id=sandbox_id,
        spec=spec,
        created=time.time(),
        started=time.monotonic() if started is None else started,
        netns="" if spec.in_host_netns else spec.netns or netns.path_of(f"tapwright-{sandbox_id}"),
    )
    with launch or Launch() as supervisor:
        directory, alive_fd = ownership.claim(directory_of(root), record)
        supervisor.tell(directory, alive_fd)
        os.close(alive_fd)
        try:
            _wait_for(supervisor.socket, progress)
            return load(directory)
        except _Silence:
            said = _last_of_log(directory) or supervisor.last_words() or "it said nothing"
            delete(root, sandbox_id)
            raise SandboxStateError(f"the sandbox's supervisor died: {said}") from None


def delete(root: str | Path, sandbox_id: str, force: bool = False) -> list[str]:
    """End the sandbox and take back all it holds, in whatever state it is; nothing happens when
    there is none.

    Raises NetworkError when something could not be taken back: the sandbox stays then, dead, and
    can be deleted again. With `force` it goes all the same, and what was left behind is returned,
    in words. Raises SandboxStateError when somebody else is deleting it.
    """
    directory = directory_of(root) / sandbox_id
    with ownership.taking_down(directory, _DELETE_SECONDS) as there:
        if not there:
            return []
        _end_supervisor(directory)
        try:
            record = load(directory)
        except SandboxStateError as error:
            ownership.discard(directory)
            raise SandboxStateError(
                f"{error}. The sandbox is gone, but what it held on the host is not known: look "
                "for its namespace, and for leases of its networks"
            ) from None
        from tapwright.sandbox import teardown

        left = teardown.take_back(Journal(directory, record))
        if left and not force:
            raise NetworkError(
                f"sandbox {sandbox_id!r} is not fully taken back: {'; '.join(left)}. Mend that and "
                "delete it again; --force gives up what can't be undone"
            )
        ownership.discard(directory)
        return left


class _Silence(Exception):  # noqa: N818 - never leaves this module
    """The supervisor ended without a last word."""


def _wait_for(report: socket.socket, progress: Progress) -> None:
    """Until the sandbox runs. Raises what its bringing up raised, or _Silence."""
    try:
        for message in _messages(report):
            if "progress" in message:
                progress(message["progress"])
            elif "running" in message:
                return
            else:
                raise _failure(message)
    except KeyboardInterrupt:
        # The supervisor takes that for our end, and takes everything back.
        report.shutdown(socket.SHUT_WR)
        for _ in _messages(report):
            pass
        raise
    raise _Silence


def _messages(report: socket.socket) -> Iterator[dict[str, Any]]:
    with report.makefile() as lines:
        for line in lines:
            yield json.loads(line)


def _failure(message: dict[str, Any]) -> TapwrightError:
    text = message["failed"]
    if message["left"]:
        text += (
            f". Not everything could be taken back ({'; '.join(message['left'])}): delete the "
            "sandbox to try again"
        )
    return errors.named(message["kind"])(text)


def _end_supervisor(directory: Path) -> None:
    """End the supervisor and its QEMU, and wait until both are gone."""
    deadline = time.monotonic() + _SUPERVISOR_SECONDS
    while ownership.is_alive(directory):
        if time.monotonic() > deadline:
            raise SandboxStateError(f"the sandbox {directory.name!r} is only being made; try later")
        if pid := ownership.supervisor_pid(directory):
            _end(directory, pid)
        else:
            time.sleep(_PID_PAUSE)  # a supervisor that starts writes its pid; nothing tells when
    if pid := ownership.supervisor_pid(directory):
        from tapwright.hypervisor.process import end_orphans

        end_orphans(pid)


def _end(directory: Path, pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The lock tells that the pid is still the supervisor's, now that it can't be reused.
        if not ownership.is_alive(directory):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            # While it ends, load what is needed next.
            importlib.import_module("tapwright.sandbox.teardown")
            if select.select([pidfd], [], [], _SUPERVISOR_SECONDS)[0]:
                return
    finally:
        os.close(pidfd)


def _last_of_log(directory: Path) -> str:
    with suppress(OSError):
        if lines := (directory / LOG).read_text(errors="replace").strip().splitlines():
            return lines[-1]
    return ""
