"""What a guest that has been taken over can do by way of its containers: nothing."""

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.agent.protocol import Frame
from tapwright.control import processes, server
from tapwright.control.containers import Containers
from tapwright.control.processes import Processes
from tapwright.errors import AgentError
from tapwright.linux import unixsocket
from tapwright.sandbox import wire
from tests.host import open_files
from tests.hostile import Hostile

pytestmark = pytest.mark.unit

Story = Callable[[Hostile, Path], Awaitable[None]]


def tell(directory: Path, *stories: Story) -> None:
    async def all_of_them() -> None:
        for story in stories:
            async with asyncio.timeout(60):
                guest = Hostile()
                await guest.connect()
                conversing = Processes(guest.agent)
                operations = Containers(guest.agent, conversing.expect_end).by_name()
                conversations = conversing.by_name()
                async with server.serving(directory, guest.agent, operations, conversations):
                    await story(guest, directory)
                (directory / wire.SOCKET).unlink()
                await guest.close()

    asyncio.run(all_of_them())


def ask(directory: Path, op: str, **arguments: Any) -> Any:
    with wire.connected(directory, 60) as connection:
        wire.send(connection, {"op": op, **arguments})
        answer = wire.answer(connection)
    assert answer
    return answer[1]


class Held:
    """A process that was asked for: its connection, and our end of its stdin and stdout."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stdio: socket.socket
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.stdio = stdio

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    async def hear(self) -> Any:
        return json.loads(await self._reader.readline())

    def hang_up(self) -> None:
        self._writer.close()

    def close(self) -> None:
        self.hang_up()
        self.stdio.close()


@contextlib.asynccontextmanager
async def held(
    guest: Hostile, directory: Path, stdout: int | None = None, op: str = "exec_container"
) -> AsyncIterator[Held]:
    """A process; the guest has read that it is asked for, which is stream 1."""
    connection = socket.socket(socket.AF_UNIX)
    with unixsocket.address(directory / wire.SOCKET) as path:
        connection.connect(path)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    request = {"op": op, "id": "c", "process": {}}
    descriptors = [theirs.fileno()] * 3
    if stdout is not None:
        descriptors[1] = stdout
    wire.send(connection, request, descriptors)
    theirs.close()
    process = Held(*await asyncio.open_connection(sock=connection), ours)
    await guest.frames()
    try:
        yield process
    finally:
        process.close()


def test_its_words_are_checked(tmp_path: Path) -> None:
    wrong = [
        (protocol.STARTED, {"pid": "1"}),
        (protocol.STARTED, {"pid": 1 << 40}),
        (protocol.STARTED, {}),
        (protocol.REPLY, {"status": 256}),
        (protocol.REPLY, {"status": -1}),
        (protocol.REPLY, {"status": "0"}),
        (protocol.REPLY, {"status": True, "signal": 99}),
        (protocol.REPLY, {"status": True}),
        (protocol.REPLY, {}),
        (protocol.REPLY, {"signal": None}),
    ]

    def saying(kind: int, content: Any) -> Story:
        async def story(guest: Hostile, directory: Path) -> None:
            async with held(guest, directory) as process:
                await guest.send(protocol.message(kind, guest.session, 1, content))
                heard = await process.hear()
                assert heard["kind"] == "AgentError", heard
                assert "makes no sense" in heard["failed"]

        return story

    tell(tmp_path, *(saying(kind, content) for kind, content in wrong))


def test_it_says_once_that_a_process_started(tmp_path: Path) -> None:
    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory) as process:
            for pid in (5, 6):
                frame = protocol.message(protocol.STARTED, guest.session, 1, {"pid": pid})
                await guest.send(frame)
            await guest.send(protocol.message(protocol.REPLY, guest.session, 1, {"signal": 9}))
            assert await process.hear() == {"started": {"pid": 5}}
            assert await process.hear() == {"exited": {"signal": 9}}

    tell(tmp_path, story)


def test_output_after_the_end_of_a_process(tmp_path: Path) -> None:
    """What it left in the background prints: the client has the end when the process's own output
    is written, and may hang up."""

    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory) as process:

            async def says(kind: int, payload: bytes) -> None:
                await guest.send(protocol.encode(Frame(kind, guest.session, 1, payload)))

            loop = asyncio.get_running_loop()
            await says(protocol.STARTED, b'{"pid": 5}')
            await says(protocol.STDOUT, b"own")
            await says(protocol.EXITED, b'{"status": 3}')
            assert await process.hear() == {"started": {"pid": 5}}
            assert await process.hear() == {"exited": {"status": 3}}
            assert await loop.sock_recv(process.stdio, 100) == b"own"
            process.hang_up()
            await says(protocol.STDOUT, b"late")
            assert await loop.sock_recv(process.stdio, 100) == b"late"
            await says(protocol.REPLY, b'{"status": 3}')
            assert await loop.sock_recv(process.stdio, 100) == b""

    tell(tmp_path, story)


def test_outputs_that_are_kept_open_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no more of them than are allowed, the oldest is given up; so nothing is leaked, however
    many processes a guest says have left something behind."""
    monkeypatch.setattr(protocol, "MAX_LINGERING", 0)

    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory) as process:
            for kind, payload in (
                (protocol.STARTED, b'{"pid": 5}'),
                (protocol.EXITED, b'{"status": 3}'),
            ):
                await guest.send(protocol.encode(Frame(kind, guest.session, 1, payload)))
            assert await process.hear() == {"started": {"pid": 5}}
            assert await process.hear() == {"exited": {"status": 3}}
            assert await asyncio.get_running_loop().sock_recv(process.stdio, 100) == b""

    tell(tmp_path, story)


def test_a_guest_that_does_not_let_a_process_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it has sent SIGKILL, and never that the process has ended."""
    monkeypatch.setattr(processes, "_END_SECONDS", 0.1)

    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory, op="create_container") as process:
            started = protocol.message(protocol.STARTED, guest.session, 1, {"pid": 5})
            await guest.send(started)
            assert await process.hear() == {"created": {"pid": 5}}
            killing = asyncio.create_task(
                asyncio.to_thread(ask, directory, "signal_container", id="c", signal=9)
            )
            await guest.answers(2, protocol.REPLY, b"{}")
            assert await killing == {"result": None}
            assert await process.hear() == {"exited": {"signal": 9}}

    tell(tmp_path, story)


def test_a_flood_of_output_ends_the_conversation(tmp_path: Path) -> None:
    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory) as process:
            flood = protocol.encode(Frame(protocol.STDOUT, guest.session, 1, bytes(32768)))
            sending = asyncio.create_task(guest.send(flood * 100))
            heard = await process.hear()
            assert "more than its window allows" in heard["failed"]
            sending.cancel()

    tell(tmp_path, story)


def test_a_guest_that_takes_nothing_in_is_not_waited_for(tmp_path: Path) -> None:
    """Not even the request: it ends with its client."""

    async def story(guest: Hostile, directory: Path) -> None:
        config = {"process": {"args": ["x" * (8 << 20)]}}
        for op in ("create_container", "exec_container"):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with wire.connected(directory, 60) as connection:
                request = {"op": op, "id": "c", "config": config}
                await asyncio.to_thread(wire.send, connection, request, [theirs.fileno()] * 3)
                theirs.close()
                while not guest.agent._streams:
                    await asyncio.sleep(0.01)
            assert await guest.loop.sock_recv(ours, 10) == b""
            assert not guest.agent._streams
            ours.close()

    tell(tmp_path, story)


def test_a_request_is_not_kept_when_the_guest_has_it(tmp_path: Path) -> None:
    """A configuration may be large, and a container lives for long."""
    marks: list[weakref.ref[Any]] = []

    class Marked(dict[str, Any]):
        pass

    def read(data: bytes | bytearray) -> dict[str, Any]:
        content = Marked(json.loads(data))
        if "process" in content:
            content["process"] = Marked(content["process"])
            marks.append(weakref.ref(content["process"]))
        return content

    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory) as process:
            while marks[0]() is not None:
                gc.collect()
                await asyncio.sleep(0.01)
            await guest.send(protocol.message(protocol.REPLY, guest.session, 1, {"status": 0}))
            assert await process.hear() == {"exited": {"status": 0}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "read_json", read)
        tell(tmp_path, story)
    assert len(marks) == 1


def test_ends_of_output_without_end_cost_nothing(tmp_path: Path) -> None:
    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory) as process:
            end = protocol.encode(Frame(protocol.STDOUT, guest.session, 1, b""))
            more = protocol.encode(Frame(protocol.STDOUT, guest.session, 1, b"more"))
            await guest.send(end * 10_000 + more)
            await guest.send(protocol.message(protocol.REPLY, guest.session, 1, {"status": 0}))
            assert await process.hear() == {"exited": {"status": 0}}
            assert process.stdio.recv(10) == b""

    tell(tmp_path, story)


def test_output_is_acknowledged_when_it_is_written(tmp_path: Path) -> None:
    """So a reader that does not read makes no process hold more than a window."""
    reading, writing = os.pipe()
    in_the_pipe = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)

    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory, writing):
            frame = protocol.encode(Frame(protocol.STDOUT, guest.session, 1, bytes(32768)))
            await guest.send(frame * 8)
            acknowledged = taken = 0
            while acknowledged < protocol.WINDOW:
                while taken < acknowledged + 32768 - in_the_pipe:
                    taken += len(await asyncio.to_thread(os.read, reading, 4096))
                for credit in await guest.frames():
                    assert credit.kind == protocol.CREDIT
                    channel, count = protocol.read_credit(credit.payload)
                    assert channel == protocol.STDOUT
                    acknowledged += count
                assert acknowledged <= taken + in_the_pipe

    tell(tmp_path, story)
    os.close(reading)
    os.close(writing)


def test_stdin_goes_as_far_as_its_window(tmp_path: Path) -> None:
    async def story(guest: Hostile, directory: Path) -> None:
        async def give(count: int) -> None:
            credit = protocol.credit(protocol.STDIN, count)
            await guest.send(protocol.encode(Frame(protocol.CREDIT, guest.session, 1, credit)))

        async with held(guest, directory) as process:
            whole = bytes(2 * protocol.WINDOW + 32768)
            sending = asyncio.create_task(guest.loop.sock_sendall(process.stdio, whole))
            got = 0
            # More credit than there was a window for opens one window, and not more.
            for more in ((1 << 32) - 1, 1):
                got = 0
                while got < protocol.WINDOW:
                    for frame in await guest.frames():
                        got += len(frame.payload)
                assert got == protocol.WINDOW
                await give(more)
            (frame,) = await guest.frames()
            assert (frame.kind, len(frame.payload)) == (protocol.STDIN, 1)
            sending.cancel()

    tell(tmp_path, story)


def test_an_agent_that_begins_anew(tmp_path: Path) -> None:
    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory) as process:
            await guest.send(protocol.hello(0, {}))
            heard = await process.hear()
            assert "the agent in the guest restarted" in heard["failed"]

    tell(tmp_path, story)


def test_a_supervisor_that_ends_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        guest = Hostile()
        await guest.connect()
        conversations = Processes(guest.agent).by_name()
        async with (
            contextlib.AsyncExitStack() as stack,
            server.serving(tmp_path, guest.agent, {}, conversations),
        ):
            process = await stack.enter_async_context(held(guest, tmp_path))
        heard = await process.hear()
        assert heard["kind"] == "SandboxStateError"
        await guest.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("op", "answers"),
    [
        ("container_processes", [{}, {"processes": 5}, {"processes": [{"pid": 1}]}]),
        ("container_statistics", [{"cpu": "much"}, {"a": {"b": {"c": {"d": 1}}}}, {"a": [1]}]),
        ("container_statistics", [{"cpu": 5}, {"cpu": {"usage_usec": None}}, {"pids": None}]),
        ("container_statistics", [{"memory": {"stat": 1}}, {"memory": {"current": {"a": 1}}}]),
        ("container_statistics", [{"memory": {"max": -1}}, {"pids": {"current": 1 << 64}}]),
        ("container_statistics", [{"io": {"sda": {}}}, {"io": {"8:0": 1}}, {"cpu": {"a": True}}]),
    ],
)
def test_its_answers_are_checked(op: str, answers: list[Any]) -> None:
    async def story() -> None:
        guest = Hostile()
        await guest.connect()
        operation = Containers(guest.agent, lambda container: None).by_name()[op]
        for stream, answer in enumerate(answers, 1):
            payload = json.dumps(answer).encode()
            answering = asyncio.create_task(guest.answers(stream, protocol.REPLY, payload))
            with pytest.raises(AgentError, match="no proper"):
                await operation(id="c")
            await answering
        await guest.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b'{"resize": 5}\n', "resize is 5, and must be"),
        (b'{"resize": [1, "2"]}\n', "must be [rows, columns]"),
        (b'{"resize": [1, 65536]}\n', "a terminal of 1 rows and 65536 columns"),
        (b'{"signal": 65}\n', "signal is 65"),
        (b"[1]\n", "not a JSON object"),
        (b"x" * (2 << 20), "a line without end"),
    ],
)
def test_a_client_that_breaks_a_rule(tmp_path: Path, said: bytes, reason: str) -> None:
    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory) as process:
            process.say(said)
            heard = await process.hear()
            assert reason in heard["failed"]
            assert heard["kind"] == "ProtocolError"

    tell(tmp_path, story)


def test_a_mistake_of_ours_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(guest: Hostile, directory: Path) -> None:
        async with held(guest, directory) as process:
            heard = await process.hear()
            assert heard["failed"].startswith("unexpected TypeError: ours")

    async def mistaken(self: object, writing: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(processes._Conversation, "_end", mistaken)
    tell(tmp_path, story)
    assert "in mistaken" in caplog.text


def test_descriptors_that_nobody_takes_are_closed(tmp_path: Path) -> None:
    async def story() -> None:
        guest = Hostile()
        await guest.connect()

        async def take(fds: list[int]) -> int:
            os.close(fds.pop())
            return len(fds)

        async with server.serving(tmp_path, guest.agent, {"take": take}, {}):
            open_before = len(open_files())
            for op in ("take", "nonsense", "take"):
                connection = socket.socket(socket.AF_UNIX)
                with unixsocket.address(tmp_path / wire.SOCKET) as path:
                    connection.connect(path)
                with open("/dev/null") as null:
                    wire.send(connection, {"op": op}, [null.fileno()] * 3)
                reader, writer = await asyncio.open_connection(sock=connection)
                answer = await reader.read()
                (frame,) = protocol.Decoder().feed(answer)
                content = protocol.read_json(frame.payload)
                assert content.get("result") == (2 if op == "take" else None)
                writer.close()
                await writer.wait_closed()
            assert len(open_files()) == open_before
        await guest.close()

    asyncio.run(story())
