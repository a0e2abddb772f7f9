"""The `tapwright` command, as other processes see it: where it is, and where it keeps state."""

import os
import sys

NAME = "tapwright"
ROOT_VARIABLE = "TAPWRIGHT_ROOT"
LOG_LEVEL_VARIABLE = "TAPWRIGHT_LOG_LEVEL"
"""How much supervisors write to their logs."""
DEFAULT_ROOT = "/var/lib/tapwright"


def path() -> str:
    """The command beside this interpreter, else the one on the PATH; only its name when neither
    exists."""
    beside = os.path.dirname(sys.executable)
    for directory in (beside, *os.get_exec_path()):
        candidate = os.path.join(directory, NAME)
        if os.access(candidate, os.X_OK):
            return candidate
    return NAME


def is_ours(candidate: str) -> bool:
    """Whether a path leads to this command, perhaps under another name."""
    return os.path.realpath(candidate) == os.path.realpath(path())


def root() -> str:
    """The directory for the state of sandboxes, unless the caller names another one."""
    return os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT
