"""A guest that breaks the rules of the protocol costs its host a bounded time, and is ended."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

import pytest

from tapwright.agent import client, protocol
from tapwright.agent.patience import Patience
from tapwright.agent.protocol import Frame
from tapwright.agent.requests import of
from tapwright.errors import AgentError
from tests.hostile import Hostile

pytestmark = pytest.mark.unit

HEADER = protocol.encode(Frame(protocol.STDOUT, 0, 0, b"x" * protocol.MAX_PAYLOAD))[:28]


def told(story: Callable[[Hostile], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            guest = Hostile()
            await guest.connect()
            await story(guest)
            await guest.close()

    asyncio.run(whole())


def test_some_is_borne_at_once_and_some_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("tapwright.agent.patience.time.monotonic", lambda: now)
    borne = Patience(at_once=10, a_second=2)
    assert borne.spend(10) == 0
    assert borne.spend(3) == 1.5
    now += 1.5
    assert borne.spend(0) == 0
    now += 1000
    assert borne.spend(11) == 0.5


def test_frames_with_wrong_checksums_end_it() -> None:
    """Each byte of them is taken for part of a thousand frames."""

    async def story(guest: Hostile) -> None:
        asked = asyncio.create_task(guest.agent.call(of("anything"), 60))
        await guest.frames()
        sending = asyncio.create_task(guest.send(HEADER * 20_000))
        await guest.agent.has_broken_rules.wait()
        with pytest.raises(AgentError, match="checksums that are wrong, on and on"):
            await asked
        with pytest.raises(AgentError, match="closed"):
            await guest.agent.call(of("anything"))
        # What came after that was not even read.
        assert guest.agent._decoder.unsound < 10_000
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    told(story)


def test_an_agent_that_dies_now_and_then_is_none_of_these() -> None:
    """It leaves half a frame each time, and its next life begins with zeros."""

    async def story(guest: Hostile) -> None:
        for _ in range(50):
            await guest.send(HEADER)
            await guest.send(protocol.hello(0, {}))
            hello = await guest.frames()
            guest.session = hello[-1].session
            await guest.send(protocol.hello(guest.session, {}))
            await guest.agent.connect(60)
        assert guest.agent._decoder.unsound >= 50
        assert not guest.agent.has_broken_rules.is_set()

    told(story)


@pytest.mark.parametrize("sent", ["garbage", "frames", "hellos"])
def test_who_sends_what_nobody_asked_for_waits(monkeypatch: pytest.MonkeyPatch, sent: str) -> None:
    """Longer and longer; a moment is enough for what was asked for."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def sleeping(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("tapwright.agent.client.asyncio.sleep", sleeping)

    async def story(guest: Hostile) -> None:
        guest.agent._unasked = Patience(at_once=1 << 20, a_second=1 << 10)
        data = {
            "garbage": bytes(1 << 16),
            "frames": protocol.encode(Frame(protocol.STDOUT, guest.session, 99)) * 100,
            "hellos": protocol.hello(guest.session, {}, after_whole=True) * 100,
        }[sent]
        for _ in itertools.takewhile(lambda _: not any(pauses), range(10_000)):
            await guest.send(data)
            await sleep(0)
        assert 0 < max(pauses) <= client._LONGEST_PAUSE
        assert not guest.agent.has_broken_rules.is_set()

    told(story)


def test_what_was_asked_for_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []
    spend = Patience.spend

    def spending(self: Patience, amount: float) -> float:
        spent.append(amount)
        return spend(self, amount)

    monkeypatch.setattr(Patience, "spend", spending)

    async def story(guest: Hostile) -> None:
        for stream in range(1, 20):
            answering = asyncio.create_task(guest.answers(stream, protocol.REPLY, b"{}"))
            assert await guest.agent.call(of("anything")) == {}
            await answering
        assert not any(spent[4:])

    told(story)


def test_who_has_no_processor_may_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapwright.linux.starving.waited", lambda pid: {pid: time.monotonic()})

    async def story(process: int | None) -> None:
        guest = Hostile(process)
        await guest.connect()
        asked = asyncio.create_task(guest.agent.call(of("anything"), timeout=0.2))
        await asyncio.sleep(0.5)
        await guest.answers(1, protocol.REPLY, b"{}")
        try:
            assert await asked == {}
        finally:
            await guest.close()

    asyncio.run(story(1))
    with pytest.raises(AgentError, match="did not answer anything within"):
        asyncio.run(story(None))
