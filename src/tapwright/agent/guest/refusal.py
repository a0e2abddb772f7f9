"""How the agent says no."""

import os
import sys
from typing import Any

from tapwright.linux.netlink import NetlinkError

# Codes of refusals that have to do with containers, each an exception of its own for the host.
FAILED, NOT_FOUND, EXISTS, STATE = "failed", "not_found", "exists", "state"


class RefusedError(Exception):
    """A request that can't be done, with the reason for the caller, and a code for programs."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


class NotThereYetError(Exception):
    """The kernel has not found a device so far, which the argument names in words: the request is
    to be done again when something has been found."""


def error_reply(error: Exception) -> dict[str, Any]:
    """The content of the ERROR that a failed request is answered with."""
    if isinstance(error, RefusedError):
        return {"message": str(error), "code": error.code}
    if isinstance(error, NetlinkError):
        return {"message": str(error.args[-1])}
    if isinstance(error, OSError):
        return {"message": f"{type(error).__name__}: {error}"}
    # A mistake of ours: the console has where.
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    return {"message": f"unexpected {type(error).__name__}: {error}"}


def start_error_reply(error: Exception) -> dict[str, Any]:
    """The same for a command that can't be started: with the number of the system's error."""
    if not isinstance(error, OSError):
        return {**error_reply(error), "errno": None}
    return {
        "message": os.strerror(error.errno) if error.errno else str(error),
        "errno": error.errno,
    }
