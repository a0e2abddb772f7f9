"""Resource limits of a container's first process. The agent sets them when the process exists: crun
would set them at its start, and then lack what it needs itself (with ten open files it fails)."""

import os
from typing import Any

from tapwright.linux import libc, rlimits

Limits = list[tuple[int, int, int]]
"""(kind, soft, hard), as prlimit(2) takes them."""


def taken(process: dict[str, Any]) -> Limits:
    """Take the limits of known kinds out of an OCI `process`, in their order; for an unknown kind,
    crun reports the error. A missing value is 0, as for runc."""
    known, unknown = list[Any](), list[Any]()
    for limit in process.pop("rlimits", ()):
        (known if limit.get("type") in rlimits.KINDS else unknown).append(limit)
    if unknown:
        process["rlimits"] = unknown
    return [
        (rlimits.KINDS[each["type"]], each.get("soft", 0), each.get("hard", 0)) for each in known
    ]


def give(pid: int, limits: Limits) -> str:
    """Set the limits of a process; the last one of a kind counts. Return "", or in runc's words why
    one can't be set."""
    for kind, soft, hard in limits:
        try:
            libc.set_limit(pid, kind, soft, hard)
        except OSError as error:
            return (
                "error setting rlimits for ready process: "
                f"error setting rlimit type {kind}: {os.strerror(error.errno or 0).lower()}"
            )
    return ""
