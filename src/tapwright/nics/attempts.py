"""Changes that may fail, and are tried again: after a pause, or at once when another state is
wanted."""

import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple

from tapwright.errors import AgentError, AgentRefusedError, TapwrightError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0

_log = logging.getLogger(__name__)


class _Failure(NamedTuple):
    """`again` is when it may be tried again (monotonic clock)."""

    wanted: object
    pause: float
    again: float
    reason: str


class Attempts:
    """Failures by what failed."""

    def __init__(self) -> None:
        self._failures: dict[Hashable, _Failure] = {}
        self._asked: set[Hashable] = set()

    async def make(
        self, what: Hashable, wanted: object, do: Callable[[], Awaitable[None]], event: str
    ) -> bool:
        """Call `do`, which makes `what` as `wanted`, unless the same has just failed; return
        whether it succeeded. The log has each failure once, after the words of the `event`.

        Raises AgentError when the agent does not answer: then nothing else will be done either.
        """
        self._asked.add(what)
        before = self._failures.get(what)
        if before and before.wanted != wanted:
            before = None
        if before and time.monotonic() < before.again:
            return False
        try:
            await do()
        except (TapwrightError, OSError) as error:
            pause = min(before.pause * 2, _LONGEST_PAUSE) if before else _FIRST_PAUSE
            self._failures[what] = _Failure(wanted, pause, time.monotonic() + pause, str(error))
            if isinstance(error, AgentError) and not isinstance(error, AgentRefusedError):
                raise
            # Logged once, however often it is tried.
            if before is None or before.reason != str(error):
                _log.warning("%s, but the guest can't follow: %s", event, error)
            return False
        self._failures.pop(what, None)
        return True

    def reasons(self) -> list[str]:
        """The reasons of all failures."""
        return [failure.reason for failure in self._failures.values()]

    def end_round(self) -> float | None:
        """Forget the failures of what was not asked for since the last time; return how long until
        something may be tried again, None when nothing failed."""
        for what in self._failures.keys() - self._asked:
            del self._failures[what]
        self._asked.clear()
        if not self._failures:
            return None
        return max(min(failure.again for failure in self._failures.values()) - time.monotonic(), 0)
