"""Signals that are read from a descriptor."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def caught(numbers: Iterable[int]) -> Iterator[int]:
    """Yield a descriptor from which the number of each of these signals can be read while the block
    lasts. For the main thread only."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    waking = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(waking)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)
