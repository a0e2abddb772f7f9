"""Sockets of the host in directories that containers have mounted: they are carried as those that
are mounts of their own (`sockets`), while they are there.

A socket that no process has any more stays a file in the guest: a container may remove it, and bind
one of its own there, which is the guest's. A guest can't choose a socket of the host by what it
writes: only a process of the host makes one live, and no link in the share is followed
(`hypervisor.share` forbids it).

Runs in the supervisor.
"""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tapwright.agent import protocol, requests
from tapwright.agent.client import AgentClient
from tapwright.control.sockets import Sockets
from tapwright.errors import AgentError, SandboxStateError
from tapwright.linux import unixsocket

_KINDS = {socket.SOCK_STREAM: protocol.STREAM, socket.SOCK_DGRAM: protocol.DATAGRAM}
_COVER_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass
class _Found:
    """A live socket of the host, held by a descriptor."""

    fd: int
    kind: str
    key: tuple[int, int]


class DirectorySockets:
    """Those of a share, whose files are at `root`. `sockets` carries them; a path in the share is
    its user of a socket."""

    def __init__(self, root: str, agent: AgentClient, sockets: Sockets) -> None:
        self._root = root
        self._agent = agent
        self._sockets = sockets
        self._carried: dict[str, tuple[int, int]] = {}
        self._changing = asyncio.Lock()

    async def look(self, paths: Sequence[str]) -> None:
        """Bring the guest up to date with the sockets that are at these paths, and with those that
        were there, or below. What can't be carried is in the log, because a container runs without
        it, too."""
        async with self._changing:
            tops = tuple(f"{path}/" for path in paths)
            known = [path for path in self._carried if f"{path}/".startswith(tops)]
            wanted = list(dict.fromkeys([*paths, *known]))
            found = await asyncio.to_thread(_open_all, self._root, wanted)
            try:
                await self._drop(
                    [
                        path
                        for path in known
                        if path not in found or found[path].key != self._carried[path]
                    ]
                )
                await self._carry(found)
            except AgentError as error:
                _log.warning("sockets in directories are not carried: %s", error)
            finally:
                for each in found.values():
                    os.close(each.fd)

    async def forget(self, places: Iterable[str]) -> None:
        """Carry the sockets of these places no longer, which have left the share. Raises
        AgentError."""
        gone = set(places)
        async with self._changing:
            await self._drop([path for path in self._carried if protocol.place_of(path) in gone])

    async def _carry(self, found: dict[str, _Found]) -> None:
        """Raises AgentError."""
        shown = {}
        for path, each in found.items():
            try:
                (counterpart,) = await self._sockets.carry(path, [each.kind], [each.fd])
            except SandboxStateError as error:
                _log.warning("%s: %s", path, error)
                break
            if path not in self._carried:
                shown[path] = int(os.path.basename(counterpart))
                self._carried[path] = each.key
        if shown:
            await self._agent.call(requests.cover_sockets(shown), _COVER_SECONDS)

    async def _drop(self, paths: Sequence[str]) -> None:
        """Raises AgentError."""
        if not paths:
            return
        for path in paths:
            del self._carried[path]
        await self._agent.call(requests.cover_sockets({}, paths), _COVER_SECONDS)
        for path in paths:
            await self._sockets.release(path)


def _open_all(root: str, paths: Iterable[str]) -> dict[str, _Found]:
    """The live sockets at some of the paths below `root`."""
    found = {}
    for path in paths:
        try:
            fd = os.open(f"{root}/{path}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # it has gone
            continue
        try:
            status = os.fstat(fd)
            is_socket = stat.S_ISSOCK(status.st_mode)
            kind = unixsocket.kind_of(f"/proc/self/fd/{fd}") if is_socket else None
        except OSError as error:
            _log.info("%s is not carried: %s", path, error)
            kind = None
        if kind in _KINDS:
            found[path] = _Found(fd, _KINDS[kind], (status.st_dev, status.st_ino))
        else:
            os.close(fd)
    return found
