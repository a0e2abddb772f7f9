"""Things that may fail and are tried again: not before some time, unless something else is wanted
by then."""

import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import NamedTuple

from tapwright.errors import TapwrightError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0

_log = logging.getLogger(__name__)


class _Failure(NamedTuple):
    """`again` is when it may be tried again (monotonic clock)."""

    wanted: object
    pause: float
    again: float


class Attempts:
    """Failures by what failed."""

    def __init__(self) -> None:
        self._failures: dict[Hashable, _Failure] = {}

    async def make(
        self, what: Hashable, wanted: object, do: Callable[[], Awaitable[None]], told: str
    ) -> bool:
        """Make `what` as it is `wanted`; return whether that was done. A failure is logged, after
        the words `told`."""
        before = self._failures.get(what)
        if before and before.wanted != wanted:
            before = None
        if before and time.monotonic() < before.again:
            return False
        try:
            await do()
        except (TapwrightError, OSError) as error:
            pause = min(before.pause * 2, _LONGEST_PAUSE) if before else _FIRST_PAUSE
            self._failures[what] = _Failure(wanted, pause, time.monotonic() + pause)
            _log.warning("%s, but the guest can't follow: %s", told, error)
            return False
        self._failures.pop(what, None)
        return True

    def forget_all_but(self, kept: Iterable[Hashable]) -> None:
        """Forget failures of what nobody wants any more."""
        for what in self._failures.keys() - set(kept):
            del self._failures[what]

    def seconds_to_next(self) -> float | None:
        """How long until something that failed may be tried again; None when nothing failed."""
        if not self._failures:
            return None
        return max(min(failure.again for failure in self._failures.values()) - time.monotonic(), 0)
