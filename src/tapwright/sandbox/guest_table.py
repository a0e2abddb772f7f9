"""The guest's routes, or its static neighbours, as far as they follow those of the namespace.

What others put into the guest's tables is left alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
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
    """`what` is `routes` or `neighbours`; the options go with each request to change them. Where
    the order of entries matters, `alternatives` is what is the same for those that it matters
    for."""

    def __init__(
        self,
        agent: AgentClient,
        what: str,
        alternatives: Callable[[Entry], object] | None = None,
        **options: Any,
    ) -> None:
        self.what = what
        self._agent = agent
        self._op = f"change_{what}"
        self._alternatives: Callable[[Entry], object] | None = alternatives
        self._options = options
        self.present: dict[Entry, None] = {}
        """What the guest got from here, in the order of its coming."""
        self._doubtful: set[int] = set()

    def forget(self, index: int) -> None:
        """The interface of that index has gone from the guest, its entries with it."""
        self.present = {entry: None for entry in self.present if entry.device != index}
        self._doubtful.discard(index)

    def doubt(self, index: int) -> None:
        """The guest's kernel may have dropped entries of that interface: add them all again."""
        self._doubtful.add(index)

    def wish(self, wanted: Iterable[Entry]) -> object:
        """What `change` would do it for: equal when it is no use to try the same again."""
        return tuple(wanted), frozenset(self._doubtful)

    async def change(self, wanted: Iterable[Entry], names: Mapping[int, str]) -> None:
        """Make the entries for some interfaces, `names` by index, those wanted, in their order.

        Raises AgentRefusedError when the guest refused some, the others are done then; AgentError
        when it does not answer.
        """
        shall = dict.fromkeys(entry for entry in wanted if entry.device in names)
        # A gateway must be reachable before its route comes.
        shall = dict.fromkeys(sorted(shall, key=lambda e: bool(getattr(e, "gateway", None))))
        remove = [e for e in self.present if e.device in names and e not in shall]
        unsure = {entry for entry in self.present if entry.device in self._doubtful}
        add = [e for e in shall if e not in self.present or e in unsure]
        refused = await self._ask("remove", remove, names, self._removed)
        refused += await self._ask("add", add, names, self._added)
        if self._alternatives:
            late = self._late(shall, unsure, self._alternatives)
            refused += await self._ask("remove", late, names, self._removed)
            refused += await self._ask("add", late, names, self._added)
        self._doubtful -= names.keys()
        if refused:
            raise AgentRefusedError(f"{refused[0]} (one of {len(refused)} that were refused)")

    def _late(
        self, shall: Iterable[Entry], unsure: Set[Entry], key: Callable[[Entry], object]
    ) -> list[Entry]:
        """Those that are before others in the guest which shall be before them; in the order in
        which they shall be. Of the `unsure` nobody knows where they are."""
        wanted = _grouped(filter(self.present.__contains__, shall), key)
        there = _grouped(self.present, key)
        late: list[Entry] = []
        for group, entries in wanted.items():
            known = [entry for entry in there[group] if entry in entries]
            if len(entries) > 1 and not unsure.isdisjoint(entries):
                late += entries
            else:
                late += entries[_same_beginning(known, entries) :]
        return late

    def _removed(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.present.pop(entry, None)

    def _added(self, entries: Iterable[Entry]) -> None:
        self.present |= dict.fromkeys(entries)

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
                    self._removed(part)
                else:
                    middle = len(part) // 2
                    parts[:0] = part[:middle], part[middle:]
        return refused


def _grouped(entries: Iterable[Entry], key: Callable[[Entry], object]) -> dict[object, list[Entry]]:
    found: dict[object, list[Entry]] = {}
    for entry in entries:
        found.setdefault(key(entry), []).append(entry)
    return found


def _same_beginning(one: list[Entry], other: list[Entry]) -> int:
    """How many entries at their beginnings are the same."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((number for number, (a, b) in pairs if a != b), len(one))


def _parts(entries: list[Entry]) -> Iterator[list[Entry]]:
    for start in range(0, len(entries), _AT_ONCE):
        yield entries[start : start + _AT_ONCE]
