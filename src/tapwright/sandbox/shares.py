"""What a running sandbox is asked about the files that its guest sees: see `client.share`.

Runs in the supervisor. Each container has a directory, and what it is shown is mounted in there.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tapwright.errors import SandboxStateError, UsageError
from tapwright.hypervisor.share import Share


def operations(share: Share | None) -> dict[str, Callable[..., Coroutine[Any, Any, Any]]]:
    """The operations by name. Each raises HypervisorError, UsageError for arguments that can't be,
    and SandboxStateError where the sandbox was started without a share."""

    async def share_mounts(container: Any, names: Any, fds: Sequence[int] = ()) -> dict[str, Any]:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError("names: must be a list of names")
        if len(names) != len(fds) or len(set(names)) != len(names):
            raise UsageError(f"{len(names)} names and {len(fds)} descriptors: must be one for each")
        _there(share).attach(_read_container(container), dict(zip(names, fds, strict=True)))
        return {}

    async def unshare(container: Any) -> dict[str, Any]:
        _there(share).detach(_read_container(container))
        return {}

    return {"share": share_mounts, "unshare": unshare}


def _there(share: Share | None) -> Share:
    if share is None:
        raise SandboxStateError("the sandbox was started without a share of the host's files")
    return share


def _read_container(container: Any) -> str:
    if not isinstance(container, str):
        raise UsageError("container: must be a name")
    return container
