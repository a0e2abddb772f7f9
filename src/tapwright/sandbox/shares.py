"""What a running sandbox is asked about the files that its guest sees: see `client.share`.

Runs in the supervisor. Each container has a directory, and what it is shown is mounted in there.
"""

import asyncio
import contextlib
import logging
import select
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from tapwright.errors import SandboxStateError, UsageError
from tapwright.hypervisor.share import Share

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def restricted(share: Share | None) -> AsyncIterator[None]:
    """For the length of the block, restrict what comes into the share by itself: mounts that the
    host makes later below one that follows it."""
    if share is None:
        yield
        return
    loop = asyncio.get_running_loop()
    with open(f"/proc/{share.process.pid}/mountinfo") as table, select.epoll() as changes:
        # The table can always be read; it is its changes that count (proc(5), /proc/PID/mounts).
        changes.register(table, select.EPOLLPRI)

        def restrict() -> None:
            changes.poll(0)
            try:
                share.restrict()
            except OSError as error:
                _log.error("a mount of the host is in the share without restrictions: %s", error)

        loop.add_reader(changes.fileno(), restrict)
        try:
            yield
        finally:
            loop.remove_reader(changes.fileno())


def operations(share: Share | None) -> dict[str, Callable[..., Coroutine[Any, Any, Any]]]:
    """The operations by name. Each raises HypervisorError, UsageError for arguments that can't be,
    and SandboxStateError where the sandbox was started without a share."""

    async def share_mounts(
        container: Any, names: Any, apart: Any = (), fds: Sequence[int] = ()
    ) -> dict[str, str]:
        wanted, alone = _read_names("names", names), _read_names("apart", apart)
        if len(wanted) != len(fds) or len(set(wanted)) != len(wanted):
            raise UsageError(
                f"{len(wanted)} names and {len(fds)} descriptors: must be one for each"
            )
        sources = dict(zip(wanted, fds, strict=True))
        return _there(share).attach(_read_container(container), sources, alone)

    async def unshare(container: Any) -> dict[str, Any]:
        _there(share).detach(_read_container(container))
        return {}

    return {"share": share_mounts, "unshare": unshare}


def _there(share: Share | None) -> Share:
    if share is None:
        raise SandboxStateError("the sandbox was started without a share of the host's files")
    return share


def _read_names(field: str, names: Any) -> Sequence[str]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{field}: must be a list of names")
    return names


def _read_container(container: Any) -> str:
    if not isinstance(container, str):
        raise UsageError("container: must be a name")
    return container
