#!/usr/bin/env python3
"""One more start with many sandboxes present, and many starts at once.

    scripts/bench --only crowd

With 0, 1, 10 and MOST sandboxes present, and on the way back again: how busy the machine is while
all of them are idle, and the start of one more, to the first ping, by the command, by the command
with a spare, and by the library. With MOST of them all are pinged; at the end nothing may be left.
Then starts per second: BATCH sandboxes by the command, some of them at once, until all have
answered a ping; and more of them, two at once, with and without a spare, of which each start makes
the next.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypedDict

from bench.ping import first_ping
from bench.place import Place, new_host, output
from bench.remains import interfaces
from bench.samples import Samples, rounded
from bench.start import (
    by_command,
    by_command_with_spare,
    by_library,
    delete_by_command,
    delete_by_library,
    have_spares,
    neighbour,
)
from tapwright.linux import netns
from tapwright.sandbox import spares
from tapwright.state import registry

_AT_ONCE = 2
"""How many are started at a time to make the crowd."""

_ANSWER_SECONDS = 5.0
_IDLE_SECONDS = 3.0


class Level(TypedDict):
    """Milliseconds to the first ping with `present` sandboxes there already. `busy` is how much of
    one processor the machine uses before, when all of them are idle: 1.0 is all of it."""

    present: int
    busy: Samples
    command: Samples
    spare: Samples
    library: Samples


class Together(TypedDict):
    """Starts per second, with `at_once` of them at a time; a sample for each batch."""

    at_once: int
    per_second: Samples


class Sustained(TypedDict):
    """Starts per second of many, two at once, without spares and with one at a time; a sample for
    each batch."""

    count: int
    without: Samples
    spare: Samples


class Crowd(TypedDict):
    """Of `most` sandboxes how many answered a ping, all there at once; `left` is what there was of
    them after their deletion; `delete` milliseconds for each of many, deleted by one command."""

    levels: list[Level]
    most: int
    answered: int
    left: list[str]
    delete: float
    batch: int
    together: list[Together]
    sustained: Sustained


def measure(
    place: Place,
    levels: Sequence[int],
    rounds: int,
    batch: int,
    at_once: Sequence[int],
    many: int,
    and_back: bool = True,
) -> Crowd:
    """The levels `and_back` again: each is come by twice."""
    new_host()
    root = place.root("crowd")
    with neighbour(place, place.root("first")):
        pass  # makes template and bridge
    before = interfaces()
    found: dict[int, Level] = {
        present: {"present": present, "busy": [], "command": [], "spare": [], "library": []}
        for present in levels
    }
    for present in levels:
        _grow(place, root, present)
        _measure(place, root, found[present], rounds)
    most = levels[-1]
    again = rounds if and_back else 0
    _measure(place, root, found[most], again)  # the others are come by twice
    answered = sum(map(_answers, _addresses(root)))
    took = 0.0
    for present in reversed(levels[:-1]):
        took += _shrink(place, root, present)
        _measure(place, root, found[present], again)
    left = _left(place, root, before)
    return {
        "levels": list(found.values()),
        "most": most,
        "answered": answered,
        "left": left,
        "delete": round(took / (most - levels[0]), 1),
        "batch": batch,
        "together": _together(place, root, batch, at_once, max(rounds // 2, 1)),
        "sustained": _sustained(place, root, many, max(rounds // 2, 1)),
    }


def _measure(place: Place, root: str, level: Level, rounds: int) -> None:
    if rounds:
        level["busy"].append(_busy())
    for number in range(rounds):
        before = interfaces()
        level["command"].append(round(by_command(place, root, "bench-one").pinged, 2))
        delete_by_command(place, root, "bench-one", before)
        # Its spares are not beside it in the other two.
        level["spare"].append(round(by_command_with_spare(place, root, "bench-spare").pinged, 2))
        spares.drop(root)
        delete_by_command(place, root, "bench-spare", before)
        name = f"bench-lib-{number}"
        level["library"].append(round(by_library(place.config(), root, name).pinged, 2))
        delete_by_library(place, root, name, before)


def _busy() -> float:
    """How much of one processor this machine uses, over a while."""
    used = _used_seconds()
    time.sleep(_IDLE_SECONDS)
    return round((_used_seconds() - used) / _IDLE_SECONDS, 3)


def _used_seconds() -> float:
    """Of all processors together, since the boot (proc(5), /proc/stat: user, nice, system, then
    idle and iowait, then irq, softirq and steal)."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    ticks = [int(word) for word in line.split()[1:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _grow(place: Place, root: str, present: int) -> None:
    names = [f"bench-c{number:03}" for number in range(len(registry.listing(root)), present)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(partial(by_command, place, root), names))


def _shrink(place: Place, root: str, present: int) -> float:
    """Return how many milliseconds it took."""
    names = [sandbox.id for sandbox in registry.listing(root)][present:]
    begun = time.monotonic()
    _delete(place, root, names)
    return (time.monotonic() - begun) * 1e3


def _delete(place: Place, root: str, names: Sequence[str]) -> None:
    command = place.command(root, "sandbox", "delete", *names)
    output(command)


def _addresses(root: str) -> list[str]:
    records = [sandbox.record for sandbox in registry.listing(root)]
    return [record.interfaces[0].addresses[0].split("/")[0] for record in records if record]


def _answers(address: str) -> bool:
    try:
        first_ping(address, _ANSWER_SECONDS)
    except TimeoutError:
        return False
    return True


def _left(place: Place, root: str, before: frozenset[int]) -> list[str]:
    """What there is of the sandboxes. The kernel takes interfaces away in its own time."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while interfaces() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    return [
        *(f"interface {index}" for index in interfaces() - before),
        *(f"sandbox {sandbox.id}" for sandbox in registry.listing(root)),
        *(f"lease {path.name}" for path in place.leases.rglob("10.*")),
        *(
            f"namespace {n}"
            for n in os.listdir(netns.DIRECTORY)
            if n.startswith("tapwright-bench-")
        ),
    ]


def _together(
    place: Place, root: str, batch: int, at_once: Sequence[int], rounds: int
) -> list[Together]:
    found: list[Together] = [{"at_once": count, "per_second": []} for count in at_once]
    with neighbour(place, root):
        for number in range(rounds):
            for entry in found:
                label = f"{number}-{entry['at_once']}"
                rate = _rate(place, root, label, batch, entry["at_once"], place.usual)
                entry["per_second"].append(rate)
    return [
        {"at_once": entry["at_once"], "per_second": rounded(entry["per_second"])} for entry in found
    ]


def _sustained(place: Place, root: str, count: int, rounds: int) -> Sustained:
    without, spare = [], []
    with neighbour(place, root):
        for number in range(rounds):
            without.append(_rate(place, root, f"{number}-u", count, _AT_ONCE, place.usual))
            have_spares(root, place.spec(configuration=place.spared), count=1)
            spare.append(_rate(place, root, f"{number}-s", count, _AT_ONCE, place.spared))
            spares.drop(root)
    return {"count": count, "without": rounded(without), "spare": rounded(spare)}


def _rate(
    place: Place, root: str, label: str, count: int, at_once: int, configuration: Path
) -> float:
    """Starts per second."""
    names = [f"bench-t{label}-{one}" for one in range(count)]
    start = partial(by_command, place, root, configuration=configuration)
    begun = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(start, names))
    rate = count / (time.monotonic() - begun)
    _delete(place, root, names)
    return rate
