"""Notices what the host changes in containers' files, and reports it to the guest; also which
sockets there are among these files.

The guest's kernel does not see such changes: see `agent.guest.shared_files`. The share's daemon
changes files for the guest, which knows of those. Runs in the supervisor.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from tapwright.agent import protocol, requests
from tapwright.agent.client import AgentClient
from tapwright.errors import AgentError
from tapwright.hypervisor.share import Share
from tapwright.linux import fanotify

_MOST_DIRECTORIES = 512
"""Of each place, the least deep directories; the others are not followed."""
_MOST_PATHS = 4096
_MOST_SOCKETS = 256
"""Of each place, the least deep ones."""
_PATHS_AT_ONCE = 128
_TELL_SECONDS = 60.0
# A program that writes to a file all the time, on the host or in the guest, should cost little: the
# kernel reports what happened in between as one change.
_READS_AT_ONCE, _READ_PAUSE, _TELL_PAUSE = 16, 0.05, 0.2
_OF_THE_KUBELET = "..data"
"""The entry of a directory that the kubelet fills (pkg/volume/util/atomic_writer.go)."""

_log = logging.getLogger(__name__)


class HostChanges:
    """Follows changes of files in some places of a share. `look_for_sockets` is called with paths
    at which a socket is, or may have been."""

    def __init__(
        self,
        share: Share,
        agent: AgentClient,
        look_for_sockets: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._root = share.root
        self._look_for_sockets = look_for_sockets
        self._has_sockets = False
        self._daemon = share.process.pid
        self._agent = agent
        self._marks: fanotify.Marks | None = None
        self._places: set[str] = set()
        self._paths: dict[fanotify.Handle, str] = {}
        self._changed: dict[str, None] = {}  # in their order
        self._wakeup = asyncio.Event()
        self._marking = asyncio.Lock()
        self._telling = asyncio.Lock()
        self._mirrored: set[str] = set()

    async def follow(self, places: Sequence[str]) -> list[str]:
        """Follow changes in these places, too. Return those of which the guest has copies, which
        its containers must use. Raises AgentError."""
        new = [place for place in places if place not in self._places]
        self._places.update(new)
        if new and self._marks is None:
            self._begin()
        for place in new:
            async with self._marking:
                sockets = await asyncio.to_thread(self._mark, place)
            await self._look(sockets, [])
            if self._is_of_the_kubelet(place):
                await self._agent.call(requests.mirror_files(place), _TELL_SECONDS)
                self._mirrored.add(place)
        return [place for place in places if place in self._mirrored]

    async def forget(self, places: Sequence[str]) -> None:
        """Stop following these places, which have left the share. Raises AgentError."""
        gone = self._places.intersection(places)
        self._places -= gone
        async with self._marking:
            self._paths = {
                handle: path
                for handle, path in self._paths.items()
                if protocol.place_of(path) not in gone
            }
        if copies := sorted(self._mirrored & gone):
            self._mirrored -= gone
            await self._agent.call(requests.forget_files(copies), _TELL_SECONDS)

    async def settle(self) -> None:
        """Report what the host has changed by now, without the usual pauses."""
        self._take()
        await self._tell()

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Report changes to the guest for the length of the block."""
        telling = asyncio.create_task(self._tell_on())
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            if marks := self._marks:
                self._marks = None
                asyncio.get_running_loop().remove_reader(marks.fileno())
                marks.close()

    def _begin(self) -> None:
        try:
            self._marks = fanotify.Marks()
        except OSError as error:
            _log.warning("the guest does not learn what the host changes in its files: %s", error)
            return
        self._listen()

    def _listen(self) -> None:
        if self._marks:
            asyncio.get_running_loop().add_reader(self._marks.fileno(), self._read)

    async def _look(self, sockets: Sequence[str], changed: Sequence[str]) -> None:
        """Look at the files of sockets, and, once there were some, at what has changed."""
        self._has_sockets = self._has_sockets or bool(sockets)
        if self._has_sockets and (sockets or changed):
            await self._look_for_sockets([*sockets, *changed])

    def _mark(self, path: str) -> list[str]:
        """Watch a file, or a directory and the directories below it; return the sockets there."""
        sockets: list[str] = []
        tree = _tree(f"{self._root}/{path}", sockets)
        for each in itertools.islice(tree, _MOST_DIRECTORIES):
            try:
                if self._marks:
                    handle = self._marks.add(each)
                    self._paths[handle] = each.removeprefix(f"{self._root}/")
            except OSError as error:
                _log.info("changes of %s are not followed: %s", each, error.strerror)
        return [each.removeprefix(f"{self._root}/") for each in sockets[:_MOST_SOCKETS]]

    def _read(self) -> None:
        marks, loop = self._marks, asyncio.get_running_loop()
        if marks is None:
            return
        loop.remove_reader(marks.fileno())
        loop.call_later(_READ_PAUSE, self._listen)
        self._take()
        if self._changed:
            self._wakeup.set()

    def _take(self) -> None:
        """Note what the kernel has reported by now."""
        if (marks := self._marks) is None:
            return
        reads = (marks.changes() for _ in range(_READS_AT_ONCE))
        for change in itertools.chain.from_iterable(reads):
            if change.process == self._daemon:
                continue
            if not change.handle or len(self._changed) >= _MOST_PATHS:
                self._changed = dict.fromkeys(self._places)
            elif change.handle in self._paths:
                path = self._paths[change.handle]
                self._changed[f"{path}/{change.name}" if change.name else path] = None

    async def _tell_on(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            await self._tell()
            await asyncio.sleep(_TELL_PAUSE)

    async def _tell(self) -> None:
        async with self._telling:
            changed, self._changed = list(self._changed), {}
            if not changed:
                return
            # New directories may have changes of their own.
            async with self._marking:
                sockets = await asyncio.to_thread(self._mark_new, changed)
            for start in range(0, len(changed), _PATHS_AT_ONCE):
                paths = changed[start : start + _PATHS_AT_ONCE]
                try:
                    await self._agent.call(requests.change_files(paths), _TELL_SECONDS)
                except AgentError as error:
                    _log.warning("the guest did not learn of changed files: %s", error)
            await self._look(sockets, changed)

    def _mark_new(self, paths: Sequence[str]) -> list[str]:
        """Watch the directories among these paths; return the sockets there, and among the
        paths."""
        sockets: list[str] = []
        for path in paths:
            try:
                mode = os.lstat(f"{self._root}/{path}").st_mode
            except OSError:  # it has gone
                continue
            if stat.S_ISDIR(mode):
                sockets += self._mark(path)
            elif stat.S_ISSOCK(mode):
                sockets.append(path)
        return sockets

    def _is_of_the_kubelet(self, place: str) -> bool:
        return os.path.islink(f"{self._root}/{place}/{_OF_THE_KUBELET}")


def _tree(top: str, sockets: list[str]) -> Iterator[str]:
    """Yield a file; or a directory, and those below it, level by level. The files of sockets in
    these are added to `sockets`."""
    level = [top]
    while level:
        yield from level
        level = [below for path in level for below in _directories_in(path, sockets)]


def _directories_in(path: str, sockets: list[str]) -> list[str]:
    found = []
    try:
        with os.scandir(path) as entries:
            for each in entries:
                if each.is_dir(follow_symlinks=False):
                    found.append(each.path)
                elif _is_socket(each):
                    sockets.append(each.path)
    except OSError:  # it is a file, or has gone
        pass
    return found


def _is_socket(entry: "os.DirEntry[str]") -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
        return False
    try:
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    except OSError:  # it has gone
        return False
