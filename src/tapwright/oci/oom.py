"""Where the platform of a container looks when its memory was used up: in the control group that
the container has on the host, and there nothing is killed. So it is told otherwise
(`sandbox.oom_reports`), by what its monitor would do."""

import os

from tapwright.oci import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MONITOR, _PERSISTENT = "conmon", "--persist-dir"
_ADDRESS = "TTRPC_ADDRESS"


def of_caller(container_id: str, root: str, bundle: str, caller: int) -> "dict[str, Any]":
    """What is wanted by who called this process, `caller`: conmon, containerd's shim (whose
    environment is ours, and whose namespace is the last part of the root), or nobody."""
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
