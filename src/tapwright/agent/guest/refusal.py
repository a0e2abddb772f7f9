"""The errors with which the agent answers."""

import os
import sys
from typing import Any

from tapwright.linux.netlink import NetlinkError

# Codes of errors about containers; the host has an exception for each.
FAILED, NOT_FOUND, EXISTS, STATE = "failed", "not_found", "exists", "state"


class RefusedError(Exception):
    """A request that can't be done, with the reason for the caller, and a code for programs."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


class NotThereYetError(Exception):
    """The kernel has not found a device yet, which the argument names in words. The agent does the
    request again when the kernel has found a device."""


def error_reply(error: Exception) -> dict[str, Any]:
    """Return the content of the ERROR frame that answers a failed request."""
    if isinstance(error, RefusedError):
        return {"message": str(error), "code": error.code}
    if isinstance(error, NetlinkError):
        return {"message": str(error.args[-1])}
    if isinstance(error, OSError):
        return {"message": f"{type(error).__name__}: {error}"}
    # This is a bug of the agent: the console shows where.
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    return {"message": f"unexpected {type(error).__name__}: {error}"}


def start_error_reply(error: Exception) -> dict[str, Any]:
    """Return the content of the ERROR frame for a command that can't be started, with the system's
    error number."""
    if not isinstance(error, OSError):
        return {**error_reply(error), "errno": None}
    return {
        "message": os.strerror(error.errno) if error.errno else str(error),
        "errno": error.errno,
    }
