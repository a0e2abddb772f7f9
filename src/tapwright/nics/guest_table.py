"""The guest's routes, rules, next hops and static neighbours, as far as they follow those of the
namespace.

What others put into the guest's tables is left alone.
"""

import binascii
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set

from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.errors import AgentError, AgentRefusedError
from tapwright.linux import entries
from tapwright.linux.entries import Entry

_AT_ONCE = 2000
"""Entries in one request: while the agent does them it does nothing else."""
_SECONDS = 60.0
_MOST_ERRNO, _MOST_CHARACTERS = 4095, 200
"""Of a refusal: MAX_ERRNO of Linux (include/linux/err.h), and what is logged of its words."""

Indexes = Mapping[int, int]
"""Of interfaces in the guest, by those in the namespace."""

Steps = Sequence[tuple[Entry, bool]]
"""Entries to be removed (with True) or added."""


class GuestTable:
    """All of them, in whichever table they are."""

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent
        self.present: dict[Entry, None] = {}
        """What the guest got from here, in the order of its coming."""
        self._doubtful: set[int] = set()
        self._doubtful_routes: set[int] = set()
        # Of `present`, those that the guest refused to take again: it may have them.
        self._uncertain: set[Entry] = set()

    def forget(self, index: int) -> None:
        """The interface of that index has gone from the guest, its entries with it."""
        self.present = {entry: None for entry in self.present if index not in entry.devices}
        self._doubtful.discard(index)
        self._doubtful_routes.discard(index)
        self._uncertain.intersection_update(self.present)

    def doubt(self, index: int, routes_alone: bool = False) -> None:
        """The guest's kernel may have dropped entries, or routes, of that interface: add them all
        again."""
        (self._doubtful_routes if routes_alone else self._doubtful).add(index)

    def doubt_source(self, addresses: Set[bytes]) -> None:
        """Doubt the routes whose source is one of the (packed) addresses, which an interface has
        lost."""
        for entry in self.present:
            if entry.kind == entries.ROUTE and entries.route_facts(entry).source in addresses:
                self._doubtful_routes.update(entry.devices)

    def wish(self, wanted: Iterable[Entry]) -> object:
        """The state that `change` would try to reach: when it is equal to that of a failure, the
        same attempt would fail again."""
        return tuple(wanted), frozenset(self._doubtful), frozenset(self._doubtful_routes)

    async def change(
        self,
        wanted: Iterable[Entry],
        indexes: Indexes,
        has_source: Callable[[Entry], bool] = lambda _: False,
    ) -> None:
        """Make the entries of some interfaces those wanted, in their order. `has_source` says of a
        route whether its interface has the address that is its source.

        Raises AgentRefusedError when the guest refused some, the others are done then; AgentError
        when it does not answer.
        """
        shall = dict.fromkeys(entries.of_devices(wanted, indexes))
        shall = dict.fromkeys(sorted(shall, key=entries.rank))
        # What takes the place of another needs no removal of that.
        taken = {entries.identity(entry) for entry in shall}
        # With an address that has gone went the route that was not to be. Where the address is
        # still there, the namespace has the route again, and the guest may lack it.
        self._removed(
            [
                e
                for e in self.present
                if e.absent and e not in shall and self._is_doubtful(e) and not has_source(e)
            ]
        )
        remove = [e for e in self.present if e not in shall and entries.identity(e) not in taken]
        replaced = [e for e in self.present if e not in shall and entries.identity(e) in taken]
        unsure = set(filter(self._is_doubtful, self.present)) | self._uncertain
        add = [e for e in shall if e not in self.present or e in unsure]
        remove.sort(key=entries.rank, reverse=True)
        refused = await self._ask([(e, True) for e in remove] + [(e, False) for e in add], indexes)
        self._removed(replaced)
        if late := [*self._late(shall, unsure)]:
            steps = [(e, True) for e in late] + [(e, False) for e in late]
            refused += await self._ask(steps, indexes)
        self._doubtful -= indexes.keys()
        self._doubtful_routes -= indexes.keys()
        if refused:
            raise AgentRefusedError(
                f"the guest's kernel refused {refused[0]}"
                + (f" (one of {len(refused)} that were refused)" if len(refused) > 1 else "")
            )

    def _is_doubtful(self, entry: Entry) -> bool:
        doubtful = self._doubtful
        if entry.kind == entries.ROUTE:
            doubtful = doubtful | self._doubtful_routes
        return not doubtful.isdisjoint(entry.devices)

    def _late(self, shall: Iterable[Entry], unsure: Set[Entry]) -> Iterator[Entry]:
        """Entries that stand in the guest before entries that they must follow, in the wanted
        order. Entries that are `unsure` may stand anywhere."""
        if not unsure and all(map(operator.eq, self.present, shall)):
            return  # many came at once, into a table where nothing was
        for order in (_place_of_route, _place_of_rule):
            wanted = _grouped(filter(self.present.__contains__, shall), order)
            several = {group: found for group, found in wanted.items() if len(found) > 1}
            if not several:
                continue
            there = _grouped(self.present, order)
            for group, found in several.items():
                known = [entry for entry in there[group] if entry in found]
                if not unsure.isdisjoint(found):
                    yield from found
                else:
                    yield from found[_same_beginning(known, found) :]

    def _removed(self, some: Iterable[Entry]) -> None:
        for entry in some:
            self.present.pop(entry, None)
            self._uncertain.discard(entry)

    async def _ask(self, steps: Steps, indexes: Indexes) -> list[str]:
        """Remove (with True) or add each of the entries; return what was refused, in words."""
        known = {entries.LOOPBACK: entries.LOOPBACK, **indexes}
        refused: list[str] = []
        for start in range(0, len(steps), _AT_ONCE):
            part = steps[start : start + _AT_ONCE]
            failed = {
                number: f"{entry}: its attribute {unknown} is not known"
                for number, (entry, remove) in enumerate(part)
                if not remove and (unknown := entries.unknown_selector(entry))
            }
            codes = await self._replay(part, known, failed)
            unreachable = [
                number
                for number, code in codes.items()
                if code in entries.UNREACHABLE and not part[number][1]
            ]
            await self._reach(part, unreachable, known, failed)
            for number, (entry, remove) in enumerate(part):
                # A route with several hops stays while one of their interfaces is down, but could
                # not be added then.
                is_uncertain = number in failed and not remove and entry in self.present
                self._uncertain.discard(entry)
                self.present.pop(entry, None)
                if is_uncertain:
                    self._uncertain.add(entry)
                if is_uncertain or not (remove or number in failed):
                    self.present[entry] = None
            refused += failed.values()
        return refused

    async def _reach(
        self, part: Steps, numbers: Sequence[int], known: Indexes, failed: dict[int, str]
    ) -> None:
        """Add entries that were refused because nothing leads to their gateways any more. The
        namespace got them while there was a way; so this adds a way, then the entries, and removes
        the way. Entries that this adds, and those that go through them, have not `failed`.
        """
        lost = [n for n in numbers if part[n][0].kind in (entries.ROUTE, entries.NEXTHOP)]
        places = dict.fromkeys(place for n in lost for place in entries.gateways(part[n][0]))
        if not places:
            return
        ways = [entries.way_to(*place) for place in places]
        steps = [(way, False) for way in ways] + [(part[n][0], False) for n in lost]
        still: dict[int, str] = {}
        await self._replay([*steps, *((way, True) for way in ways)], known, still)
        for place, number in enumerate(lost, start=len(ways)):
            if place not in still:
                del failed[number]

    async def _replay(self, part: Steps, known: Indexes, failed: dict[int, str]) -> dict[int, int]:
        """Do the steps that have not `failed` yet. Add to `failed` why the guest refuses a step,
        and return the errnos; both by the number of the step."""
        messages = b"".join(
            entries.message(entry, number, known, remove)
            for number, (entry, remove) in enumerate(part)
            # What was on another interface has gone with it.
            if number not in failed and known.keys() >= set(entry.devices)
        )
        if not messages:
            return {}
        text = binascii.b2a_base64(messages, newline=False).decode()
        answer = await self._agent.call(requests.replay(text), _SECONDS)
        codes = {}
        for number, code, words in _refusals(answer.get("refused", []), len(part)):
            entry, remove = part[number]
            if entries.is_failure(entry, code, remove):
                failed[number] = entries.refusal(entry, code, words)
                codes[number] = code
        return codes


def _refusals(answer: object, count: int) -> Iterator[tuple[int, int, str]]:
    """(number, errno, words) of each. Raises AgentError when the guest's answer is none."""
    for refusal in answer if isinstance(answer, list) else [None]:
        match refusal:
            case [int(number), int(code), str(words)] if (
                0 <= number < count and 0 <= code <= _MOST_ERRNO
            ):
                yield number, code, words[:_MOST_CHARACTERS]
            case _:
                raise AgentError("the agent's answer to replay has no proper list of refusals")


def _place_of_route(entry: Entry) -> Hashable:
    if entry.kind == entries.ROUTE and not entry.absent:
        return entries.route_key(entry)
    return None


def _place_of_rule(entry: Entry) -> Hashable:
    if entry.kind == entries.RULE and not entry.absent:
        return entries.rule_key(entry)
    return None


def _grouped(
    found: Iterable[Entry], key: Callable[[Entry], Hashable]
) -> dict[Hashable, list[Entry]]:
    groups: dict[Hashable, list[Entry]] = {}
    for entry in found:
        if place := key(entry):
            groups.setdefault(place, []).append(entry)
    return groups


def _same_beginning(one: list[Entry], other: list[Entry]) -> int:
    """How many entries at their beginnings are the same."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((number for number, (a, b) in pairs if a != b), len(one))
