"""Part 7: frames of a guest that was taken over, after the handshake, of all kinds on streams that
are open, ended or never were. The supervisor holds little, and understands what makes sense."""

import pytest

from tests.agent.test_requests import FRAMES, flood
from tests.torture.bound import Bound

_WHOLE = 100_000

pytestmark = pytest.mark.unit


def test_frames(bound: Bound) -> None:
    if not bound.is_whole:
        pytest.skip("tests/agent/test_requests.py is its short form")
    for number in bound.goes_on(short=1, whole=-(-_WHOLE // FRAMES)):
        flood(bound.seed * 1000 + number)
    bound.tell(
        7,
        "frames from a guest that was taken over, after the handshake",
        "what is held stays within its bounds, and the next request is answered",
        bound.tries * FRAMES,
    )
