"""Which reports of a kill for memory the platform wants. Platforms watch the container's control
group on the host, but the guest's kernel kills. So the supervisor (`control.oom_reports`) makes the
reports that the platform's monitor would make."""

import os

from tapwright.oci import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MONITOR, _PERSISTENT = "conmon", "--persist-dir"
_ADDRESS = "TTRPC_ADDRESS"


def of_caller(container_id: str, root: str, bundle: str, caller: int) -> "dict[str, Any]":
    """The reports for the process that calls (`caller`): those of conmon, those of containerd's
    shim, or none. This process has the environment of containerd's shim, and the last part of its
    root is the shim's namespace."""
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
