"""Hooks: programs of the platform that run at points of a container's life (config.md, "POSIX-
platform Hooks"). `startContainer` runs in the guest; the others run here."""

import json
import os

from tapwright.errors import ContainerStateError
from tapwright.oci.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapwright.shapes import Json

_MOST_OUTPUT = 2000


def run(
    kind: str,
    hooks: "Sequence[Json]",
    state: "Json",
    netns: str = "",
    directory: str | None = None,
    environment: "Sequence[str] | None" = None,
) -> None:
    """Run hooks in their order, in the network namespace at `netns` and in the directory where
    these are given; `state` is the container's (runtime.md) and goes to their stdin. A hook without
    `env` gets `environment`, and this process's where that is not given, as by runc and crun.

    Raises ContainerStateError for the first hook that fails; later hooks do not run.
    """
    netns_fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC) if netns and hooks else -1
    try:
        for number, hook in enumerate(hooks):
            if failure := _failure(hook, json.dumps(state), netns_fd, directory, environment):
                raise ContainerStateError(f"{kind} hook {number} ({hook['path']}): {failure}")
    finally:
        if netns_fd >= 0:
            os.close(netns_fd)


def run_poststop(hooks: "Sequence[Json]", state: "Json", log: Log) -> None:
    """Run hooks of `poststop`, whose failures are only warnings."""
    for hook in hooks:
        try:
            run("poststop", [hook], state)
        except ContainerStateError as error:
            log.warn(str(error))


def _failure(
    hook: "Json",
    state: str,
    netns_fd: int,
    directory: str | None,
    environment: "Sequence[str] | None",
) -> str:
    """Run a hook; return why it failed, empty for success."""
    import subprocess  # most containers have no hooks

    given = hook.get("env", environment)
    variables = None if given is None else dict(entry.partition("=")[::2] for entry in given)
    timeout = hook.get("timeout")
    # Not a pipe, because a process that a hook leaves behind could hold it open for ever.
    with open(os.memfd_create("hook"), "r+b") as output:
        try:
            done = subprocess.run(
                hook.get("args") or [hook["path"]],
                executable=hook["path"],
                input=state.encode(),
                env=variables,
                cwd=directory,
                timeout=timeout,
                stdout=output,
                stderr=output,
                check=False,
                preexec_fn=None if netns_fd < 0 else lambda: _enter(netns_fd),
            )
        except subprocess.TimeoutExpired:
            return f"it did not end within {timeout} s"
        except OSError as error:
            return f"it can't be run: {error.strerror}"
        except ValueError as error:  # a null character
            return f"it can't be run: {error}"
        output.seek(0)
        said = output.read(_MOST_OUTPUT).decode(errors="replace").strip()
    if not done.returncode:
        return ""
    how = f"status {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
    return f"it ended with {how}" + (f", and said: {said}" if said else "")


def _enter(netns_fd: int) -> None:
    from tapwright.linux import libc

    libc.setns(netns_fd, libc.CLONE_NEWNET)
