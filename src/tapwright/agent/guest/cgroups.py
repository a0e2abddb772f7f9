"""The control group of a container: its processes, and what they have used.

The files are those of Documentation/admin-guide/cgroup-v2.rst in the kernel's sources.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from tapwright.agent.guest.files import read, write

_ROOT = "/sys/fs/cgroup"
# The bounds that keep an answer within a message: bytes of one command, bytes of all commands, and
# processes.
_COMMAND_BYTES, _COMMANDS_BYTES = 4096, 64 * 1024
_MOST_PROCESSES = 4096

_TICKS = os.sysconf("SC_CLK_TCK")


def of_container(name: str) -> str:
    """Return the group of a container, as the container's OCI configuration names it."""
    return f"/{name}"


def signal_all(cgroup: str, number: int) -> None:
    """Send a signal to all processes of a group and of the groups below it. Raises OSError for a
    number that is no signal."""
    if number == signal.SIGKILL:
        with contextlib.suppress(FileNotFoundError):
            write(f"{_path(cgroup)}/cgroup.kill", "1")
        return
    for pid in _pids(cgroup):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def processes(cgroup: str) -> list[dict[str, Any]]:
    """Return pid, ppid, uid, gid, state, started (seconds after the guest's boot), cpu (seconds)
    and command (a list of words) of each process of a group and of the groups below it."""
    found = []
    room = _COMMANDS_BYTES
    for pid in _pids(cgroup):
        with contextlib.suppress(OSError):  # the process has ended in the meantime
            process = _process(pid, min(room, _COMMAND_BYTES))
            room -= min(room, sum(map(len, process["command"])))
            found.append(process)
            if len(found) == _MOST_PROCESSES:
                break
    return found


def statistics(cgroup: str) -> dict[str, Any]:
    """Return the group's numbers, named as the kernel's files: `cpu` (cpu.stat), `memory` (current,
    max, peak, swap, `stat`, `events`), `pids` (current, max), `io` (io.stat by device). None stands
    for "max". A file that the kernel lacks is left out."""
    path = _path(cgroup)
    memory: dict[str, Any] = {
        name: _number(f"{path}/memory.{file}")
        for name, file in (
            *(("current", "current"), ("max", "max"), ("peak", "peak")),
            *(("swap", "swap.current"), ("swap_max", "swap.max")),
        )
        if os.path.exists(f"{path}/memory.{file}")
    }
    memory["stat"] = _table(f"{path}/memory.stat")
    memory["events"] = _table(f"{path}/memory.events")
    pids = {name: _number(f"{path}/pids.{name}") for name in ("current", "max")}
    return {
        "cpu": _table(f"{path}/cpu.stat"),
        "memory": memory,
        "pids": pids,
        "io": _io(f"{path}/io.stat"),
    }


def memory_events(cgroup: str) -> str:
    """Return the path of memory.events; the kernel reports each change of the file by inotify."""
    return f"{_path(cgroup)}/memory.events"


def oom_kills(cgroup: str) -> int:
    """Return how many processes of a group, and of the groups below it, the kernel killed because
    memory was used up. The number is 0 if the kernel does not count them."""
    return _table(memory_events(cgroup)).get("oom_kill", 0)


def remove(cgroup: str) -> None:
    """Remove a group without processes, and the groups below it. Raises OSError."""
    for directory in sorted(_groups(cgroup), reverse=True):
        os.rmdir(directory)


def _path(cgroup: str) -> str:
    return f"{_ROOT}/{cgroup.strip('/')}"


def _groups(cgroup: str) -> Iterator[str]:
    for directory, _, _ in os.walk(_path(cgroup)):
        yield directory


def _pids(cgroup: str) -> Iterator[int]:
    for directory in _groups(cgroup):
        with contextlib.suppress(OSError):  # the group was removed in the meantime
            yield from map(int, read(f"{directory}/cgroup.procs").split())


def _process(pid: int, most: int) -> dict[str, Any]:
    directory = f"/proc/{pid}"
    status = os.stat(directory)
    # The fields follow the name, which may contain spaces and parentheses (proc(5)).
    name, _, rest = read(f"{directory}/stat").rpartition(") ")
    fields = rest.split()
    with open(f"{directory}/cmdline", "rb") as file:
        line = file.read(most).decode(errors="replace")
    words = line.removesuffix("\0").split("\0") if line else [f"[{name.partition('(')[2]}]"]
    return {
        "pid": pid,
        "ppid": int(fields[1]),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "state": fields[0],
        "started": int(fields[19]) / _TICKS,
        "cpu": (int(fields[11]) + int(fields[12])) / _TICKS,
        "command": words,
    }


def _number(path: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(read(path))
    return None


def _table(path: str) -> dict[str, int]:
    with contextlib.suppress(OSError):
        pairs = (line.split() for line in read(path).splitlines())
        return _whole(pair for pair in pairs if len(pair) == 2)
    return {}


def _whole(pairs: Iterable[list[str]]) -> dict[str, int]:
    """Return the pairs whose value is an integer; `cost.vrate` of io.stat, for example, has
    none."""
    return {key: int(value) for key, value in pairs if value.isdecimal()}


def _io(path: str) -> dict[str, dict[str, int]]:
    found = {}
    with contextlib.suppress(OSError):
        for line in read(path).splitlines():
            device, *pairs = line.split()
            found[device] = _whole(pair.split("=") for pair in pairs if pair.count("=") == 1)
    return found
