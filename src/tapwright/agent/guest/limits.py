"""Resource limits of a container's processes. The agent sets those of the first one when it exists:
crun would set them at its start, and then lack what it needs itself (with ten open files it fails).
Of a further one it sets those that are too low for crun."""

import contextlib
import os
from typing import Any

from tapwright.linux import libc, rlimits

_FILES, _FILES_OF_CRUN = "RLIMIT_NOFILE", 32  # 1.8.1 takes 12

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


def too_low(process: dict[str, Any]) -> Limits:
    """Raise those limits of an OCI `process` in a container that are too low for crun, which has
    them before it executes the program; return what is to be given afterwards. So the program has
    the higher ones for its first moment."""
    found = Limits()
    for limit in process.get("rlimits", ()):
        values = [limit.get("soft", 0), limit.get("hard", 0)]
        if limit.get("type") == _FILES and min(values) < _FILES_OF_CRUN:
            found.append((rlimits.KINDS[_FILES], *values))
            limit.update(soft=max(values[0], _FILES_OF_CRUN), hard=max(values[1], _FILES_OF_CRUN))
    return found


def lower(pid: int, limits: Limits) -> None:
    """Set the limits of a process, which may have ended. Raises OSError."""
    with contextlib.suppress(ProcessLookupError):
        for kind, soft, hard in limits:
            libc.set_limit(pid, kind, soft, hard)


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
