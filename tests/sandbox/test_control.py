"""The control socket, and clients that break its rules: each gets an answer."""

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.control import server
from tapwright.errors import AgentError, UnknownRequestError, UsageError
from tapwright.oci.log import Log
from tapwright.sandbox import wire
from tapwright.sandbox.client import Supervisor
from tests.host import eventually, open_files
from tests.hostile import Hostile

pytestmark = pytest.mark.unit


async def length(text: str, fds: list[int] | None = None) -> int:
    return len(text)


def served(directory: Path, client: Callable[[], Any]) -> Any:
    """What a client, which is a thread, comes to at a socket with the request `length`."""

    async def story() -> Any:
        guest = Hostile()
        await guest.connect()
        async with server.serving(directory, guest.agent, {"length": length}, {}):
            found = await asyncio.wait_for(asyncio.to_thread(client), 60)
        await guest.close()
        return found

    return asyncio.run(story())


def answered(connection: socket.socket) -> Any:
    answer = wire.answer(connection)
    assert answer
    return answer


def saying(directory: Path, data: bytes) -> Callable[[], Any]:
    def client() -> Any:
        with wire.connected(directory, 60) as connection:
            connection.sendall(data)
            return answered(connection)

    return client


def test_both_rooms_have_one_bound() -> None:
    assert wire.MAX_REQUEST == protocol.MAX_REQUEST


def test_the_largest_request(tmp_path: Path) -> None:
    size = wire.MAX_REQUEST - len('{"op":"length","text":""}\n')

    def client(size: int) -> Callable[[], Any]:
        def ask() -> Any:
            with wire.connected(tmp_path, 60) as connection:
                wire.send(connection, {"op": "length", "text": "x" * size})
                return answered(connection)

        return ask

    assert served(tmp_path, client(size)) == (protocol.REPLY, {"result": size})
    (tmp_path / wire.SOCKET).unlink()
    with pytest.raises(UsageError, match="a request of 16777217 bytes, and a sandbox takes 1677"):
        served(tmp_path, client(size + 1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        # The second one is still being sent when it is refused.
        (b"x" * wire.MAX_REQUEST, "16777216 bytes at most, and this one has more"),
        (b"x" * 3 * wire.MAX_REQUEST, "16777216 bytes at most"),
        (b" " * wire.MAX_REQUEST + b"\n", "16777216 bytes at most"),
        (b"nonsense\n", "not JSON"),
        (b"[]\n", "not a JSON object"),
        (b"\xff\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"{}\n", "op must be the name of a request"),
        (b'{"op": "%s"}\n' % (b"x" * (2 << 20)), "unknown request 'xxx"),
        (b'{"op": ["length"]}\n', "op must be the name of a request"),
        (b'{"op": "length", "fds": [1]}\n', "descriptors come beside the request"),
        (b'{"op": "length"}\n', "length: missing a required argument: 'text'"),
        (
            b'{"op": "length", "word": 1}\n',
            "length: unknown argument 'word': this sandbox was started by another",
        ),
    ],
)
def test_a_broken_rule_is_answered_with_the_reason(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    kind, content = served(tmp_path, saying(tmp_path, data))
    assert kind == protocol.ERROR
    assert reason in content["message"]


def test_an_unknown_request_has_a_kind_of_its_own(tmp_path: Path) -> None:
    for data in (b'{"op": "new"}\n', b'{"op": "length", "text": "", "new": 1}\n'):
        _, content = served(tmp_path, saying(tmp_path, data))
        assert wire.kind_of(content) == "UnknownRequestError"
        (tmp_path / wire.SOCKET).unlink()


def test_the_refusal_of_version_0_is_understood() -> None:
    for kind, message in (
        ("ProtocolError", "unknown request 'new'"),
        ("TypeError", "Shares.share() got an unexpected keyword argument 'new'"),
    ):
        assert wire.kind_of({"kind": kind, "message": message}) == "UnknownRequestError"
    assert wire.kind_of({"kind": "ProtocolError", "message": "x"}) == "ProtocolError"


def test_the_version(tmp_path: Path) -> None:
    asked = saying(tmp_path, b'{"op": "version"}\n')
    assert served(tmp_path, asked) == (protocol.REPLY, {"result": {"version": wire.VERSION}})


def test_an_older_sandbox_does_without_what_it_does_not_know(tmp_path: Path) -> None:
    """A member that joins it is warned of that, and made."""
    directory = tmp_path / "sandboxes" / "s"
    directory.mkdir(parents=True)

    def client() -> Any:
        sandbox, log = Supervisor(directory), Log("", "text")
        sandbox.call_if_known("follow_something", log.warn, path="x")
        with pytest.raises(UnknownRequestError):
            sandbox.call("follow_something", path="x")
        with pytest.raises(AgentError, match="missing a required argument"):
            sandbox.call_if_known("length", log.warn)
        return log._warnings

    (warning,) = served(directory, client)
    assert "unknown request 'follow_something'" in warning
    assert "make it anew" in warning


def test_a_mistake_of_ours_is_no_refusal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its trace."""
    kind, content = served(tmp_path, saying(tmp_path, b'{"op": "length", "text": 5}\n'))
    assert kind == protocol.ERROR
    assert content["message"].startswith("unexpected TypeError")
    assert "kind" not in content
    assert "in length" in caplog.text


def test_a_request_without_end_is_answered_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_REQUEST_SECONDS", 0.2)
    _, content = served(tmp_path, saying(tmp_path, b'{"op": '))
    assert content["message"] == "a request did not come whole within 0.2 s"


def test_too_many_descriptors(tmp_path: Path) -> None:
    def client() -> Any:
        open_before = len(open_files())
        with wire.connected(tmp_path, 60) as connection, open(os.devnull) as null:
            for _ in range(2):
                socket.send_fds(connection, [b" "], [null.fileno()] * 200)
            answer = answered(connection)
        assert eventually(lambda: len(open_files()) == open_before)
        return answer

    _, content = served(tmp_path, client)
    assert "400 descriptors came with a request, and it may have 253" in content["message"]


def test_a_request_that_comes_in_bits(tmp_path: Path) -> None:
    def client() -> Any:
        with wire.connected(tmp_path, 60) as connection:
            for byte in json.dumps({"op": "length", "text": "in bits"}).encode() + b"\n":
                connection.sendall(bytes([byte]))
            return answered(connection)

    assert served(tmp_path, client) == (protocol.REPLY, {"result": 7})


def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    """With a request that the guest does not read: the client was killed meanwhile."""

    async def story() -> None:
        guest = Hostile()
        await guest.connect()
        text = "x" * (4 << 20)
        async with server.serving(tmp_path, guest.agent, {}, {}):
            before = len(asyncio.all_tasks())
            for _ in range(3):
                with wire.connected(tmp_path) as connection:
                    send = threading.Thread(
                        target=wire.send, args=(connection, {"op": "exec", "argv": [text]})
                    )
                    send.start()
                    await asyncio.to_thread(send.join)
                    await until(lambda: len(guest.agent._streams) == 1)
                await until(lambda: not guest.agent._streams)
            # The CANCEL of each waits for the guest.
            await until(lambda: len(asyncio.all_tasks()) <= before + 3)
        await guest.close()

    asyncio.run(asyncio.wait_for(story(), 60))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_refusal_of_a_conversation_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the OCI runtime, which expects lines: that the request can't be read is said in frames."""
    directory = tmp_path / "sandboxes" / "s"
    directory.mkdir(parents=True)
    monkeypatch.setattr(server, "_MOST_DESCRIPTORS", 2)

    def client() -> Any:
        with open(os.devnull) as null, pytest.raises(AgentError, match="descriptors"):
            Supervisor(directory).converse("create_container", [null.fileno()] * 3)

    served(directory, client)
