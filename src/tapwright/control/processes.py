"""Processes of containers, each with a connection of the control socket for as long as it runs.

`create_container` (`id`, `config`: a whole config.json, `terminal`, `oom`: `OomReports`) makes a
container with its first process; `exec_container` (`id`, `process`: an OCI process object,
`terminal`) runs another process in it. Descriptors come with the request: stdin, stdout and stderr,
or with a `terminal` one for all of them; with `null_stdin` the first is the null device. The
supervisor passes the data on between these and the guest.

Messages on the connection are JSON, one object a line. To the client:

    {"created": {"pid": N}}                    the process exists; the pid is the guest's
    {"started": {"pid": N}}                    the same, of exec_container
    {"exited": {"status": N}}                  it has ended, and all its output is written
    {"exited": {"signal": N}}                  the same, by a signal
    {"failed": "why", "kind": "ContainerError"}   it did not start, or its end is unknown

From the client: {"signal": N} and {"resize": [rows, columns]}. When the client hangs up, the
supervisor kills the process; if it is the container's first one, it also deletes the container.

A further process that has ended may have left others in the background, which have its outputs.
What they print is passed on for as long as they can print, as if they had the descriptors
themselves; of MAX_LINGERING such processes at most.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from tapwright.agent import protocol, requests
from tapwright.agent.client import AgentClient, failure
from tapwright.agent.protocol import Frame, ProtocolError
from tapwright.control.oom_reports import OomReports
from tapwright.control.server import ControlRequest
from tapwright.control.stdio import Channel
from tapwright.errors import AgentError, SandboxStateError, TapwrightError, UsageError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_END_SECONDS = 15.0
_OUTPUTS = (protocol.STDOUT, protocol.STDERR)


class Processes:
    """The conversations of the control socket about processes of containers."""

    def __init__(
        self,
        agent: AgentClient,
        admit: Callable[[str, Any], Awaitable[None]] | None = None,
        leave: Callable[[str], None] | None = None,
    ) -> None:
        """`admit` gets a container's id and configuration before the container is made, and may
        refuse it; `leave` gets the id when the container has ended."""
        self._agent = agent
        self._admit = admit
        self._leave = leave
        self._first: dict[str, _Conversation] = {}
        self._lingering: list[_Conversation] = []

    def expect_end(self, container: str) -> None:
        """Count a killed container as ended on the host when the guest has not reported its end
        after a while: the guest may be hostile, or a process may hang in its kernel."""
        if conversation := self._first.get(container):
            loop = asyncio.get_running_loop()
            loop.call_later(_END_SECONDS, conversation.give_up)

    def by_name(self) -> dict[str, Any]:
        return {"create_container": self._create, "exec_container": self._execute}

    async def _create(self, request: ControlRequest) -> None:
        await self._converse(request, "created")

    async def _execute(self, request: ControlRequest) -> None:
        await self._converse(request, "started")

    async def _converse(self, request: ControlRequest, started: str) -> None:
        try:
            conversation = _Conversation(self._agent, request, started, self._linger)
            async with self._known(request, conversation):
                outcome = await conversation.run()
        except asyncio.CancelledError:
            error = SandboxStateError("the sandbox ended")
            _tell(request, {"failed": str(error), "kind": type(error).__name__})
            raise
        except (TapwrightError, ProtocolError) as error:
            outcome = {"failed": str(error), "kind": type(error).__name__}
        except ConnectionError:
            raise
        except Exception as error:
            _log.exception("unexpected")
            text = f"unexpected {type(error).__name__}: {error}; the sandbox's log has more"
            outcome = {"failed": text, "kind": type(error).__name__}
        if outcome:
            _tell(request, outcome)

    def _linger(self, conversation: "_Conversation") -> None:
        """Note one whose client has gone. A hostile guest could keep any number of them open."""
        self._lingering = [each for each in self._lingering if not each.is_over] + [conversation]
        excess = max(0, len(self._lingering) - protocol.MAX_LINGERING)
        for oldest in self._lingering[:excess]:
            oldest.give_up()

    @contextlib.asynccontextmanager
    async def _known(
        self, request: ControlRequest, conversation: "_Conversation"
    ) -> AsyncIterator[None]:
        """Remember the conversation of a container's first process, by the container's id."""
        container = str(request.arguments.get("id"))
        if request.op != "create_container" or container in self._first:
            yield
            return
        self._first[container] = conversation
        try:
            if self._admit:
                try:
                    await self._admit(container, request.arguments.get("config"))
                except BaseException:
                    conversation.close()
                    raise
            yield
        finally:
            del self._first[container]
            if self._leave:
                self._leave(container)


class _Output:
    """Output of the process that is not written yet: a window at most."""

    def __init__(self, channel: Channel | None) -> None:
        self.channel = channel
        self.waiting = bytearray()
        self.has_ended = False
        self.news = asyncio.Event()
        self._taken = 0
        self._written = 0
        self._progress = asyncio.Event()

    def take(self, data: bytes) -> None:
        if not self.has_ended:
            self.waiting += data
            self._taken += len(data)
            self.has_ended = not data
            self.news.set()

    def wrote(self, count: int) -> None:
        """Note that so many bytes have been written, or are lost."""
        self._written += count
        self._progress.set()

    async def settle(self) -> None:
        """Wait until all that has come by now has been written."""
        taken = self._taken
        while self._written < taken:
            self._progress.clear()
            await self._progress.wait()

    def end(self) -> None:
        self.has_ended = True
        self.news.set()


class _Conversation:
    def __init__(
        self,
        agent: AgentClient,
        request: ControlRequest,
        started: str,
        linger: "Callable[[_Conversation], None]",
    ) -> None:
        """Raises UsageError for a wrong number of descriptors."""
        self._agent = agent
        self._request = request
        self._started = started
        self._may_linger = request.op == "exec_container"
        self._oom = OomReports(request.arguments.pop("oom", {}))
        self._stdin, *channels = _channels(request)
        self._outputs = dict(zip(_OUTPUTS, map(_Output, channels), strict=False))
        self._window = protocol.WINDOW
        self._window_opens = asyncio.Event()
        self._assembler = protocol.Assembler()
        self._is_started = False
        self._outcome: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._exit: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._linger = linger
        self._is_lingering = False
        self.is_over = False
        self._given_up = asyncio.Event()
        self._stream = 0

    def give_up(self) -> None:
        """End the conversation with what is known by now."""
        self._given_up.set()

    async def run(self) -> dict[str, Any] | None:
        """Run until the process has ended and its output is written; return the last message for
        the client, None when the client has gone, or has had it. Raises AgentError,
        ContainerError, ProtocolError."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            opening = _task(tasks, self._open())
            listening = _task(tasks, self._listen(opening))
            giving_up = _task(tasks, self._given_up.wait())
            # A guest may read nothing, not even the request.
            await _one_of(opening, listening, giving_up)
            if opening.done():
                opening.result()
                _task(tasks, self._feed())
                _task(tasks, self._oom.run())
                writing = [
                    _task(tasks, self._write(kind, out)) for kind, out in self._outputs.items()
                ]
                _task(tasks, self._report_exit())
                ending = _task(tasks, self._end(writing))
                await _one_of(listening, ending, giving_up)
                if self._is_lingering:
                    await _one_of(ending, giving_up)
                    return None
                if ending.done():
                    await self._oom.settle()
                    return ending.result()
            if giving_up.done():
                known = self._outcome.done() and not self._outcome.exception()
                return self._outcome.result() if known else {"exited": {"signal": signal.SIGKILL}}
            listening.result()
            return None
        finally:
            # The agent ignores it for a stream that has ended.
            self._agent.close_stream(self._stream, cancel=True)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.close()
            self.is_over = True

    def close(self) -> None:
        """Close the descriptors that came with the request."""
        self._stdin.close()
        for output in self._outputs.values():
            if output.channel:
                output.channel.close()

    async def _open(self) -> None:
        content = requests.of(self._request.op, **self._request.arguments)
        # The configuration may be large, and the process may live long.
        self._request.arguments.clear()
        self._stream = await self._agent.open(content, self._take)

    def _take(self, frame: Frame) -> None:
        """A frame of the guest, which is hostile."""
        try:
            if output := self._outputs.get(frame.kind):
                output.take(frame.payload)
            elif frame.kind == protocol.CREDIT:
                _, count = protocol.read_credit(frame.payload)
                self._window = min(self._window + count, protocol.WINDOW)
                self._window_opens.set()
            elif frame.kind == protocol.STARTED and not self._is_started:
                self._is_started = True
                pid = _number(protocol.read_json(frame.payload), "pid", 1 << 22)
                _tell(self._request, {self._started: {"pid": pid}})
            elif frame.kind == protocol.OOM:
                self._oom.killed()
            elif frame.kind == protocol.EXITED and self._may_linger and not self._exit.done():
                self._exit.set_result(_outcome(protocol.read_json(frame.payload)))
            elif frame.kind in (protocol.REPLY, protocol.ERROR) and not self._outcome.done():
                self._take_end(frame)
        except ProtocolError as error:
            self._fail(AgentError(f"the agent's answer makes no sense: {error}"))

    def _take_end(self, frame: Frame) -> None:
        content = self._assembler.add(frame)
        if content is None:
            return
        reply = protocol.read_json(content)
        if frame.kind == protocol.ERROR:
            self._fail(failure(self._request.op, reply))
            return
        self._outcome.set_result(_outcome(reply))

    def _fail(self, error: AgentError) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)

    async def _report_exit(self) -> None:
        """Tell the client of the end of a process whose outputs go on, which is when it has all
        that the process itself has printed. It may hang up then."""
        outcome = await self._exit
        await asyncio.gather(*(output.settle() for output in self._outputs.values()))
        if not self._outcome.done():
            self._is_lingering = True
            _tell(self._request, outcome)
            self._linger(self)

    async def _end(self, writing: list[asyncio.Task[None]]) -> dict[str, Any]:
        outcome = await self._outcome
        for output in self._outputs.values():
            output.end()
        await asyncio.gather(*writing)
        return outcome

    async def _listen(self, opening: asyncio.Task[None]) -> None:
        """Pass on signals and sizes from the client, until it hangs up."""
        while line := await self._line():
            word = protocol.read_json(line)
            await asyncio.shield(opening)
            if "signal" in word:
                number = _number(word, "signal", 64)
                await self._agent.send(self._stream, protocol.SIGNAL, bytes([number]))
            elif "resize" in word:
                rows, columns = _read_size(word["resize"])
                await self._agent.send(self._stream, protocol.RESIZE, protocol.size(rows, columns))

    async def _line(self) -> bytes:
        """Empty when the client has hung up. Raises ProtocolError."""
        try:
            return await self._request.reader.readline()
        except ValueError:  # asyncio.StreamReader.readline, of its limit
            raise ProtocolError("the client sent a line without end") from None

    async def _feed(self) -> None:
        """Pass on stdin, as much as the window allows."""
        with contextlib.suppress(AgentError):
            while True:
                while self._window <= 0:
                    self._window_opens.clear()
                    await self._window_opens.wait()
                data = await self._stdin.read(min(protocol.MAX_PAYLOAD, self._window))
                self._window -= len(data)
                await self._agent.send(self._stream, protocol.STDIN, data)
                if not data:
                    break
            if self._stdin.has_hung_up:
                await self._agent.send(self._stream, protocol.STDOUT, b"")

    async def _write(self, kind: int, output: _Output) -> None:
        """Pass on an output until its end."""
        with contextlib.suppress(AgentError):
            while True:
                while not output.waiting and not output.has_ended:
                    output.news.clear()
                    await output.news.wait()
                data = bytes(output.waiting[: protocol.MAX_PAYLOAD])
                del output.waiting[: len(data)]
                if not data:
                    break
                if output.channel and not await self._written(kind, output.channel, data):
                    output.channel.close()
                    output.channel = None
                output.wrote(len(data))
                await self._agent.send(
                    self._stream, protocol.CREDIT, protocol.credit(kind, len(data))
                )
        if output.channel:
            output.channel.close()
            output.channel = None

    async def _written(self, kind: int, channel: Channel, data: bytes) -> bool:
        """Write data to an output; return whether that succeeded. When the output has no reader any
        more, the process gets the end of its output; data that can't be written for another reason
        is lost."""
        try:
            await channel.write(data)
        except BrokenPipeError:
            await self._agent.send(self._stream, kind, b"")
            return False
        except OSError:
            return False
        return True


def _channels(request: ControlRequest) -> list[Channel]:
    """stdin, stdout, and stderr where there is one. Raises UsageError."""
    fds = request.descriptors
    wanted = 1 if request.arguments.get("terminal") else 3
    if len(fds) != wanted:
        raise UsageError(f"{request.op} takes {wanted} descriptors, and {len(fds)} came")
    if wanted == 1:
        fds.append(os.dup(fds[0]))
    channels = [Channel(fd, writing=number > 0) for number, fd in enumerate(fds)]
    fds.clear()
    return channels


def _number(content: dict[str, Any], key: str, most: int) -> int:
    value = content.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise ProtocolError(f"{key} is {value!r}")
    return value


def _outcome(reply: dict[str, Any]) -> dict[str, Any]:
    """The message about a process's end. Raises ProtocolError."""
    key, most = ("signal", 64) if "signal" in reply else ("status", 255)
    return {"exited": {key: _number(reply, key, most)}}


def _read_size(size: Any) -> tuple[int, int]:
    if not isinstance(size, list) or list(map(type, size)) != [int, int]:
        raise ProtocolError(f"resize is {size!r}, and must be [rows, columns]")
    rows, columns = size
    return rows, columns


def _tell(request: ControlRequest, content: dict[str, Any]) -> None:
    request.writer.write(json.dumps(content).encode() + b"\n")


async def _one_of(*tasks: asyncio.Task[Any]) -> None:
    """Wait until one of them is done."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _task(tasks: list[asyncio.Task[Any]], work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    task = asyncio.create_task(work)
    tasks.append(task)
    return task
