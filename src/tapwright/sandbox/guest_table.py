"""The guest's routes, or its static neighbours, as far as they follow those of the namespace.

What others put into the guest's tables is left alone.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from tapwright.agent.client import AgentClient
from tapwright.endpoint import discovery
from tapwright.errors import AgentError
from tapwright.linux.neighbours import Neighbour
from tapwright.linux.routes import Route

_AT_ONCE = 1000
"""Entries in one request, which has a limit (`agent.protocol.MAX_MESSAGE`)."""

Entry = TypeVar("Entry", Route, Neighbour)


class GuestTable(Generic[Entry]):
    """`op` is the agent's request that changes the table; `present` is what it got from here."""

    def __init__(self, agent: AgentClient, op: str) -> None:
        self._agent = agent
        self._op = op
        self.present: set[Entry] = set()

    def forget(self, index: int) -> None:
        """The interface of that index has gone from the guest, its entries with it."""
        self.present = {entry for entry in self.present if entry.device != index}

    async def change(
        self, wanted: Iterable[Entry], names: Mapping[int, str], touched: Collection[int]
    ) -> None:
        """Make the entries for some interfaces, `names` by index, those wanted. Of the `touched`
        ones the guest's kernel may have dropped entries.

        Raises AgentError when the guest refused some; the others are there then.
        """
        shall = {entry for entry in wanted if entry.device in names}
        remove = [e for e in self.present if e.device in names and e not in shall]
        add = [e for e in shall if e not in self.present or e.device in touched]
        for part in _parts(remove):
            await self._agent.call(self._op, remove=discovery.entries(part, names))
            self.present.difference_update(part)
        refused: list[AgentError] = []
        # A gateway must be reachable before its route comes.
        add.sort(key=lambda entry: bool(getattr(entry, "gateway", None)))
        for part in _parts(add):
            await self._add(part, names, refused)
        if refused:
            raise AgentError(f"{refused[0]} (of {len(add)} in all, {len(refused)} were refused)")

    async def _add(
        self, entries: list[Entry], names: Mapping[int, str], refused: list[AgentError]
    ) -> None:
        """Add all; where the guest refuses some, all but those."""
        try:
            await self._agent.call(self._op, add=discovery.entries(entries, names))
        except AgentError as error:
            self.present.difference_update(entries)
            if len(entries) == 1:
                refused.append(error)
                return
            middle = len(entries) // 2
            for half in (entries[:middle], entries[middle:]):
                await self._add(half, names, refused)
        else:
            self.present.update(entries)


def _parts(entries: list[Entry]) -> Iterator[list[Entry]]:
    for start in range(0, len(entries), _AT_ONCE):
        yield entries[start : start + _AT_ONCE]
