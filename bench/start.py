"""One start of a sandbox, by the command or by the library, and its end; with their times."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench.ping import first_ping
from bench.place import NETWORK, Place, output
from bench.remains import remains
from bench.samples import Milliseconds
from tapwright.config import Config
from tapwright.sandbox import lifecycle, spares
from tapwright.sandbox.launching import Launch
from tapwright.sandbox.planning import Wish, plan
from tapwright.state import registry
from tapwright.state.record import Record, Spec

_SPARE_SECONDS, _SPARE_PAUSE = 60.0, 0.5
_WISH = Wish(networks=[(NETWORK, "")])


class Step(NamedTuple):
    """A part of a start; milliseconds, counted from its beginning."""

    name: str
    start: Milliseconds
    length: Milliseconds


class Start(NamedTuple):
    """A start: to the command's exit (the function's return), and to the first answered ping."""

    done: Milliseconds
    pinged: Milliseconds
    steps: list[Step]


class End(NamedTuple):
    """A `delete`: to the command's exit (the function's return), and until nothing was left."""

    done: Milliseconds
    gone: Milliseconds


def by_command(place: Place, root: str, name: str, configuration: Path | None = None) -> Start:
    words = ("sandbox", "run", name, "--network", NETWORK, "--json")
    command = place.command(root, *words, configuration=configuration)
    begun = time.monotonic()
    answer = output(command)
    done = time.monotonic()
    (nic,) = json.loads(answer)["interfaces"]
    pinged = first_ping(_address(nic["addresses"]))
    record = registry.find(root, name).record
    assert record is not None  # noqa: S101 - it runs
    start = _start(begun, done, pinged, record)
    return start._replace(steps=[Step("command", 0, (record.started - begun) * 1e3), *start.steps])


def by_command_with_spare(place: Place, root: str, name: str) -> Start:
    have_spares(root, place.spec(configuration=place.spared))
    return by_command(place, root, name, place.spared)


def by_library(config: Config, root: str, name: str, launch: Launch | None = None) -> Start:
    """In this process, which has imported everything, and may have started a supervisor ahead."""
    begun = time.monotonic()
    spec = plan(config, _WISH, lambda text: None)
    record = lifecycle.run(root, name, spec, started=begun, launch=launch)
    done = time.monotonic()
    pinged = first_ping(_address(record.interfaces[0].addresses))
    return _start(begun, done, pinged, record)


def delete_by_command(place: Place, root: str, name: str, before: frozenset[int]) -> End:
    """`before` are the interfaces from before the sandbox was there."""
    left = remains(place, root, name, before)
    command = place.command(root, "sandbox", "delete", name)
    begun = time.monotonic()
    output(command)
    return _end(begun, time.monotonic(), left.gone())


def delete_by_library(place: Place, root: str, name: str, before: frozenset[int]) -> End:
    """In this process; `before` as above."""
    left = remains(place, root, name, before)
    begun = time.monotonic()
    lifecycle.delete(root, name)
    return _end(begun, time.monotonic(), left.gone())


def have_spares(root: str, spec: Spec, count: int = 2) -> None:
    """By default one to take, and one that stays, so that none is made while another is taken.
    Raises TimeoutError."""
    spec = replace(spec, spares=count)
    deadline = time.monotonic() + _SPARE_SECONDS
    while sum(spare.is_ready for spare in spares.listing(root)) < count:
        if len(spares.listing(root)) < count:
            spares.begin(root, spec, at_once=True)
        if time.monotonic() > deadline:
            raise TimeoutError(f"no spare: {spares.last_failure(root)}")
        time.sleep(_SPARE_PAUSE)


@contextmanager
def neighbour(place: Place, root: str) -> Iterator[None]:
    """A sandbox beside the ones that are started: others take the template's memory over from it.
    The template and the network's bridge are there from then on."""
    by_command(place, root, "bench-beside")
    try:
        yield
    finally:
        lifecycle.delete(root, "bench-beside")


def _start(begun: float, done: float, pinged: float, record: Record) -> Start:
    # Its phases are counted from where the command itself began to count.
    before = (record.started - begun) * 1e3
    steps = [Step(p.name, before + p.start_ms, p.duration_ms) for p in record.phases]
    return Start((done - begun) * 1e3, (pinged - begun) * 1e3, steps)


def _end(begun: float, done: float, gone: float) -> End:
    return End((done - begun) * 1e3, (gone - begun) * 1e3)


def _address(given: list[str]) -> str:
    """The IPv4 address of a NIC."""
    return next(text.split("/")[0] for text in given if ":" not in text)
