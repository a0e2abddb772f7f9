"""What the processes of a sandbox have used, from /proc (proc(5))."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

_SECONDS_OF_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_KINDS = {"qemu": b"qemu", "virtiofsd": b"virtiofsd", "monitor": b"netmon"}
"""The kinds, by a word at the beginning of the command."""


@dataclass(frozen=True)
class Usage:
    """`process` is supervisor, qemu, virtiofsd, monitor, or other."""

    process: str
    cpu_seconds: float
    resident_bytes: int
    descriptors: int


def of_supervisor(pid: int) -> list[Usage]:
    """Return the processes of a supervisor and its children; several of one kind are added up."""
    found: dict[str, Usage] = {}
    for process, kind in [(pid, "supervisor"), *_below(pid)]:
        try:
            usage = _usage(process, kind)
        except (OSError, ValueError, IndexError):  # the process has just ended
            continue
        before = found.get(kind, Usage(kind, 0, 0, 0))
        found[kind] = Usage(
            kind,
            before.cpu_seconds + usage.cpu_seconds,
            before.resident_bytes + usage.resident_bytes,
            before.descriptors + usage.descriptors,
        )
    return list(found.values())


def _below(pid: int) -> Iterator[tuple[int, str]]:
    waiting = [pid]
    for parent in waiting:
        for child in _children(parent):
            waiting.append(child)
            yield child, _kind(child)


def _children(pid: int) -> list[int]:
    """Return the children of all of a process's threads."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError:  # the process has just ended
        pass
    return found


def _kind(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = b" ".join(file.read(4096).split(b"\0")[:4])
    except OSError:
        return "other"
    return next((kind for kind, word in _KINDS.items() if word in words), "other")


def _usage(pid: int, kind: str) -> Usage:
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name, in parentheses, may contain anything.
        words = file.read().rpartition(b")")[2].split()
    ticks = int(words[11]) + int(words[12])  # utime and stime, after the state
    return Usage(
        kind,
        ticks * _SECONDS_OF_TICK,
        int(words[21]) * _PAGE,
        len(os.listdir(f"/proc/{pid}/fd")),
    )
