"""Descriptors of every kind, read and written without waiting for them."""

import asyncio
import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tapwright.control.stdio import Channel
from tests.host import open_files

pytestmark = pytest.mark.unit

_SECONDS = 60
_MUCH = os.urandom(1 << 20)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(_SECONDS):
            await story()

    asyncio.run(in_time())


def source(fd: int) -> Channel:
    return Channel(os.dup(fd), writing=False)


def sink(fd: int) -> Channel:
    return Channel(os.dup(fd), writing=True)


async def all_of(channel: Channel) -> bytes:
    found = b""
    while data := await channel.read(1 << 16):
        found += data
    return found


def blocks(fd: int) -> bool:
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


def ends(kind: str) -> tuple[int, int]:
    """(what can be read, what can be written)."""
    if kind == "pipe":
        return os.pipe()
    if kind == "terminal":
        master, slave = os.openpty()
        _make_raw(slave)
        return slave, master
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _make_raw(fd: int) -> None:
    import tty

    tty.setraw(fd)


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_what_comes_later(kind: str) -> None:
    """Is waited for, while all else goes on; the descriptor itself stays as it was."""
    reading, writing = ends(kind)

    async def story() -> None:
        channel = source(reading)
        asked = asyncio.create_task(channel.read(100))
        await asyncio.sleep(0)
        assert not asked.done()
        assert blocks(reading)
        os.write(writing, b"late")
        assert await asked == b"late"
        os.close(writing)
        assert await channel.read(100) == b""
        channel.close()

    run(story)
    os.close(reading)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_slow_reader(kind: str) -> None:
    reading, writing = ends(kind)

    async def story() -> None:
        channel = sink(writing)
        task = asyncio.create_task(channel.write(_MUCH))
        await asyncio.sleep(0)
        assert not task.done()
        assert blocks(writing)
        assert await asyncio.to_thread(_exactly, reading, len(_MUCH)) == _MUCH
        await task
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            await channel.write(b"x")
        channel.close()

    run(story)
    os.close(writing)


def test_a_terminal_whose_reader_is_slow() -> None:
    master, slave = os.openpty()
    _make_raw(slave)

    async def story() -> None:
        channel = sink(slave)
        task = asyncio.create_task(channel.write(_MUCH[:100_000]))
        await asyncio.sleep(0.01)
        assert not task.done()
        assert await asyncio.to_thread(_exactly, master, 100_000) == _MUCH[:100_000]
        await task
        reading = source(slave)
        assert not channel.has_hung_up
        os.close(master)
        with pytest.raises(BrokenPipeError):
            await channel.write(b"x")
        assert await reading.read(1) == b""
        assert reading.has_hung_up
        channel.close()
        reading.close()

    run(story)
    os.close(slave)


def test_a_reader_sees_the_end_before_the_terminal_has_hung_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On two processors: pty_close wakes the reader first, which is what n_tty_read gives it."""

    def read(fd: int, size: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def story() -> None:
        master, slave = os.openpty()
        reading = source(slave)
        monkeypatch.setattr(os, "read", read)
        assert await reading.read(1) == b""
        monkeypatch.undo()
        assert reading.has_hung_up
        reading.close()
        os.close(slave)
        os.close(master)

    run(story)


def test_nobody_reads_a_pipe_from_the_beginning() -> None:
    reading, writing = os.pipe()
    os.close(reading)

    async def story() -> None:
        channel = sink(writing)
        with pytest.raises(BrokenPipeError):
            await channel.write(b"x")
        channel.close()

    run(story)
    os.close(writing)


def test_regular_files(tmp_path: Path) -> None:
    """Two outputs in one file follow each other, and all its holders share its position."""
    path = tmp_path / "file"
    path.write_bytes(b"before\n")

    async def story() -> None:
        with path.open("r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            first, second = sink(file.fileno()), sink(file.fileno())
            await first.write(b"one\n")
            await second.write(b"two\n")
            assert file.tell() == len(b"before\none\ntwo\n")
            file.seek(0)
            channel = source(file.fileno())
            assert await all_of(channel) == b"before\none\ntwo\n"
            for each in (first, second, channel):
                each.close()

    run(story)


def test_null() -> None:
    async def story() -> None:
        with open("/dev/null", "r+b") as null:
            reading, writing = source(null.fileno()), sink(null.fileno())
            assert await reading.read(10) == b""
            await writing.write(_MUCH)
            reading.close()
            writing.close()

    run(story)


def test_what_is_not_to_be_had() -> None:
    """The other end of a pipe, and a device that is full."""
    reading, writing = os.pipe()

    async def story() -> None:
        wrong = sink(reading)
        with pytest.raises(OSError, match="Bad file descriptor"):
            await wrong.write(b"x")
        wrong.close()
        other = source(writing)
        assert await other.read(10) == b""
        other.close()
        with open("/dev/full", "wb") as full:
            channel = sink(full.fileno())
            with pytest.raises(OSError, match="No space left"):
                await channel.write(b"x")
            channel.close()

    run(story)
    os.close(reading)
    os.close(writing)


def test_nothing_stays_open() -> None:
    before = open_files()

    async def story() -> None:
        with tempfile.TemporaryFile() as file:
            for fd in (*ends("pipe"), *ends("socket"), *ends("terminal"), os.dup(file.fileno())):
                for writing in (False, True):
                    Channel(os.dup(fd), writing).close()
                os.close(fd)

    run(story)
    assert open_files() == before


def _exactly(fd: int, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += os.read(fd, size - len(found))
    return found
