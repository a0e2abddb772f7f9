"""The library with `await`: each call runs the blocking call in a thread of its own, so a program
may wait for any number of calls at once."""

import asyncio
import contextvars
import functools
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from tapwright.library.files import Files
from tapwright.library.nics import Nic, Nics, Route, Routes
from tapwright.library.sandbox import Described, Sandbox, sandboxes
from tapwright.sandbox import report
from tapwright.sandbox.execution import Completed, Output, Process
from tapwright.sandbox.launching import Waiting

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


async def in_thread(
    call: Callable[..., T], *args: Any, giving_up: Callable[[], object] | None = None, **kwargs: Any
) -> T:
    """Run a blocking call in a thread; return its result, or raise its error. When the task is
    cancelled, this calls `giving_up`, which makes the call end soon, and waits for that end; so no
    call is left half done."""
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
        except BaseException as raised:  # the task gets it
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


class _Wrapper(Generic[S]):
    """An object whose blocking methods become methods to await."""

    def __init__(self, plain: S, giving_up: Callable[[], object] | None = None) -> None:
        self._plain = plain
        self._giving_up = giving_up


def _awaited(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[_Wrapper[S], P], Coroutine[Any, Any, T]]:
    """A method of the wrapped object, with `await`."""

    @functools.wraps(method)
    async def call(self: _Wrapper[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(method, self._plain, *args, giving_up=self._giving_up, **kwargs)

    return call


def _unchanged(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[_Wrapper[S], P], T]:
    """A method of the wrapped object that does not wait."""

    @functools.wraps(method)
    def call(self: _Wrapper[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self._plain, *args, **kwargs)

    return call


class AsyncOutput(_Wrapper[Output]):
    """`Output` with `await`; iterating gives lines."""

    read = _awaited(Output.read)
    read1 = _awaited(Output.read1)
    readline = _awaited(Output.readline)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line


class AsyncProcess(_Wrapper[Process]):
    """`Process` with `await`. When a task is cancelled while it waits for the command, the library
    ends the command."""

    def __init__(self, process: Process) -> None:
        super().__init__(process, process.close)
        self.argv = process.argv
        self.stdout = AsyncOutput(process.stdout, process.close)
        self.stderr = AsyncOutput(process.stderr, process.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def status(self) -> int | None:
        return self._plain.status

    wait = _awaited(Process.wait)
    write = _awaited(Process.write)
    communicate = _awaited(Process.communicate)
    finish = _awaited(Process.finish)
    close_stdin = _unchanged(Process.close_stdin)
    signal = _unchanged(Process.signal)
    kill = _unchanged(Process.kill)
    resize = _unchanged(Process.resize)
    close = _unchanged(Process.close)


def _giving_nic(
    method: Callable[Concatenate[S, P], Nic],
) -> "Callable[Concatenate[_Wrapper[S], P], Coroutine[Any, Any, AsyncNic]]":
    """A method of the wrapped object that returns a NIC, with `await`."""
    awaited = _awaited(method)

    @functools.wraps(method)
    async def call(self: _Wrapper[S], /, *args: P.args, **kwargs: P.kwargs) -> "AsyncNic":
        return AsyncNic(await awaited(self, *args, **kwargs))

    return call


class AsyncNic(_Wrapper[Nic]):
    """`Nic` with `await`: the same fields, `name`, `mac`, `mtu`, `addresses` and `device`."""

    def __init__(self, nic: Nic) -> None:
        super().__init__(nic)
        self.name, self.mac, self.mtu = nic.name, nic.mac, nic.mtu
        self.addresses, self.device = nic.addresses, nic.device

    def __repr__(self) -> str:
        return f"Async{self._plain!r}"

    remove = _awaited(Nic.remove)
    set_addresses = _giving_nic(Nic.set_addresses)


class AsyncNics(_Wrapper[Nics]):
    """`Nics` with `await`. Its NICs are `AsyncNic`s; `get` returns the NIC of a name."""

    add = _giving_nic(Nics.add)
    get = _giving_nic(Nics.__getitem__)

    async def __aiter__(self) -> AsyncIterator[AsyncNic]:
        for nic in await in_thread(lambda: list(self._plain)):
            yield AsyncNic(nic)


class AsyncRoutes(_Wrapper[Routes]):
    """`Routes` with `await`."""

    add = _awaited(Routes.add)
    remove = _awaited(Routes.remove)

    async def __aiter__(self) -> AsyncIterator[Route]:
        for route in await in_thread(lambda: list(self._plain)):
            yield route


class AsyncFiles(_Wrapper[Files]):
    """`Files` with `await`."""

    read = _awaited(Files.read)
    write = _awaited(Files.write)
    get = _awaited(Files.get)
    put = _awaited(Files.put)


class _Supervisor:
    """The supervisor for which a thread waits. The thread may wait for another one later, because a
    spare can fail."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_given_up = False

    def replace(self, supervisor: Waiting) -> None:
        with self._lock:
            self._socket = supervisor.socket
            if self._is_given_up:
                self._leave()

    def give_up(self) -> None:
        with self._lock:
            self._is_given_up = True
            self._leave()

    def _leave(self) -> None:
        # To the supervisor, its caller has ended; so it takes everything back.
        if self._socket:
            with suppress(OSError):
                report.give_up(self._socket)


class AsyncSandbox(Described, _Wrapper[Sandbox]):
    """`Sandbox` with `await`: the same arguments, results and errors. When a task is cancelled
    while it makes a sandbox, the library takes everything back; while it runs a command, the
    library ends the command."""

    def __init__(self, sandbox_id: str, root: str | Path | None = None) -> None:
        Described.__init__(self, sandbox_id, root)
        sandbox = Sandbox(sandbox_id, root)
        _Wrapper.__init__(self, sandbox)
        self.nics = AsyncNics(sandbox.nics)
        self.routes = AsyncRoutes(sandbox.routes)
        self.files = AsyncFiles(sandbox.files)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.delete()

    @classmethod
    async def run(cls, sandbox_id: str | None = None, **wanted: Any) -> Self:
        """As `Sandbox.run`."""
        supervisor = _Supervisor()
        made: list[Sandbox] = []

        def run() -> None:
            made.append(Sandbox.run(sandbox_id, waiting=supervisor.replace, **wanted))

        try:
            await in_thread(run, giving_up=supervisor.give_up)
        except asyncio.CancelledError:
            for sandbox in made:  # it was complete before the task gave up
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
            self._plain.popen, argv, stdin=stdin, terminal=terminal, env=env, cwd=cwd
        )
        return AsyncProcess(started)

    delete = _awaited(Sandbox.delete)
