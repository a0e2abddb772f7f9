"""Numbers of a running sandbox, for metrics: the guest's own, and the supervisor's count of the
network monitor's requests. The reader must check the guest's numbers."""

import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.errors import AgentError

MOST_SECONDS = 10.0

Operation = Callable[..., Awaitable[Any]]


class Totals:
    """`totals` returns `monitor`, and `guest`, which is empty where `guest_failure` says why."""

    def __init__(self, agent: AgentClient, restarts: Callable[[], int]) -> None:
        self._agent = agent
        self._restarts = restarts
        self._syncs = self._failures = 0
        self._seconds = 0.0

    def by_name(self) -> dict[str, Operation]:
        return {"totals": self.totals}

    def counted(self, sync: Operation) -> Operation:
        """Count the monitor's requests `sync`, their failures and their time."""

        @functools.wraps(sync)
        async def counting(**arguments: Any) -> Any:
            started = time.monotonic()
            self._syncs += 1
            try:
                return await sync(**arguments)
            except BaseException:
                self._failures += 1
                raise
            finally:
                self._seconds += time.monotonic() - started

        return counting

    async def totals(self, seconds: Any = 1.0) -> dict[str, Any]:
        """The guest has so many `seconds` to answer."""
        timeout = min(float(seconds), MOST_SECONDS)
        found: dict[str, Any] = {"guest": {}, "guest_failure": ""}
        try:
            found["guest"] = await self._agent.call(requests.totals(), timeout)
        except AgentError as error:
            found["guest_failure"] = str(error)
        monitor = {
            "syncs": self._syncs,
            "failures": self._failures,
            "seconds": self._seconds,
            "restarts": self._restarts(),
        }
        return {**found, "monitor": monitor}
