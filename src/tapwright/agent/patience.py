"""The limit on messages of a guest that no request asked for: so many at once, and so many a
second."""

import time


class Patience:
    """`at_once`, and so much more with each second: `a_second`."""

    def __init__(self, at_once: float, a_second: float) -> None:
        self._most = self._left = at_once
        self._a_second = a_second
        self._seen = time.monotonic()

    def spend(self, amount: float) -> float:
        """Take some of it; return the seconds after which there is some again, 0 while there is."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._seen) * self._a_second) - amount
        self._seen = now
        return max(0.0, -self._left / self._a_second)
