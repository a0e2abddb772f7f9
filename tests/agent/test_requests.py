"""Requests of any size, and what a guest makes the supervisor hold, from the supervisor's end."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.agent.patience import Patience
from tapwright.agent.protocol import Assembler, Frame
from tapwright.agent.requests import of
from tapwright.errors import AgentError
from tests.hostile import Hostile

pytestmark = pytest.mark.unit

LARGE = {"op": "large", "text": "x" * (8 << 20)}
# A HELLO of session 0 would end all streams.
_KINDS = range(protocol.HELLO + 1, protocol.RESIZE + 1)


def tell(story: Callable[[Hostile], Awaitable[None]]) -> None:
    async def whole() -> None:
        guest = Hostile()
        await guest.connect()
        try:
            await asyncio.wait_for(story(guest), 60)
        finally:
            await guest.close()

    asyncio.run(whole())


def ignore(frame: Frame) -> None:
    pass


async def read_until(guest: Hostile, is_last: Callable[[Frame], bool]) -> list[Frame]:
    found: list[Frame] = []
    while not any(map(is_last, found)):
        found += await guest.frames()
    return found


def request_of(frames: list[Frame]) -> Any:
    """The request that they are, as an agent puts it together."""
    assembler = Assembler(protocol.MAX_REQUEST)
    for frame in frames:
        if frame.kind == protocol.REQUEST and (content := assembler.add(frame)):
            return protocol.read_json(content)
    return None


def is_end(frame: Frame) -> bool:
    return frame.kind == protocol.REQUEST and not frame.flags & protocol.MORE


def test_a_large_request_arrives_and_others_do_not_wait_for_it() -> None:
    async def story(guest: Hostile) -> None:
        stream = await guest.agent.open({"op": "small"}, ignore)
        await guest.frames()
        opening = asyncio.create_task(guest.agent.open(LARGE, ignore))
        await asyncio.sleep(0)  # it has begun, and the guest has read nothing of it
        await asyncio.sleep(0)
        signalling = asyncio.create_task(guest.agent.send(stream, protocol.SIGNAL, b"\1"))
        found = await read_until(guest, is_end)
        await asyncio.gather(opening, signalling)
        kinds = [frame.kind for frame in found]
        # What fits into the socket has gone before it.
        assert kinds.index(protocol.SIGNAL) < len(kinds) / 4
        assert request_of(found) == LARGE

    tell(story)


def test_large_requests_come_one_after_the_other() -> None:
    """So the agent never holds the parts of two."""

    async def story(guest: Hostile) -> None:
        opening = [asyncio.create_task(guest.agent.open(LARGE, ignore)) for _ in range(3)]
        found: list[Frame] = []
        while sum(map(is_end, found)) < 3:
            found += await guest.frames()
        await asyncio.gather(*opening)
        streams = [frame.stream for frame in found]
        assert streams == sorted(streams)

    tell(story)


def test_a_request_that_is_given_up_half_way_is_taken_back() -> None:
    async def story(guest: Hostile) -> None:
        with pytest.raises(AgentError, match="did not answer large within"):
            await guest.agent.call(of("large", text=LARGE["text"]), timeout=0.3)
        asking = asyncio.create_task(guest.agent.call(of("small"), timeout=60))
        found = await read_until(guest, is_end)
        cancelled = [frame.stream for frame in found if frame.kind == protocol.CANCEL]
        begun = {frame.stream for frame in found if frame.flags & protocol.MORE}
        assert begun == set(cancelled)
        last = found[-1]
        await guest.send(protocol.message(protocol.REPLY, guest.session, last.stream, {}))
        assert await asking == {}

    tell(story)


def test_a_request_without_an_answer_is_cancelled_once() -> None:
    async def story(guest: Hostile) -> None:
        with pytest.raises(AgentError, match="did not answer small within"):
            await guest.agent.call(of("small"), timeout=0.1)
        asking = asyncio.create_task(guest.agent.call(of("next"), timeout=10))
        found = await read_until(guest, lambda frame: b"next" in frame.payload)
        kinds = [frame.kind for frame in found]
        assert kinds == [protocol.REQUEST, protocol.CANCEL, protocol.REQUEST]
        await guest.send(protocol.message(protocol.REPLY, guest.session, found[-1].stream, {}))
        assert await asking == {}

    tell(story)


def test_a_request_whose_stream_has_ended_is_not_sent_on() -> None:
    async def story(guest: Hostile) -> None:
        got: list[Frame] = []
        opening = asyncio.create_task(guest.agent.open(LARGE, got.append))
        await guest.frames()
        await guest.send(protocol.hello(0, {}))  # it starts anew
        found = await read_until(guest, lambda frame: frame.kind == protocol.HELLO)
        await opening
        assert [frame.kind for frame in got] == [protocol.ERROR]
        assert sum(len(frame.payload) for frame in found) < 2 << 20

    tell(story)


def test_a_request_that_is_too_large_is_not_begun() -> None:
    async def story(guest: Hostile) -> None:
        with pytest.raises(AgentError, match="the request is too large: a message of 1"):
            await guest.agent.open({"op": "x" * protocol.MAX_REQUEST}, ignore)
        await guest.agent.open({"op": "small"}, ignore)
        (frame,) = await guest.frames()
        assert (frame.kind, frame.payload) == (protocol.REQUEST, b'{"op":"small"}')

    tell(story)


def anything(guest: Hostile, draw: random.Random) -> bytes:
    """A frame, or the beginning of one."""
    streams = [*guest.agent._streams] * 2
    frame = Frame(
        draw.choice(_KINDS),
        draw.choice([guest.session] * 5 + [0]),
        draw.choice([*streams, 0, 2**32 - 1]),
        draw.randbytes(draw.choice([0, 1, 7, 300, protocol.MAX_PAYLOAD])),
        draw.choice([0, protocol.MORE, protocol.MORE, protocol.MORE, 0xFFFF]),
    )
    data = protocol.encode(frame)
    return data[: draw.randrange(len(data))] if draw.random() < 0.1 else data


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_guest_sends_little_is_held(seed: int) -> None:
    flood(seed)


FRAMES = 60 * 30


def flood(seed: int) -> None:
    """Frames of all kinds on streams that are open, ended, or never were; some are damaged."""

    async def story(guest: Hostile) -> None:
        draw = random.Random(seed)  # noqa: S311
        agent = guest.agent
        # Else it would be ended soon, which is what `test_patience` is about.
        agent._unsound = agent._unasked = Patience(at_once=1 << 40, a_second=1)
        refused = 0
        taken: dict[tuple[int, int], int] = {}

        async def ask() -> None:
            nonlocal refused
            while True:
                try:
                    await agent.call(of("ask"), timeout=30)
                except AgentError:
                    refused += 1

        def count(frame: Frame) -> None:
            if frame.kind in (protocol.STDOUT, protocol.STDERR):
                key = frame.stream, frame.kind
                taken[key] = taken.get(key, 0) + len(frame.payload)

        async def read() -> None:
            while True:
                await guest.frames()

        for _ in range(6):
            await agent.open({"op": "exec"}, count)
        tasks = [asyncio.create_task(work) for work in (read(), *(ask() for _ in range(6)))]
        try:
            for _ in range(60):
                await guest.send(b"".join(anything(guest, draw) for _ in range(30)))
                held = sum(map(len, agent._assembler._parts.values()))
                assert held == agent._assembler._held <= protocol.MAX_MESSAGE
                assert agent._assembler._parts.keys() <= agent._streams.keys()
                assert len(agent._decoder._buffer) <= protocol.MAX_PAYLOAD + 64 * 1024 + 64
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert refused > 20
        assert taken
        assert all(count <= protocol.WINDOW for count in taken.values())
        # It is understood as soon as it makes sense.
        asking = asyncio.create_task(agent.call(of("sense"), timeout=60))
        found = await read_until(guest, lambda frame: b"sense" in frame.payload)
        (stream,) = [frame.stream for frame in found if b"sense" in frame.payload]
        reply = protocol.message(protocol.REPLY, guest.session, stream, {"well": 1})
        await guest.send(protocol.PREAMBLE + reply)
        assert await asking == {"well": 1}

    tell(story)
