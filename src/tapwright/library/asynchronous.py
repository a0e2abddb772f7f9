"""The library with `await`: each call runs the blocking one in a thread of its own, so that a
program may wait for any number at once."""

import asyncio
import contextvars
import functools
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from tapwright.library.files import Files
from tapwright.library.nics import Address, Network, Nic, Nics, Route, Routes
from tapwright.library.sandbox import Sandbox, sandboxes
from tapwright.sandbox import report
from tapwright.sandbox.execution import Completed, Output, Process
from tapwright.sandbox.launching import Waiting
from tapwright.state.record import Record

T = TypeVar("T")


async def in_thread(
    call: Callable[..., T], *args: Any, giving_up: Callable[[], object] | None = None, **kwargs: Any
) -> T:
    """Return or raise what a blocking call does. The call is never left half done: when the task is
    cancelled, this calls `giving_up`, which makes the call end soon, and waits for that end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            result = context.run(functools.partial(call, *args, **kwargs))
        except BaseException as raised:  # whatever it is, the task gets it
            error = raised
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=f"tapwright {call.__name__}", daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if giving_up is not None:
            giving_up()
        with suppress(Exception):
            await asyncio.shield(future)
        raise


class AsyncOutput:
    """`Output` with `await`; iterating gives lines."""

    def __init__(self, output: Output, process: Process) -> None:
        self._output, self._process = output, process

    async def read(self, size: int = -1) -> bytes:
        return await in_thread(self._output.read, size, giving_up=self._process.close)

    async def read1(self, size: int = -1, timeout: float | None = None) -> bytes:
        return await in_thread(self._output.read1, size, timeout, giving_up=self._process.close)

    async def readline(self) -> bytes:
        return await in_thread(self._output.readline, giving_up=self._process.close)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line


class AsyncProcess:
    """`Process` with `await`. A task that is cancelled while it waits for the command ends it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.argv = process.argv
        self.stdout = AsyncOutput(process.stdout, process)
        self.stderr = AsyncOutput(process.stderr, process)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.close()

    @property
    def status(self) -> int | None:
        return self._process.status

    async def wait(self, timeout: float | None = None) -> int:
        return await in_thread(self._process.wait, timeout, giving_up=self._process.close)

    async def write(self, data: bytes) -> None:
        await in_thread(self._process.write, data, giving_up=self._process.close)

    async def communicate(
        self, stdin: bytes = b"", timeout: float | None = None
    ) -> Completed[bytes]:
        close = self._process.close
        return await in_thread(self._process.communicate, stdin, timeout, giving_up=close)

    async def finish(
        self, stdin: str | bytes, timeout: float | None, check: bool, encoding: str | None
    ) -> Completed[Any]:
        close = self._process.close
        return await in_thread(
            self._process.finish, stdin, timeout, check, encoding, giving_up=close
        )

    def close_stdin(self) -> None:
        self._process.close_stdin()

    def signal(self, number: int) -> None:
        self._process.signal(number)

    def kill(self) -> None:
        self._process.kill()

    def resize(self, rows: int, columns: int) -> None:
        self._process.resize(rows, columns)

    def close(self) -> None:
        self._process.close()


class AsyncNics:
    """`Nics` with `await`. It returns plain `Nic`s; `remove` and `set_addresses` take a NIC's
    name."""

    def __init__(self, nics: Nics) -> None:
        self._nics = nics

    async def add(self, device: str, name: str, **wanted: Any) -> Nic:
        return await in_thread(self._nics.add, device, name, **wanted)

    async def remove(self, name: str) -> None:
        await in_thread(lambda: self._nics[name].remove())

    async def set_addresses(self, name: str, addresses: Iterable[str | Address]) -> Nic:
        return await in_thread(lambda: self._nics[name].set_addresses(addresses))

    async def get(self, name: str) -> Nic:
        return await in_thread(self._nics.__getitem__, name)

    async def __aiter__(self) -> AsyncIterator[Nic]:
        for nic in await in_thread(lambda: list(self._nics)):
            yield nic


class AsyncRoutes:
    """`Routes` with `await`."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    async def add(self, destination: str | Network, **wanted: Any) -> None:
        await in_thread(self._routes.add, destination, **wanted)

    async def remove(self, destination: str | Network, **wanted: Any) -> None:
        await in_thread(self._routes.remove, destination, **wanted)

    async def __aiter__(self) -> AsyncIterator[Route]:
        for route in await in_thread(lambda: list(self._routes)):
            yield route


class AsyncFiles:
    """`Files` with `await`."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def read(self, path: str) -> bytes:
        return await in_thread(self._files.read, path)

    async def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        await in_thread(self._files.write, path, content, mode=mode)

    async def get(self, path: str, to: str | Path | IO[bytes]) -> None:
        await in_thread(self._files.get, path, to)

    async def put(
        self, source: str | Path | IO[bytes], path: str, *, mode: int | None = None
    ) -> None:
        await in_thread(self._files.put, source, path, mode=mode)


class _WaitedFor:
    """The supervisor that a thread waits for, which may be another one later: a spare can fail."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_over = False

    def be(self, supervisor: Waiting) -> None:
        with self._lock:
            self._socket = supervisor.socket
            if self._is_over:
                self._leave()

    def give_up(self) -> None:
        with self._lock:
            self._is_over = True
            self._leave()

    def _leave(self) -> None:
        # It takes that for its caller's end, and takes everything back.
        if self._socket:
            with suppress(OSError):
                report.give_up(self._socket)


class AsyncSandbox:
    """`Sandbox` with `await`: the same arguments, results and errors. When a task is cancelled
    while it makes a sandbox, everything is taken back; while it runs a command, the command
    ends."""

    def __init__(self, sandbox_id: str, root: str | Path | None = None) -> None:
        self._sandbox = Sandbox(sandbox_id, root)
        self.id, self.root = self._sandbox.id, self._sandbox.root
        self.nics = AsyncNics(self._sandbox.nics)
        self.routes = AsyncRoutes(self._sandbox.routes)
        self.files = AsyncFiles(self._sandbox.files)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.delete()

    @classmethod
    async def run(cls, sandbox_id: str | None = None, **wanted: Any) -> Self:
        """As `Sandbox.run`."""
        waited_for = _WaitedFor()
        made: list[Sandbox] = []

        def run() -> None:
            made.append(Sandbox.run(sandbox_id, waiting=waited_for.be, **wanted))

        try:
            await in_thread(run, giving_up=waited_for.give_up)
        except asyncio.CancelledError:
            for sandbox in made:  # it was there already
                await in_thread(sandbox.delete)
            raise
        return cls(made[0].id, made[0].root)

    @classmethod
    async def find(cls, sandbox_id: str, *, root: str | Path | None = None) -> Self:
        """As `Sandbox.find`."""
        found = await in_thread(Sandbox.find, sandbox_id, root=root)
        return cls(found.id, found.root)

    @classmethod
    async def all(cls, *, root: str | Path | None = None) -> list[Self]:
        """As `tapwright.sandboxes()`."""
        return [cls(one.id, one.root) for one in await in_thread(sandboxes, root=root)]

    @property
    def status(self) -> str:
        return self._sandbox.status

    @property
    def problem(self) -> str:
        return self._sandbox.problem

    @property
    def record(self) -> Record:
        return self._sandbox.record

    @property
    def addresses(self) -> list[Address]:
        return self._sandbox.addresses

    @property
    def netns(self) -> str:
        return self._sandbox.netns

    @property
    def warnings(self) -> list[str]:
        return self._sandbox.warnings

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes = b"",
        timeout: float | None = None,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        encoding: str | None = "utf-8",
    ) -> Completed[Any]:
        """As `Sandbox.exec`."""
        async with await self.popen(argv, stdin=bool(stdin), env=env, cwd=cwd) as process:
            return await process.finish(stdin, timeout, check, encoding)

    async def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        terminal: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> AsyncProcess:
        """As `Sandbox.popen`."""
        started = await in_thread(
            self._sandbox.popen, argv, stdin=stdin, terminal=terminal, env=env, cwd=cwd
        )
        return AsyncProcess(started)

    async def delete(self, *, force: bool = False) -> list[str]:
        """As `Sandbox.delete`."""
        return await in_thread(self._sandbox.delete, force=force)
