"""Shows files of the host to the guest (`client.Supervisor.share`), and takes them back.

Runs in the supervisor. Each container has a directory in the share; its files are mounted there.
"""

import asyncio
import contextlib
import functools
import logging
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.control import file_descriptors
from tapwright.control.host_changes import HostChanges
from tapwright.errors import SandboxStateError, UsageError
from tapwright.hypervisor.share import Share

if TYPE_CHECKING:
    from tapwright.control.directory_sockets import DirectorySockets
    from tapwright.control.sockets import Sockets

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Shares:
    """The share of a sandbox; None where the sandbox was started without one."""

    def __init__(self, share: Share | None, agent: AgentClient) -> None:
        self._share = share
        self._agent = agent
        self._changes = HostChanges(share, agent, self._look_for_sockets) if share else None
        self._sockets: Sockets | None = None
        self._in_directories: DirectorySockets | None = None

    def by_name(self) -> dict[str, Callable[..., Coroutine[Any, Any, Any]]]:
        """The operations. Each raises HypervisorError, UsageError for invalid arguments, and
        SandboxStateError where the sandbox was started without a share."""
        return {
            "share": self.share,
            "unshare": self.unshare,
            "carry_sockets": self.carry_sockets,
        }

    async def share(
        self,
        container: Any,
        names: Any,
        apart: Any = (),
        followed: Any = (),
        fds: Sequence[int] = (),
    ) -> dict[str, str]:
        """Show mounts, one descriptor a name; return the path of each in the guest. The guest
        learns of the host's changes in mounts that are `followed`. Raises AgentError, too."""
        share, changes = self._there()
        wanted, alone = _read_names("names", names), _read_names("apart", apart)
        if len(wanted) != len(fds) or len(set(wanted)) != len(wanted):
            raise UsageError(f"{len(wanted)} names, {len(fds)} descriptors: must be one for each")
        sources = dict(zip(wanted, fds, strict=True))
        places = share.attach(_read_container(container), sources, alone)
        to_follow = [places[name] for name in _read_names("followed", followed) if name in places]
        copies = await changes.follow(to_follow)
        return {
            name: f"{protocol.MIRRORS if place in copies else protocol.SHARE}/{place}"
            for name, place in places.items()
        }

    async def carry_sockets(
        self, container: Any, names: Any, kinds: Any, fds: Sequence[int] = ()
    ) -> dict[str, str]:
        """Give the guest counterparts of sockets, a name, a kind and a descriptor each
        (`control.sockets`); return the path of each in the guest. Raises AgentError, too."""
        share, _ = self._there()
        wanted, of = _read_names("names", names), _read_names("kinds", kinds)
        if not len(wanted) == len(of) == len(fds) or len(set(wanted)) != len(wanted):
            raise UsageError(f"{len(wanted)} names, {len(of)} kinds, {len(fds)} descriptors")
        sockets, _ = self._carriers(share)
        paths = await sockets.carry(_read_container(container), of, fds)
        return dict(zip(wanted, paths, strict=True))

    async def unshare(self, container: Any) -> None:
        """Take back the files of a container, and its sockets. Raises AgentError, too."""
        share, changes = self._there()
        gone = share.detach(_read_container(container))
        if self._sockets:
            await self._sockets.release(container)
        if self._in_directories:
            await self._in_directories.forget(gone)
        await changes.forget(gone)

    def settled(self, begin: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
        """Let the guest know first what the host has changed: a program that `begin` starts must
        find it. podman 5 writes a container's /etc/resolv.conf right before it starts it."""

        @functools.wraps(begin)
        async def settling(*arguments: _P.args, **named: _P.kwargs) -> _T:
            if self._changes:
                await self._changes.settle()
            return await begin(*arguments, **named)

        return settling

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Follow the host's changes in shared files for the length of the block."""
        if self._share is None or self._changes is None:
            yield
            return
        sparing = asyncio.create_task(file_descriptors.spare(self._share, self._agent))
        try:
            async with self._changes.followed(), _restricted(self._share):
                yield
        finally:
            sparing.cancel()
            await asyncio.gather(sparing, return_exceptions=True)
            if self._sockets:
                await self._sockets.aclose()

    async def _look_for_sockets(self, paths: Sequence[str]) -> None:
        share, _ = self._there()
        _, in_directories = self._carriers(share)
        await in_directories.look(paths)

    def _carriers(self, share: Share) -> "tuple[Sockets, DirectorySockets]":
        if self._sockets is None or self._in_directories is None:
            # Few sandboxes need these modules.
            from tapwright.control.directory_sockets import DirectorySockets
            from tapwright.control.sockets import Sockets

            self._sockets = Sockets(self._agent)
            self._in_directories = DirectorySockets(share.root, self._agent, self._sockets)
        return self._sockets, self._in_directories

    def _there(self) -> tuple[Share, HostChanges]:
        if self._share is None or self._changes is None:
            raise SandboxStateError("the sandbox was started without a share of the host's files")
        return self._share, self._changes


def _read_names(field: str, names: Any) -> Sequence[str]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{field}: must be a list of names")
    return names


def _read_container(container: Any) -> str:
    if not isinstance(container, str):
        raise UsageError("container: must be a name")
    return container


@contextlib.asynccontextmanager
async def _restricted(share: Share) -> AsyncIterator[None]:
    """For the length of the block, restrict mounts that propagate into the share: those that the
    host makes later, below a mount that follows the host's."""
    loop = asyncio.get_running_loop()
    with open(f"/proc/{share.process.pid}/mountinfo") as table, select.epoll() as changes:
        # The table can always be read; POLLPRI reports a change (proc(5), /proc/PID/mounts).
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
