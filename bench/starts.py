#!/usr/bin/env python3
"""From nothing to the first ping, and back to nothing.

    scripts/bench --only starts

In one run and taking turns: the floor; the library in a process that is warm, with and without a
supervisor that was started ahead, and with a spare; the command with a spare; the command beside
another sandbox, whose copy of the template's memory it takes over, and alone, so that it reads that
from the disk; now and then the command without a template. On a CNI bridge network with host-local,
from the fork of the command (or the call) to its exit (or return) and on to the first answered
ping; after each start `sandbox delete`, until nothing is left.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict

from bench import floor
from bench.place import BRIDGE, Place, new_host, say
from bench.remains import interfaces
from bench.samples import Samples, median, rounded
from bench.start import (
    End,
    Start,
    Step,
    by_command,
    by_command_with_spare,
    by_library,
    delete_by_command,
    delete_by_library,
    have_spares,
    neighbour,
)
from tapwright.hypervisor import accelerator, template
from tapwright.hypervisor.machine import Machine, SavedMemory
from tapwright.hypervisor.template_store import Template
from tapwright.sandbox.launching import Launch

_FLOOR_ADDRESS = "10.86.255.{}"  # far from those that are given out
_ROUNDS_PER_COLD = 5
_AHEAD_SECONDS = 0.5  # more than a supervisor takes to load what it can


class Variant(TypedDict):
    """A way to start, in milliseconds: `done` to the command's exit, or the function's return.
    Each of the steps is (name, start, length), the medians."""

    done: Samples
    pinged: Samples
    steps: list[tuple[str, float, float]]


class Deletes(TypedDict):
    """Milliseconds: `gone` until nothing was left."""

    done: Samples
    gone: Samples


class Starts(TypedDict):
    variants: dict[str, Variant]
    deletes: dict[str, Deletes]


class Bare(NamedTuple):
    """What the floor starts: a template whose memory is filled, and held by this process."""

    machine: Machine
    template: Template
    memory: SavedMemory

    def paths(self) -> list[str]:
        return [f"/proc/self/fd/{self.memory.fd}"]

    def enter(self, fd: int) -> None:
        pass  # nobody else is to find it


def measure(place: Place, rounds: int, is_warm: bool = False) -> Starts:
    """Before the rounds there is one for warming up, unless it `is_warm` enough."""
    new_host()
    beside, alone = place.root("beside"), place.root("alone")
    started: dict[str, list[Start]] = {}
    ended: dict[str, list[End]] = {}
    with neighbour(place, beside), bare_template(place) as bare:
        ways = {
            "library": (partial(by_library, place.config(), beside), delete_by_library, beside),
            "ready": (partial(_by_ready_library, place, beside), delete_by_library, beside),
            "command": (partial(by_command, place, beside), delete_by_command, beside),
            "spare_library": (
                partial(_by_library_with_spare, place, beside),
                delete_by_library,
                beside,
            ),
            "spare": (partial(by_command_with_spare, place, beside), delete_by_command, beside),
            "alone": (partial(by_command, place, alone), delete_by_command, alone),
            "cold": (
                partial(by_command, place, alone, configuration=place.cold),
                delete_by_command,
                alone,
            ),
        }
        for number in range(1 if is_warm else 0, rounds + 1):
            if number == 1:
                started, ended = {}, {}
            address = _FLOOR_ADDRESS.format(number + 1)
            started.setdefault("floor", []).append(_start_bare(bare, address))
            for kind, (start, delete, root) in ways.items():
                if kind == "cold" and number % _ROUNDS_PER_COLD != 1:
                    continue
                name, before = f"bench-{kind}-{number}", interfaces()
                started.setdefault(kind, []).append(start(name))
                end = delete(place, root, name, before)
                by = "library" if delete is delete_by_library else "command"
                ended.setdefault(by, []).append(end)
    return {
        "variants": {kind: _variant(starts) for kind, starts in started.items()},
        "deletes": {
            kind: {
                "done": rounded(end.done for end in ends),
                "gone": rounded(end.gone for end in ends),
            }
            for kind, ends in ended.items()
        },
    }


@contextmanager
def bare_template(place: Place) -> Iterator[Bare]:
    """The template that sandboxes start from, its memory filled."""
    spec = place.spec()
    wanted = spec.machine
    chosen, _ = asyncio.run(accelerator.choose(wanted, say))
    machine = replace(wanted, accelerator=chosen)
    found = asyncio.run(
        template.find_or_make(machine, Path(spec.template), 0, spec.boot_timeout, say)
    )
    memory = found.fill()
    try:
        yield Bare(machine, found, SavedMemory(memory, is_complete=True))
    finally:
        os.close(memory)
        found.close()


def _by_ready_library(place: Place, root: str, name: str) -> Start:
    with Launch() as launch:
        time.sleep(_AHEAD_SECONDS)
        return by_library(place.config(), root, name, launch)


def _by_library_with_spare(place: Place, root: str, name: str) -> Start:
    have_spares(root, place.spec(configuration=place.spared))
    return by_library(place.config(place.spared), root, name)


def _start_bare(bare: Bare, address: str) -> Start:
    marks = floor.start(bare.machine, bare.template, bare.memory, BRIDGE, address)
    steps, begun = [], 0.0
    for mark in marks:
        steps.append(Step(mark.name, begun, mark.over - begun))
        begun = mark.over
    return Start(steps[-1].start, begun, steps)


def _variant(starts: list[Start]) -> Variant:
    spans: dict[str, list[Step]] = {}
    for start in starts:
        for step in start.steps:
            spans.setdefault(step.name, []).append(step)
    steps = [
        (name, median(step.start for step in found), median(step.length for step in found))
        for name, found in spans.items()
    ]
    return {
        "done": rounded(start.done for start in starts),
        "pinged": rounded(start.pinged for start in starts),
        "steps": sorted(
            ((name, round(begun, 1), round(length, 1)) for name, begun, length in steps),
            key=lambda step: step[1],
        ),
    }
