"""Reports of a kill for memory. A platform looks for one in the container's control group on the
host, where nothing is killed. So the supervisor (`control.oom_reports`) reports it the way that the
platform's monitor would."""

import os

from tapwright.oci import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MONITOR, _PERSISTENT = "conmon", "--persist-dir"
_ADDRESS = "TTRPC_ADDRESS"


def of_caller(container_id: str, root: str, bundle: str, caller: int) -> "dict[str, Any]":
    """The reports that the calling process (`caller`) wants: those of conmon, those of containerd's
    shim (whose environment is ours, and whose namespace is the last part of the root), or none."""
    found: dict[str, Any] = {}
    command = state.command_of(caller)
    if os.path.basename(command[0] if command else "") == _MONITOR:
        places = [bundle]
        if _PERSISTENT in command[:-1]:
            places.append(command[command.index(_PERSISTENT) + 1])
        found["files"] = [os.path.join(place, "oom") for place in places if place]
    elif address := os.environ.get(_ADDRESS, ""):
        found["containerd"] = {
            "address": address.removeprefix("unix://"),
            "namespace": os.path.basename(os.path.normpath(root)),
            "container": container_id,
        }
    return found
