"""What a guest that was taken over says of a command's end is looked at before it is believed."""

from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.errors import AgentError
from tapwright.sandbox.execution import Process

pytestmark = pytest.mark.unit


def outcome(kind: int, reply: Any) -> int:
    process = Process.__new__(Process)
    return process._outcome(kind, reply)


@pytest.mark.parametrize(
    "reply",
    [
        *({}, {"status": None}, {"status": "0"}, {"status": True}, {"status": 256}, {"status": -1}),
        *({"signal": 65}, {"signal": []}, {"signal": None, "status": 0}),
    ],
)
def test_an_end_that_makes_no_sense(reply: Any) -> None:
    with pytest.raises(protocol.ProtocolError):
        outcome(protocol.REPLY, reply)


def test_an_end() -> None:
    assert outcome(protocol.REPLY, {"status": 255}) == 255
    assert outcome(protocol.REPLY, {"signal": 9}) == 137
    codes: list[Any] = [None, [], "2", 5]
    for code in codes:
        with pytest.raises(AgentError, match="why"):
            outcome(protocol.ERROR, {"message": "why", "errno": code})
