"""Waiting for what a cluster comes to."""

import time
from collections.abc import Callable

_PAUSE = 0.5


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """As that of tests.host, and not as often: a question is a kubectl of its own."""
    deadline = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return true
