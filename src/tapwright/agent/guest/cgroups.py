"""The control group of a container: which processes are in it, and what they have used.

Documentation/admin-guide/cgroup-v2.rst in the kernel's sources.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from tapwright.agent.guest.files import read, write

_ROOT = "/sys/fs/cgroup"
# So much of a command, of all together, and so many processes, as go into a message.
_COMMAND_BYTES, _COMMANDS_BYTES = 4096, 64 * 1024
_MOST_PROCESSES = 4096

_TICKS = os.sysconf("SC_CLK_TCK")


def of_container(name: str) -> str:
    """The group of a container, as its OCI configuration names it."""
    return f"/{name}"


def signal_all(cgroup: str, number: int) -> None:
    """Send a signal to all processes of a group and those below it. Raises OSError for a number
    that is no signal's."""
    if number == signal.SIGKILL:
        with contextlib.suppress(FileNotFoundError):
            write(f"{_path(cgroup)}/cgroup.kill", "1")
        return
    for pid in _pids(cgroup):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def processes(cgroup: str) -> list[dict[str, Any]]:
    """pid, ppid, uid, gid, state, started (seconds after the guest's boot), cpu (seconds) and
    command (its words) of each process of a group and those below it."""
    found = []
    room = _COMMANDS_BYTES
    for pid in _pids(cgroup):
        with contextlib.suppress(OSError):  # it ended in the meantime
            process = _process(pid, min(room, _COMMAND_BYTES))
            room -= min(room, sum(map(len, process["command"])))
            found.append(process)
            if len(found) == _MOST_PROCESSES:
                break
    return found


def statistics(cgroup: str) -> dict[str, Any]:
    """The group's numbers, named as the kernel's files: `cpu` (cpu.stat), `memory` (current, max,
    peak, swap, `stat`, `events`), `pids` (current, max), `io` (io.stat by device). None for "max";
    what the kernel does not have is left out."""
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
    """The file of which the kernel says when it changes."""
    return f"{_path(cgroup)}/memory.events"


def oom_kills(cgroup: str) -> int:
    """How many processes of a group, and those below it, were killed for want of memory; 0 where
    the kernel does not count them."""
    return _table(memory_events(cgroup)).get("oom_kill", 0)


def remove(cgroup: str) -> None:
    """Remove a group without processes, and those below it. Raises OSError."""
    for directory in sorted(_groups(cgroup), reverse=True):
        os.rmdir(directory)


def _path(cgroup: str) -> str:
    return f"{_ROOT}/{cgroup.strip('/')}"


def _groups(cgroup: str) -> Iterator[str]:
    for directory, _, _ in os.walk(_path(cgroup)):
        yield directory


def _pids(cgroup: str) -> Iterator[int]:
    for directory in _groups(cgroup):
        with contextlib.suppress(OSError):  # removed in the meantime
            yield from map(int, read(f"{directory}/cgroup.procs").split())


def _process(pid: int, most: int) -> dict[str, Any]:
    directory = f"/proc/{pid}"
    status = os.stat(directory)
    # After the name, which may have spaces and parentheses in it (proc(5)).
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
    """Those whose value is a whole number: `cost.vrate` of io.stat, for one, is none."""
    return {key: int(value) for key, value in pairs if value.isdecimal()}


def _io(path: str) -> dict[str, dict[str, int]]:
    found = {}
    with contextlib.suppress(OSError):
        for line in read(path).splitlines():
            device, *pairs = line.split()
            found[device] = _whole(pair.split("=") for pair in pairs if pair.count("=") == 1)
    return found
