"""Control groups, of version 1, 2 or both beside each other (cgroups(7)).

A group is a path below the root of every hierarchy that is mounted. What a host has not (a
hierarchy that is read-only, a controller that is not there) becomes a warning, and is passed over:
a container runs without it.
"""

import contextlib
import errno
import os
import re
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")  # of version 2, where they are there
_SLICE = re.compile(r"[\w:.\\@]+(-[\w:.\\@]+)*\.slice", re.ASCII)
PERIOD = 100_000  # microseconds, of both versions
_REMOVE_SECONDS, _REMOVE_PAUSE = 2.0, 0.02


class Limits:
    """What a group may use; None is what stays as it is, -1 no limit.

    `memory` in bytes, `cpu_quota` in microseconds of each `cpu_period`, `cpu_shares` as version 1
    counts them (2 to 262144), `pids` in tasks, `cpus` and `mems` as the kernel lists them
    ("0-3,7").
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
    """`place` is where it is mounted; `controllers` those of version 1 (`name=systemd` too), empty
    for version 2."""

    def __init__(self, place: str, controllers: "frozenset[str]") -> None:
        self.place = place
        self.controllers = controllers

    @property
    def is_v2(self) -> bool:
        return not self.controllers

    def directory(self, path: str) -> str:
        return f"{self.place}{path}"


def hierarchies() -> "list[Hierarchy]":
    """The mounted hierarchies, each where it was mounted first (proc(5), /proc/PID/mountinfo)."""
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
    """The path of a group as the OCI's `linux.cgroupsPath` names it: "/a/b", "a/b", or
    "slice:prefix:name" as it is written where systemd makes the groups; "" for "".

    systemd's slice "a-b.slice" lies in "a.slice" (systemd.slice(5)); an empty one is
    "system.slice". Raises ValueError for what can't be one.
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
    """A unique path for a new group: names are unique in one state directory only, and others may
    exist."""
    return f"{above}/{name}-{os.urandom(4).hex()}"


def make(path: str) -> "list[str]":
    """Make a group in every hierarchy, its parents too; return what could not be made, in words."""
    failures = []
    for hierarchy in hierarchies():
        try:
            try:
                _make(hierarchy, path)
            except FileNotFoundError:  # another process removed an empty parent
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
            # A new one has none, and can't be joined (Documentation/admin-guide/cgroup-v1).
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not _read(f"{directory}/{file}").strip():
                    _write(f"{directory}/{file}", _read(f"{above}/{file}").strip())
        above = directory


def _enable(directory: str) -> None:
    """Give the groups below this one of version 2 its controllers."""
    there = _read(f"{directory}/cgroup.controllers").split()
    enabled = _read(f"{directory}/cgroup.subtree_control").split()
    for name in _CONTROLLERS:
        if name in there and name not in enabled:
            with contextlib.suppress(OSError):  # one with processes of its own (cgroup-v2.rst)
                _write(f"{directory}/cgroup.subtree_control", f"+{name}")


def join(path: str, pid: int = 0) -> "list[str]":
    """Move a process, by default the calling one, with all its threads into a group; what it starts
    from there on is in it. Return what could not be joined, in words."""
    failures = []
    for hierarchy in hierarchies():
        try:
            _write(f"{hierarchy.directory(path)}/cgroup.procs", str(pid))
        except OSError as error:
            failures.append(f"{hierarchy.directory(path)}: {error.strerror}")
    return failures


def entrances(path: str) -> "list[int]":
    """Descriptors for `enter`, of every hierarchy where the group can be joined."""
    found = []
    for hierarchy in hierarchies():
        with contextlib.suppress(OSError):
            name = f"{hierarchy.directory(path)}/cgroup.procs"
            found.append(os.open(name, os.O_WRONLY | os.O_CLOEXEC))
    return found


def enter(entrances: "Sequence[int]") -> None:
    """Move the calling process through `entrances`, without looking for anything: it may have been
    forked a moment ago. Where it can't be, it stays."""
    for fd in entrances:
        with contextlib.suppress(OSError):
            os.write(fd, b"0")


def limit(path: str, limits: Limits) -> "list[str]":
    """Set limits of a group; return what could not be set, in words."""
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
    """(controller, file of version 1, value) of each limit that is set, in the order in which they
    can be."""
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
    """The file of version 2 and its value (Documentation/admin-guide/cgroup-v2.rst)."""
    if name == "memory.limit_in_bytes":
        return "memory.max", "max" if value == "-1" else value
    if name == "cpu.shares":
        # As runc and crun: 2 to 262144 become 1 to 10000.
        return "cpu.weight", str(1 + (min(max(int(value), 2), 262144) - 2) * 9999 // 262142)
    if name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
        quota = limits.cpu_quota
        written = "max" if quota is None or quota <= 0 else str(quota)
        return "cpu.max", f"{written} {limits.cpu_period or PERIOD}"
    return name, value


def summed(failures: "list[str]") -> str:
    """What could not be done, in one clause: most often one reason is that of all."""
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"{failures[0]}{more}"


def has(controller: str, path: str) -> bool:
    """Whether a group has a controller."""
    for hierarchy in hierarchies():
        if controller in hierarchy.controllers:
            return os.path.isdir(hierarchy.directory(path))
    return any(
        controller in _read(f"{hierarchy.directory(path)}/cgroup.controllers", "").split()
        for hierarchy in hierarchies()
        if hierarchy.is_v2
    )


def members(path: str) -> "set[int]":
    """The processes in a group, of any hierarchy."""
    return {
        int(line)
        for hierarchy in hierarchies()
        for line in _read(f"{hierarchy.directory(path)}/cgroup.procs", "").split()
    }


def remove(path: str, evict: bool = False) -> None:
    """Remove a group, and what is below it, where it is there; in every hierarchy, whatever there
    is in another. What is left in it after two seconds goes, to `evict` it, to the hierarchy's
    root. Raises OSError for one that is in use, with the processes that use it."""
    start = time.monotonic()
    left = hierarchies()
    while left := [each for each in left if not _is_removed(each.directory(path))]:
        passed = time.monotonic() - start
        if (passed > _REMOVE_SECONDS and not evict) or passed > 2 * _REMOVE_SECONDS:
            raise OSError(errno.EBUSY, _in_use(left[0].directory(path)))
        if passed > _REMOVE_SECONDS:
            # More than once: what is about to end can't be moved, and what is moved may fork.
            for hierarchy in left:
                _evict(hierarchy, path)
        time.sleep(_REMOVE_PAUSE)  # what was killed leaves in its own time; nothing tells when


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
    """Remove a group that others make and remove, too."""
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
    # Not by `open`, which would make a file on a filesystem that is none of control groups.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
