"""The guest's routes, or its static neighbours, as far as they follow those of the namespace.

What others put into the guest's tables is left alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from tapwright.agent.client import AgentClient
from tapwright.endpoint import discovery
from tapwright.errors import AgentRefusedError
from tapwright.linux.neighbours import Neighbour
from tapwright.linux.routes import Route

_AT_ONCE = 1000
"""Entries in one request, which has a limit (`agent.protocol.MAX_MESSAGE`)."""

Entry = TypeVar("Entry", Route, Neighbour)


class GuestTable(Generic[Entry]):
    """`what` is `routes` or `neighbours`; the options go with each request to change them."""

    def __init__(self, agent: AgentClient, what: str, **options: Any) -> None:
        self.what = what
        self._agent = agent
        self._op = f"change_{what}"
        self._options = options
        self.present: set[Entry] = set()
        """What the guest got from here."""
        self._doubtful: set[int] = set()

    def forget(self, index: int) -> None:
        """The interface of that index has gone from the guest, its entries with it."""
        self.present = {entry for entry in self.present if entry.device != index}
        self._doubtful.discard(index)

    def doubt(self, index: int) -> None:
        """The guest's kernel may have dropped entries of that interface: add them all again."""
        self._doubtful.add(index)

    def wish(self, wanted: Iterable[Entry]) -> object:
        """What `change` would do it for: equal when it is no use to try the same again."""
        return frozenset(wanted), frozenset(self._doubtful)

    async def change(self, wanted: Iterable[Entry], names: Mapping[int, str]) -> None:
        """Make the entries for some interfaces, `names` by index, those wanted, in their order.

        Raises AgentRefusedError when the guest refused some, the others are done then; AgentError
        when it does not answer.
        """
        shall = dict.fromkeys(entry for entry in wanted if entry.device in names)
        remove = [e for e in self.present if e.device in names and e not in shall]
        add = [e for e in shall if e not in self.present or e.device in self._doubtful]
        refused = await self._ask("remove", remove, names, self.present.difference_update)
        # A gateway must be reachable before its route comes.
        add.sort(key=lambda entry: bool(getattr(entry, "gateway", None)))
        refused += await self._ask("add", add, names, self.present.update)
        self._doubtful -= names.keys()
        if refused:
            raise AgentRefusedError(f"{refused[0]} (one of {len(refused)} that were refused)")

    async def _ask(
        self,
        verb: str,
        entries: list[Entry],
        names: Mapping[int, str],
        done: Callable[[list[Entry]], None],
    ) -> list[AgentRefusedError]:
        """Have all of them removed or added; where the guest refuses some, all but those."""
        refused: list[AgentRefusedError] = []
        parts = list(_parts(entries))
        while parts:
            part = parts.pop(0)
            try:
                arguments: dict[str, Any] = {verb: discovery.entries(part, names), **self._options}
                await self._agent.call(self._op, **arguments)
                done(part)
            except AgentRefusedError as error:
                if len(part) == 1:
                    refused.append(error)
                    self.present.difference_update(part)
                else:
                    middle = len(part) // 2
                    parts[:0] = part[:middle], part[middle:]
        return refused


def _parts(entries: list[Entry]) -> Iterator[list[Entry]]:
    for start in range(0, len(entries), _AT_ONCE):
        yield entries[start : start + _AT_ONCE]
