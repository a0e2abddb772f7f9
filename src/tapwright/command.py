"""The `tapwright` command, as other processes see it: where it is, and where it keeps state."""

import os
import sys

NAME = "tapwright"
ROOT_VARIABLE = "TAPWRIGHT_ROOT"
LOG_LEVEL_VARIABLE = "TAPWRIGHT_LOG_LEVEL"
"""How much supervisors write to their logs."""
DEFAULT_ROOT = "/var/lib/tapwright"


def path() -> str:
    """The command beside this interpreter, else the one on the PATH; its mere name when there is
    none."""
    beside = os.path.dirname(sys.executable)
    for directory in (beside, *os.get_exec_path()):
        candidate = os.path.join(directory, NAME)
        if os.access(candidate, os.X_OK):
            return candidate
    return NAME


def is_ours(candidate: str) -> bool:
    """Whether that is the path of this command, maybe by another name."""
    return os.path.realpath(candidate) == os.path.realpath(path())


def root() -> str:
    """Where the state of sandboxes is kept, unless the caller chooses otherwise."""
    return os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT
