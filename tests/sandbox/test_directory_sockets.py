"""Which sockets of a directory the guest gets, and from when to when."""

import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.control.directory_sockets import DirectorySockets
from tapwright.control.sockets import Sockets
from tapwright.errors import SandboxStateError

pytestmark = pytest.mark.unit

PLACE = "container/mount"


class Guest:
    """Stands for the agent and for what carries sockets, of which there is room for some."""

    def __init__(self, held: ExitStack, room: int = 100) -> None:
        self.held = held
        self.shown: dict[str, int] = {}
        self.users: dict[tuple[int, ...], set[str]] = {}
        self._numbers: dict[tuple[int, ...], int] = {}
        self._room = room

    async def call(self, request: dict[str, Any], seconds: float) -> None:
        assert request["op"] == "cover_sockets"
        for path in request["hidden"]:
            del self.shown[path]
        self.shown |= request["shown"]

    async def carry(self, user: str, kinds: Sequence[str], fds: Sequence[int]) -> list[str]:
        (fd,) = fds
        found = os.fstat(fd)
        key = found.st_dev, found.st_ino
        if key not in self._numbers and len(self._numbers) == self._room:
            raise SandboxStateError("no more sockets")
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers) + 1
            self.held.callback(os.close, os.dup(fd))  # so that no other file gets its number
        self.users.setdefault(key, set()).add(user)
        return [f"{protocol.SOCKETS}/{self._numbers[key]}"]

    async def release(self, user: str) -> None:
        for users in self.users.values():
            users.discard(user)

    def directory(self, root: Path) -> DirectorySockets:
        return DirectorySockets(str(root), cast(AgentClient, self), cast(Sockets, self))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / PLACE
    (place / "deep").mkdir(parents=True)
    return place


@pytest.fixture
def serving() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bound(path: Path, serving: ExitStack, kind: int = socket.SOCK_STREAM) -> socket.socket:
    found = serving.enter_context(socket.socket(socket.AF_UNIX, kind))
    found.bind(str(path))
    return found


def test_only_live_sockets_of_the_directory_itself(
    tmp_path: Path, tree: Path, serving: ExitStack
) -> None:
    bound(tmp_path / "outside", serving)
    bound(tree / "here", serving)
    bound(tree / "deep" / "log", serving, socket.SOCK_DGRAM)
    bound(tree / "packets", serving, socket.SOCK_SEQPACKET)
    bound(tree / "dead", serving).close()
    (tree / "link").symlink_to(tmp_path / "outside")
    (tree / "file").touch()
    os.mkfifo(tree / "fifo")
    names = ("here", "deep/log", "packets", "dead", "link", "file", "fifo", "none")
    guest = Guest(serving)
    asyncio.run(guest.directory(tmp_path).look([f"{PLACE}/{name}" for name in names]))
    assert guest.shown == {f"{PLACE}/here": 1, f"{PLACE}/deep/log": 2}


def test_they_follow_the_directory(tmp_path: Path, tree: Path, serving: ExitStack) -> None:
    first = bound(tree / "socket", serving)
    bound(tree / "deep" / "socket", serving)
    os.link(tree / "deep" / "socket", tree / "again")
    paths = [f"{PLACE}/{name}" for name in ("socket", "deep/socket", "again")]
    guest = Guest(serving)

    async def follow() -> None:
        sockets = guest.directory(tmp_path)
        await sockets.look(paths)
        assert guest.shown == dict(zip(paths, (1, 2, 2), strict=True))
        # Its server begins anew.
        first.close()
        (tree / "socket").unlink()
        bound(tree / "socket", serving)
        await sockets.look(paths[:1])
        assert guest.shown[paths[0]] == 3
        # The directory goes, with all that is in it.
        (tree / "deep").rename(tmp_path / "away")
        await sockets.look([f"{PLACE}/deep"])
        assert guest.shown == {paths[0]: 3, paths[2]: 2}
        await sockets.forget([PLACE])
        assert guest.shown == {}
        assert not any(guest.users.values())

    asyncio.run(follow())


def test_too_many_of_them_fail_nothing(tmp_path: Path, tree: Path, serving: ExitStack) -> None:
    for number in range(3):
        bound(tree / str(number), serving)
    guest = Guest(serving, room=2)
    asyncio.run(guest.directory(tmp_path).look([f"{PLACE}/{number}" for number in range(3)]))
    assert guest.shown == {f"{PLACE}/0": 1, f"{PLACE}/1": 2}
