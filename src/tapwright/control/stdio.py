"""Descriptors of another process, read and written here without waiting for them.

They can be of any kind. All holders of a descriptor share its O_NONBLOCK (open(2), "open file
description"), so this module leaves it alone where it can: it opens pipes and terminals anew, and
passes MSG_DONTWAIT to sockets. Regular files and /dev/null are always ready, because nothing can
wait for them (epoll_ctl(2), EPERM).
"""

import asyncio
import errno
import fcntl
import os
import select
import socket
import stat
from collections.abc import Callable
from functools import partial
from typing import TypeVar

_Result = TypeVar("_Result", int, bytes)

_PTMX = os.makedev(5, 2)  # Documentation/admin-guide/devices.txt


class Channel:
    """One descriptor, which this object owns; for one reader or one writer, in one event loop.
    Reading an unreadable descriptor finds its end; writing to an unwritable one raises OSError.
    """

    def __init__(self, fd: int, writing: bool) -> None:
        self._fd = fd
        self._writing = writing
        self._socket: socket.socket | None = None
        self._error: OSError | None = None
        self._read_error: int | None = None
        self._is_terminal = False
        self._can_wait = False
        try:
            self._can_wait = _can_wait(fd)
            self._prepare()
        except OSError as error:
            self._error = error

    async def read(self, size: int) -> bytes:
        """At least one byte and at most `size`; none at the end."""
        try:
            return await self._when_ready(partial(self._read, size))
        except OSError as error:
            self._read_error = error.errno
            return b""

    async def write(self, data: bytes) -> None:
        """Write all of the data. Raises OSError: BrokenPipeError when the reader is gone, or a
        terminal has hung up."""
        view = memoryview(data)
        while view:
            view = view[await self._when_ready(partial(self._write, view)) :]

    @property
    def has_hung_up(self) -> bool:
        """Whether it was a terminal whose other side is closed. A reader learns of that before the
        terminal ceases to be one (pty_close in drivers/tty/pty.c).
        """
        if not self._is_terminal:
            return False
        return self._read_error == errno.EIO or not os.isatty(self._fd)

    def close(self) -> None:
        if self._socket:
            self._socket.close()
        elif self._fd >= 0:
            os.close(self._fd)
        self._fd, self._socket = -1, None

    def _prepare(self) -> None:
        status = os.fstat(self._fd)
        mode = fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_RDONLY if self._writing else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._is_terminal = os.isatty(self._fd) and status.st_rdev != _PTMX
        if stat.S_ISSOCK(status.st_mode):
            self._socket = socket.socket(fileno=self._fd)
        elif stat.S_ISFIFO(status.st_mode) or self._is_terminal:
            self._open_anew()
        elif self._can_wait:
            os.set_blocking(self._fd, False)

    def _open_anew(self) -> None:
        flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        flags |= os.O_WRONLY if self._writing else os.O_RDONLY
        try:
            fd = os.open(f"/proc/self/fd/{self._fd}", flags)
        except OSError as error:
            # fifo(7): a pipe without a reader.
            raise BrokenPipeError(error.errno, error.strerror) from None
        os.close(self._fd)
        self._fd = fd

    def _read(self, size: int) -> bytes:
        if self._socket:
            return self._socket.recv(size, socket.MSG_DONTWAIT)
        return os.read(self._fd, size)

    def _write(self, data: memoryview) -> int:
        if self._socket:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        try:
            return os.write(self._fd, data)
        except OSError as error:
            if self.has_hung_up:
                raise BrokenPipeError(error.errno, error.strerror) from None
            raise

    async def _when_ready(self, step: Callable[[], _Result]) -> _Result:
        if self._error:
            raise self._error
        if not self._can_wait:
            await asyncio.sleep(0)
            return step()
        while True:
            try:
                return step()
            except BlockingIOError:
                await ready(self._fd, self._writing)


async def ready(fd: int, writing: bool = False) -> None:
    """Wait until a descriptor can be read, or written."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not found.done():
            found.set_result(None)

    if writing:
        loop.add_writer(fd, note)
    else:
        loop.add_reader(fd, note)
    try:
        await found
    finally:
        if writing:
            loop.remove_writer(fd)
        else:
            loop.remove_reader(fd)


def _can_wait(fd: int) -> bool:
    with select.epoll() as epoll:
        try:
            epoll.register(fd, 0)
        except PermissionError:
            return False
    return True
