"""Runs more processes in a container, and waits for processes in the foreground."""

import os
import signal
from contextlib import closing

from tapwright.errors import BundleError, ContainerStateError
from tapwright.oci import cgroup, guest, home, shim, state, stdio
from tapwright.oci.log import Log
from tapwright.sandbox import client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.oci.creation import Wish
    from tapwright.shapes import Json

_FORWARDED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGWINCH),
)
# crun gives a process without variables those of its container (libcrun, container.c:
# libcrun_container_exec_with_options). This one is none: putenv(3) unsets a name without a value.
# Then crun sets HOME, as runc does.
_NO_VARIABLE = "HOME"


def execute(
    root: str,
    container_id: str,
    process: "Json",
    log: Log,
    console_socket: str = "",
    pid_file: str = "",
    detached: bool = False,
) -> int:
    """Run a process (config.md, "Process") in a container; return its exit status, or 0 at once
    when `detached`. Raises ContainerStateError, and the guest's refusals."""
    container = state.load(root, container_id)
    status = state.status(root, container)
    if status in (state.STOPPED, state.CREATING):
        raise ContainerStateError("cannot exec in a stopped container")
    if status == state.PAUSED:
        raise ContainerStateError("cannot exec in a paused container; resume it first")
    process = _completed(process, container)
    with closing(stdio.of_process(process, console_socket, detached)) as made:
        connection, _ = client.named(root, container.sandbox).converse(
            "exec_container",
            made.descriptors,
            id=container_id,
            exec=os.urandom(8).hex(),
            process=guest.process(process, log),
            terminal=made.terminal is not None,
            null_stdin=made.null_stdin,
        )
        with connection:
            pid = shim.start(connection, container_id, made.terminal, made.own)
            cgroup.enter(container, pid)
        if pid_file:
            try:
                shim.write_pid_file(pid_file, pid)
            except ContainerStateError:
                os.kill(pid, signal.SIGKILL)  # no caller would know of it
                raise
        return 0 if detached else wait(pid)


def run(wish: "Wish", keep: bool, log: Log) -> int:
    """Make and start a container; wait for its end, delete it (unless `keep`), and return its exit
    status; or return 0 at once when the wish is detached. Raises TapwrightError."""
    from tapwright.oci import creation, life

    container, made = creation.create(wish, log)
    with closing(made):
        try:
            life.start(wish.root, wish.id, log)
        except BaseException:
            life.delete(wish.root, wish.id, True, log)
            raise
        log.succeeded()
        if wish.detached:
            return 0
        status = wait(container.pid)
    if not keep:
        life.delete(wish.root, wish.id, True, log)
    return status


def wait(pid: int) -> int:
    """Wait for a shim, which is a child of this process; return its exit status. Meanwhile, signals
    to this process go to the shim."""

    def forward(number: int, frame: object) -> None:
        os.kill(pid, number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        # WNOWAIT keeps the pid until the handlers that send signals to it are gone.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def process_of(
    root: str,
    container_id: str,
    argv: list[str],
    *,
    cwd: str = "",
    env: "list[str] | None" = None,
    user: str = "",
    groups: "list[str] | None" = None,
    capabilities: "list[str] | None" = None,
    no_new_privileges: bool = False,
    terminal: bool = False,
) -> "Json":
    """A process like the container's own, with the given changes. Raises BundleError."""
    from tapwright.oci import bundle as bundles

    process = bundles.load(state.load(root, container_id).bundle).process
    process["args"] = argv
    process["terminal"] = terminal
    process["env"] = [*process.get("env", ()), *(env or ())]
    if cwd:
        process["cwd"] = cwd
    if no_new_privileges:
        process["noNewPrivileges"] = True
    ids = process.setdefault("user", {"uid": 0, "gid": 0})
    if user:
        uid, _, gid = user.partition(":")
        ids["uid"] = _number(uid, "--user")
        ids["gid"] = _number(gid, "--user") if gid else ids.get("gid", 0)
    ids.setdefault("additionalGids", []).extend(
        _number(gid, "--additional-gids") for gid in groups or ()
    )
    for kind in ("bounding", "effective", "permitted"):
        if capabilities:
            process.setdefault("capabilities", {}).setdefault(kind, []).extend(capabilities)
    bundles.check_process(process, "exec")
    return process


def _completed(process: "Json", container: state.Container) -> "Json":
    """The process with a HOME, and with the limits of the container's own process if it has none
    (libcontainer: newInitConfig)."""
    if not process.get("rlimits") or home.lacks(process):
        from tapwright.oci import bundle as bundles

        try:
            bundle = bundles.load(container.bundle)
        except BundleError:  # the bundle may be gone by now
            pass
        else:
            limits = process.get("rlimits") or bundle.process.get("rlimits", [])
            process = {**home.given(process, bundle), "rlimits": limits}
    return process if process.get("env") else {**process, "env": [_NO_VARIABLE]}


def _number(text: str, option: str) -> int:
    if not text.isdecimal():
        raise BundleError(f"{option}: {text!r} is not a number; names are known in the container")
    return int(text)
