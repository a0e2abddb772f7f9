"""Control groups of version 1, version 2, or both beside each other (cgroups(7)).

A group is a path below the root of every mounted hierarchy. What the host lacks (a writable
hierarchy, a controller) becomes a warning: a container runs without it.
"""

import contextlib
import errno
import os
import re
import time

from tapwright.linux.files import closing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")  # of version 2, if the host has them
_SLICE = re.compile(r"[\w:.\\@]+(-[\w:.\\@]+)*\.slice", re.ASCII)
PERIOD = 100_000  # microseconds, in both versions
_REMOVE_SECONDS, _REMOVE_PAUSE = 2.0, 0.02


class Limits:
    """Limits of a group. None leaves a limit as it is; -1 removes it.

    `memory` is in bytes, `cpu_quota` in microseconds of each `cpu_period`, `pids` in tasks.
    `cpu_shares` are those of version 1 (2 to 262144); `cpus` and `mems` are lists in the kernel's
    format ("0-3,7").
    """

    def __init__(
        self,
        memory: "int | None" = None,
        cpu_quota: "int | None" = None,
        cpu_period: "int | None" = None,
        cpu_shares: "int | None" = None,
        pids: "int | None" = None,
        cpus: str = "",
        mems: str = "",
    ) -> None:
        self.memory = memory
        self.cpu_quota = cpu_quota
        self.cpu_period = cpu_period
        self.cpu_shares = cpu_shares
        self.pids = pids
        self.cpus = cpus
        self.mems = mems


class Hierarchy:
    """`place` is the mount point. `controllers` are those of version 1 (`name=systemd` too), and
    empty for version 2."""

    def __init__(self, place: str, controllers: "frozenset[str]") -> None:
        self.place = place
        self.controllers = controllers

    @property
    def is_v2(self) -> bool:
        return not self.controllers

    def directory(self, path: str) -> str:
        return f"{self.place}{path}"


def hierarchies() -> "list[Hierarchy]":
    """Return the mounted hierarchies, each with its first mount point (proc(5),
    /proc/PID/mountinfo)."""
    found: dict[object, Hierarchy] = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split()[:3]
            if kind not in ("cgroup", "cgroup2"):
                continue
            words = frozenset(options.split(",")) - {"rw", "ro", "xattr", "clone_children"}
            place = before.split()[4]
            found.setdefault(
                words if kind == "cgroup" else kind,
                Hierarchy(place, words if kind == "cgroup" else frozenset()),
            )
    return list(found.values())


def expanded(written: str) -> str:
    """Return the path of a group that the OCI's `linux.cgroupsPath` names: "/a/b", "a/b", or
    "slice:prefix:name", the format for groups that systemd makes; "" for "".

    systemd's slice "a-b.slice" lies in "a.slice" (systemd.slice(5)); an empty slice means
    "system.slice". Raises ValueError for an invalid path.
    """
    if not written:
        return ""
    if "\0" in written or "\n" in written:
        raise ValueError(f"{written!r} is no path of a control group")
    parts = written.split(":")
    if len(parts) == 3 and "/" not in parts[0]:
        slice_, prefix, name = parts
        if not name or "/" in name or "/" in prefix:
            raise ValueError(f"{written!r} is no slice:prefix:name")
        unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope".lstrip("-")
        return f"{_of_slice(slice_ or 'system.slice')}/{unit}"
    path = os.path.normpath(f"/{written}")
    return "/" + path.lstrip("/")


def _of_slice(name: str) -> str:
    if name == "-.slice":
        return ""
    if not _SLICE.fullmatch(name):
        raise ValueError(f"{name!r} is no slice of systemd's")
    words = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(words[: n + 1])}.slice" for n in range(len(words)))


def fresh(above: str, name: str) -> str:
    """Return a unique path for a new group. Names are unique in one state directory only, and other
    groups may exist."""
    return f"{above}/{name}-{os.urandom(4).hex()}"


def make(path: str) -> "list[str]":
    """Make a group, and its parents, in every hierarchy; return what could not be made, in
    words."""
    failures = []
    for hierarchy in hierarchies():
        try:
            try:
                _make(hierarchy, path)
            except FileNotFoundError:  # another process has removed an empty parent
                _make(hierarchy, path)
        except OSError as error:
            failures.append(f"{hierarchy.directory(path)}: {error.strerror}")
    return failures


def _make(hierarchy: Hierarchy, path: str) -> None:
    above = hierarchy.place
    for name in path.strip("/").split("/"):
        if hierarchy.is_v2:
            _enable(above)
        directory = f"{above}/{name}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o755)
        if "cpuset" in hierarchy.controllers:
            # A new cpuset has neither, and no process can join it
            # (Documentation/admin-guide/cgroup-v1).
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not _read(f"{directory}/{file}").strip():
                    _write(f"{directory}/{file}", _read(f"{above}/{file}").strip())
        above = directory


def _enable(directory: str) -> None:
    """Enable the controllers of version 2 for the groups below this one."""
    there = _read(f"{directory}/cgroup.controllers").split()
    enabled = _read(f"{directory}/cgroup.subtree_control").split()
    for name in _CONTROLLERS:
        if name in there and name not in enabled:
            # A group with processes of its own can't (cgroup-v2.rst).
            with contextlib.suppress(OSError):
                _write(f"{directory}/cgroup.subtree_control", f"+{name}")


def join(path: str, pid: int = 0) -> "list[str]":
    """Move a process, by default the calling one, with all its threads into a group. Processes that
    it starts later are in the group, too. Return what could not be joined, in words."""
    failures = []
    for hierarchy in hierarchies():
        try:
            _write(f"{hierarchy.directory(path)}/cgroup.procs", str(pid))
        except OSError as error:
            failures.append(f"{hierarchy.directory(path)}: {error.strerror}")
    return failures


def entrances() -> "list[int]":
    """Return descriptors for `enter` at the top of each hierarchy that can be joined."""
    found = []
    for hierarchy in hierarchies():
        with contextlib.suppress(OSError):
            name = f"{hierarchy.directory('')}/cgroup.procs"
            found.append(os.open(name, os.O_WRONLY | os.O_CLOEXEC))
    return found


def enter(entrances: "Sequence[int]") -> None:
    """Move the calling process through `entrances`, without looking anything up: a process may call
    this right after fork. A group that can't be joined is left out."""
    for fd in entrances:
        with contextlib.suppress(OSError):
            os.write(fd, b"0")


def prepare_moves() -> None:
    """Make moves that come within the next 10 ms quick: the first one in a while waits so long for
    the kernel (cgroup_attach_lock() waits for RCU). To be called by a process that is at the top of
    each hierarchy, and so stays where it is."""
    _enter_top()


def leave(path: str) -> bool:
    """Move the calling process out of a group, to the top of each hierarchy; whether it is in none
    of that path any more."""
    if os.getpid() not in members(path):
        return True
    _enter_top()
    return os.getpid() not in members(path)


def _enter_top() -> None:
    top = entrances()
    enter(top)
    for fd in top:
        os.close(fd)


def limit(path: str, limits: Limits) -> "list[str]":
    """Set limits of a group; return those that could not be set, in words."""
    failures = []
    found = hierarchies()
    for controller, name, value in _settings(limits):
        places = [
            hierarchy.directory(path) for hierarchy in found if controller in hierarchy.controllers
        ]
        if not places:
            places = [hierarchy.directory(path) for hierarchy in found if hierarchy.is_v2]
            name, value = _of_v2(name, value, limits)
        if not any(os.path.exists(f"{place}/{name}") for place in places):
            failures.append(f"{name}: there is no controller {controller!r} in {path}")
            continue
        try:
            _write(f"{places[0]}/{name}", value)
        except OSError as error:
            failures.append(f"{places[0]}/{name}: {value}: {error.strerror}")
    return failures


def _settings(limits: Limits) -> "Iterator[tuple[str, str, str]]":
    """Yield (controller, file of version 1, value) of each limit that is set, in an order that the
    kernel accepts."""
    if limits.cpus:
        yield "cpuset", "cpuset.cpus", limits.cpus
    if limits.mems:
        yield "cpuset", "cpuset.mems", limits.mems
    if limits.memory is not None:
        yield "memory", "memory.limit_in_bytes", str(limits.memory)
    if limits.cpu_shares:
        yield "cpu", "cpu.shares", str(limits.cpu_shares)
    if limits.cpu_period:
        yield "cpu", "cpu.cfs_period_us", str(limits.cpu_period)
    if limits.cpu_quota is not None:
        yield "cpu", "cpu.cfs_quota_us", str(limits.cpu_quota)
    if limits.pids is not None:
        yield "pids", "pids.max", "max" if limits.pids < 0 else str(limits.pids)


def _of_v2(name: str, value: str, limits: Limits) -> "tuple[str, str]":
    """Return the file of version 2 and its value (Documentation/admin-guide/cgroup-v2.rst)."""
    if name == "memory.limit_in_bytes":
        return "memory.max", "max" if value == "-1" else value
    if name == "cpu.shares":
        # As in runc and crun, 2 to 262144 become 1 to 10000.
        return "cpu.weight", str(1 + (min(max(int(value), 2), 262144) - 2) * 9999 // 262142)
    if name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
        quota = limits.cpu_quota
        written = "max" if quota is None or quota <= 0 else str(quota)
        return "cpu.max", f"{written} {limits.cpu_period or PERIOD}"
    return name, value


def summed(failures: "list[str]") -> str:
    """Return the failures in one clause; most often all have the same reason."""
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"{failures[0]}{more}"


def has(controller: str, path: str) -> bool:
    for hierarchy in hierarchies():
        if controller in hierarchy.controllers:
            return os.path.isdir(hierarchy.directory(path))
    return any(
        controller in _read(f"{hierarchy.directory(path)}/cgroup.controllers", "").split()
        for hierarchy in hierarchies()
        if hierarchy.is_v2
    )


def members(path: str) -> "set[int]":
    """Return the processes in a group, of all hierarchies."""
    return {
        int(line)
        for hierarchy in hierarchies()
        for line in _read(f"{hierarchy.directory(path)}/cgroup.procs", "").split()
    }


def remove(path: str, evict: bool = False) -> None:
    """Remove a group with the groups below it, in every hierarchy that has it. With `evict`,
    processes that are left after two seconds move to the hierarchy's root. Raises OSError for a
    group in use, with the processes that use it."""
    start = time.monotonic()
    left = hierarchies()
    while left := [each for each in left if not _is_removed(each.directory(path))]:
        passed = time.monotonic() - start
        if (passed > _REMOVE_SECONDS and not evict) or passed > 2 * _REMOVE_SECONDS:
            raise OSError(errno.EBUSY, _in_use(left[0].directory(path)))
        if passed > _REMOVE_SECONDS:
            # More than once: an ending process can't be moved, and a moved process may fork.
            for hierarchy in left:
                _evict(hierarchy, path)
        # A killed process leaves the group some time later; no event says when.
        time.sleep(_REMOVE_PAUSE)


def _evict(hierarchy: Hierarchy, path: str) -> None:
    for pid in _processes_below(hierarchy.directory(path)):
        with contextlib.suppress(OSError):
            _write(f"{hierarchy.place}/cgroup.procs", pid)


def _processes_below(directory: str) -> "list[str]":
    return [
        pid
        for above, _, _ in os.walk(directory)
        for pid in _read(f"{above}/cgroup.procs", "").split()
    ]


def _in_use(directory: str) -> str:
    users = [
        f"{_read(f'/proc/{pid}/comm', '?').strip()} ({pid})" for pid in _processes_below(directory)
    ]
    by = f" by {', '.join(users[:3])}" if users else ""
    return f"the control group {directory} is in use{by}"


def remove_if_empty(path: str) -> None:
    """Remove a group that other processes make and remove, too."""
    for hierarchy in hierarchies():
        with contextlib.suppress(OSError):
            os.rmdir(hierarchy.directory(path))


def _is_removed(directory: str) -> bool:
    try:
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                _is_removed(entry.path)
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def _read(path: str, default: "str | None" = None) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        if default is None:
            raise
        return default


def _write(path: str, text: str) -> None:
    # Without O_CREAT: on any other filesystem, `open` would make a file.
    with closing(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as fd:
        os.write(fd, text.encode())
