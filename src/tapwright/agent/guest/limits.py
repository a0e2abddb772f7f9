"""Limits of a container's first process, which it gets when it is made: crun, which makes it, sets
them first of all, and then has not what it needs itself (ten open files are too few)."""

import os
from typing import Any

from tapwright.linux import libc

# include/uapi/asm-generic/resource.h, in its order.
_KINDS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        (
            *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS"),
            *("LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
        )
    )
}

Limits = list[tuple[int, int, int]]
"""(kind, soft, hard), as prlimit(2) has them."""


def taken(process: dict[str, Any]) -> Limits:
    """Take those that the kernel knows out of an OCI `process`, in their order; of others crun has
    the error. A value that is missing is 0, as for runc."""
    known, unknown = list[Any](), list[Any]()
    for limit in process.pop("rlimits", ()):
        (known if limit.get("type") in _KINDS else unknown).append(limit)
    if unknown:
        process["rlimits"] = unknown
    return [(_KINDS[each["type"]], each.get("soft", 0), each.get("hard", 0)) for each in known]


def give(pid: int, limits: Limits) -> str:
    """Set them for a process; the last of a kind counts. Return why one can't be, in runc's words,
    "" when all are."""
    for kind, soft, hard in limits:
        try:
            libc.set_limit(pid, kind, soft, hard)
        except OSError as error:
            return (
                "error setting rlimits for ready process: "
                f"error setting rlimit type {kind}: {os.strerror(error.errno or 0).lower()}"
            )
    return ""
