"""The state of a container on disk: ROOT/containers/ID/state.json.

The file is written before anything is made, and is always complete, so that `delete` finds it after
a kill at any instant. It does not contain the status, which follows from the shim: the shim lives
as long as the container's process. A process that changes a container holds a lock (flock(2)) on
its directory.
"""

import contextlib
import fcntl
import json
import os
import re
import time

from tapwright import shapes
from tapwright.errors import (
    ContainerExistsError,
    ContainerNotFoundError,
    ContainerStateError,
    UsageError,
)
from tapwright.linux import boot as boots
from tapwright.linux import claims, filelock, files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CREATING, CREATED, RUNNING = "creating", "created", "running"
PAUSED, STOPPED = "paused", "stopped"

OCI_VERSION = "1.2.0"
"""The specification to which states conform, whichever a bundle names."""

_FILE = "state.json"
_ID = re.compile(r"[\w+.\-]{1,128}", re.ASCII)

# In runc's words, because platforms look for them; so are other texts of this room.
NOT_FOUND = "container does not exist"
NOT_RUNNING = "container not running"


class Container:
    """A container; all attributes are saved.

    `sandbox` is the id of its sandbox, which it `owns` or joins. `pid` is the shim's, 0 before the
    shim exists; `pid_started` is the shim's start (clock ticks since the host's `boot`).
    `guest_pid` is the pid of its process in the guest, `caller` that of the process that called
    `create`. `created` is a time as in RFC 3339. `hooks` are those that run later: `poststart`,
    `poststop`. `cgroup` is the path of its control group on the host, `cgroup_kind` its kind
    (`oci.cgroup`), and `overhead` what the VM may use there beside the container: hundredths of a
    CPU, MiB, tasks.
    """

    def __init__(self, **saved: "Any") -> None:
        self.id: str = saved["id"]
        self.bundle: str = saved["bundle"]
        self.rootfs: str = saved.get("rootfs", "")
        self.annotations: dict[str, str] = saved.get("annotations", {})
        self.created: str = saved.get("created", "")
        self.sandbox: str = saved["sandbox"]
        self.owns: bool = saved["owns"]
        self.netns: str = saved.get("netns", "")
        self.hooks: dict[str, list[dict[str, Any]]] = saved.get("hooks", {})
        self.boot: str = saved.get("boot", "")
        self.pid: int = saved.get("pid", 0)
        self.pid_started: int = saved.get("pid_started", 0)
        self.guest_pid: int = saved.get("guest_pid", 0)
        self.caller: int = saved.get("caller", 0)
        self.started: bool = saved.get("started", False)
        self.paused: bool = saved.get("paused", False)
        self.cgroup: str = saved.get("cgroup", "")
        self.cgroup_kind: str = saved.get("cgroup_kind", "")
        more_cpu, more_memory, more_pids = saved.get("overhead", (0, 0, 0))
        self.overhead: list[int] = [more_cpu, more_memory, more_pids]
        # Fields of another version are kept for that version.
        vars(self).update((key, saved[key]) for key in saved.keys() - vars(self).keys())


_SHAPE: "dict[str, Any]" = {
    **dict.fromkeys(("id", "bundle", "rootfs", "created", "sandbox"), str),
    **dict.fromkeys(("netns", "boot", "cgroup", "cgroup_kind"), str),
    **dict.fromkeys(("pid", "pid_started", "guest_pid", "caller"), int),
    **dict.fromkeys(("owns", "started", "paused"), bool),
    "annotations": dict[str, str],
    "hooks": dict[str, list[dict[str, object]]],
    "overhead": list[int],
}


class Held:
    """A container's directory, locked by this process until `close`, or its end."""

    def __init__(self, directory: str, fd: int) -> None:
        self.directory = directory
        self._fd = fd

    def save(self, container: Container) -> None:
        """Raises ContainerStateError."""
        try:
            _save(self.directory, container)
        except OSError as error:
            raise ContainerStateError(
                f"{self.directory}/{_FILE} can't be written: {error.strerror}; "
                f"{files.remedy(error)}"
            ) from None

    def discard(self) -> None:
        """Remove the directory; the id is free at once. Raises ContainerStateError."""
        try:
            claims.discard(self.directory)
        except OSError as error:
            raise ContainerStateError(
                f"all is taken back, but {self.directory} can't be removed: {error.strerror}; "
                f"{files.remedy(error)}, and delete it again"
            ) from None

    def close(self) -> None:
        os.close(self._fd)


def directory_of(root: str, container_id: str | None = None) -> str:
    """The directory of a container, or of all containers. Raises UsageError for an invalid id."""
    if container_id == "":
        # This would be the directory of all containers, and `delete --force` would remove it.
        raise UsageError("container id cannot be empty")
    if container_id and (not _ID.fullmatch(container_id) or container_id in (".", "..")):
        raise UsageError(f"invalid container ID format: {container_id!r}")
    return os.path.join(root, "containers", container_id or "").rstrip("/")


def claim(root: str, container: Container) -> Held:
    """Enter a new container. Raises ContainerExistsError, ContainerStateError, UsageError."""
    target = directory_of(root, container.id)
    try:
        draft = claims.draft(os.path.dirname(target), container.id)
    except OSError as error:
        raise _unmakeable(target, error) from None
    try:
        fd = _open(draft)
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Not synced: nothing is lost with this file before something is made.
        _save(draft, container, synced=False)
        claims.take(draft, target)
    except FileExistsError:
        claims.remove(draft)
        raise ContainerExistsError("container with given ID already exists") from None
    except OSError as error:
        claims.remove(draft)
        raise _unmakeable(target, error) from None
    return Held(target, fd)


def load(root: str, container_id: str) -> Container:
    """Raises ContainerNotFoundError, ContainerStateError for a damaged file, UsageError."""
    directory = directory_of(root, container_id)
    path = os.path.join(directory, _FILE)
    try:
        with open(path) as file:
            found = Container(**json.load(file))
    except FileNotFoundError:
        raise ContainerNotFoundError(NOT_FOUND) from None
    except OSError as error:
        raise ContainerStateError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContainerStateError(f"{path} is damaged: {error}; delete the container") from None
    mistake = shapes.mistake(vars(found), _SHAPE)
    if found.id != container_id:
        mistake = mistake or f"id is {found.id!r}"
    if mistake:
        raise ContainerStateError(f"{path} is damaged: {mistake}; delete the container")
    return found


def running(root: str, container_id: str) -> Container:
    """Raises ContainerStateError for a container that does not run, and what `load` raises."""
    container = load(root, container_id)
    if not is_running(container):
        raise ContainerStateError(NOT_RUNNING)
    return container


def listing(root: str) -> list[Container]:
    """All containers whose state can be read, in the order of their ids."""
    found = []
    for name in claims.names(directory_of(root)):
        try:
            found.append(load(root, name))
        except (ContainerNotFoundError, ContainerStateError):
            continue  # just deleted; or damaged, which a call for this container reports
    return found


def is_of_another_boot(container: Container) -> bool:
    """Whether the container's process started before the host's last reboot, which ended it."""
    return container.boot not in ("", boot())


def sweep(root: str) -> None:
    """Remove directories of containers and sandboxes that killed calls have left behind."""
    for directory in (directory_of(root), os.path.join(root, "sandboxes")):
        with contextlib.suppress(OSError):
            claims.sweep(directory)


def hold(root: str, container_id: str, seconds: float) -> Held:
    """Lock a container. Raises ContainerNotFoundError, and ContainerStateError when another process
    holds the lock for longer than that."""
    directory = directory_of(root, container_id)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fd = _open(directory)
        except FileNotFoundError:
            raise ContainerNotFoundError(NOT_FOUND) from None
        if not filelock.locked_within(fd, deadline - time.monotonic()):
            os.close(fd)
            raise ContainerStateError(
                f"another call works on container {container_id!r} for more than {seconds:g} s; "
                "try again later"
            )
        if filelock.is_still(fd, directory):
            return Held(directory, fd)
        os.close(fd)  # the container was deleted meanwhile, and perhaps made again


def status(root: str, container: Container) -> str:
    """The container's status (runtime.md, "State")."""
    if not container.pid:
        return CREATING if filelock.is_held(directory_of(root, container.id)) else STOPPED
    if not is_running(container):
        return STOPPED
    if container.paused:
        return PAUSED
    return RUNNING if container.started else CREATED


def oci_state(container: Container, status: str) -> "dict[str, Any]":
    """The state as hooks get it (runtime.md, "State"); `pid` only if the process exists."""
    found: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "id": container.id,
        "status": status,
        "pid": container.pid,
        "bundle": container.bundle,
        "annotations": container.annotations,
    }
    if status == STOPPED or not container.pid:
        del found["pid"]
    return found


def is_running(container: Container) -> bool:
    """Whether the shim lives. A zombie does not count, nor another process with its pid."""
    return (
        container.pid_started > 0
        and start_of(container.pid) == container.pid_started
        and container.boot == boot()
    )


def boot() -> str:
    """The id of the host's present boot."""
    return boots.current()


def start_of(pid: int) -> int:
    """The start of a process, in clock ticks since the host's boot; -1 for a process that has
    ended."""
    fields = _facts(pid)
    return int(fields[19]) if fields else -1


def parent_of(pid: int) -> int:
    """The parent of a process; -1 for a process that has ended."""
    fields = _facts(pid)
    return int(fields[1]) if fields else -1


def command_of(pid: int) -> list[str]:
    """The command line of a process; empty for a process that has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", errors="replace") as file:
            return file.read().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _facts(pid: int) -> list[str]:
    """The fields of a living process, from its state on (proc(5), /proc/PID/stat)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name in front may contain spaces and brackets.
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] in "ZX" else fields


def _save(directory: str, container: Container, synced: bool = True) -> None:
    files.replace(os.path.join(directory, _FILE), json.dumps(vars(container)), synced)


def _open(directory: str) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _unmakeable(directory: str, error: OSError) -> ContainerStateError:
    return ContainerStateError(
        f"{directory} can't be made: {error.strerror}; {files.remedy(error)}, or choose another "
        "--root"
    )
