"""All measurements in one run, and the page that is made of them: `scripts/bench`."""

import argparse
import asyncio
import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import (
    carrying,
    cni,
    command_start,
    crowd,
    endpoints,
    hotplug,
    machine,
    memory,
    netmon,
    platforms,
    pods,
    report,
    scrape,
    soak,
    starts,
)
from bench.endpoints import Traffic
from bench.place import Place, private, say
from tapwright.hypervisor import accelerator

Part = Callable[[Place], Any]

DATA = "performance.json"

_REPOSITORY = Path(__file__).parents[1]

# The quiet ones first, while the machine has been idle.
FULL: dict[str, Part] = {
    "command_start": lambda place: command_start.measure(rounds=40),
    "starts": lambda place: starts.measure(place, rounds=20),
    "memory": lambda place: memory.measure(place, beside=10),
    "scrape": lambda place: scrape.measure(place, many=50, rounds=20),
    "crowd": lambda place: crowd.measure(
        place, levels=(0, 1, 10, 50), rounds=4, batch=8, at_once=(1, 2, 4), many=20
    ),
    "platforms": lambda place: platforms.measure(place, rounds=10, mib=256),
    "pods": lambda place: pods.measure(place, rounds=10),
    "hotplug": lambda place: hotplug.measure(place, rounds=30),
    "netmon": lambda place: netmon.measure(place, rounds=30, changes=1000, idle_seconds=10),
    "carrying": lambda place: carrying.measure(place, changes=1000, many=10_000, too_many=100_000),
    "cni": lambda place: cni.measure(rounds=30, attachments=60),
    "endpoints": lambda place: endpoints.measure(place, rounds=3, traffic=Traffic()),
}
QUICK: dict[str, Part] = {
    "command_start": lambda place: command_start.measure(rounds=3),
    "starts": lambda place: starts.measure(place, rounds=1, is_warm=True),
    "memory": lambda place: memory.measure(place, beside=1),
    "scrape": lambda place: scrape.measure(place, many=2, rounds=1),
    "crowd": lambda place: crowd.measure(
        place, levels=(0, 1), rounds=1, batch=2, at_once=(2,), many=2, and_back=False
    ),
    "platforms": lambda place: platforms.measure(place, rounds=1, mib=8, is_warm=True),
    "pods": lambda place: pods.measure(place, rounds=1, is_warm=True),
    "hotplug": lambda place: hotplug.measure(place, rounds=1),
    "netmon": lambda place: netmon.measure(place, rounds=1, changes=100, idle_seconds=0.5),
    "carrying": lambda place: carrying.measure(place, changes=100, many=100, too_many=33_000),
    "cni": lambda place: cni.measure(rounds=1, attachments=4),
    "endpoints": lambda place: endpoints.measure(
        place, rounds=1, traffic=Traffic(0.1, 10), rows=endpoints.ROWS[:1]
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    is_part = (arguments.quick or arguments.only) and not arguments.replace
    output = arguments.output or _REPOSITORY / ("build/bench" if is_part else "docs")
    if arguments.data:
        write(json.loads(arguments.data.read_text()), output)
        return 0
    if os.geteuid() != 0:
        say("it makes namespaces, TAPs and virtual machines: run it as root")
        return 1
    parts = QUICK if arguments.quick else FULL
    # Told to end, take everything back.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    wanted = {name: parts[name] for name in arguments.only or parts}
    data = measure(wanted, arguments.quick, arguments.templates)
    if arguments.replace:
        data = replaced(json.loads((output / DATA).read_text()), data)
    write(data, output)
    for aim in report.aims(data):
        say(f"{'met    ' if aim.is_met else 'NOT MET'} {aim.what}: {aim.measured:.2f} {aim.unit}")
    return 0


def measure(parts: dict[str, Part], is_quick: bool, templates: Path | None) -> report.Data:
    """Run the parts one after another."""
    begun = time.monotonic()
    with private(templates) as place:
        spec = place.spec()
        chosen, _ = asyncio.run(accelerator.choose(spec.machine, say))
        data: report.Data = {"machine": machine.describe(spec.machine.qemu, chosen)}
        for name, part in parts.items():
            started = time.monotonic()
            data[name] = part(place)
            say(f"{name}: {time.monotonic() - started:.0f} s")
    data["run"] = {"quick": is_quick, "seconds": round(time.monotonic() - begun)}
    return data


def replaced(older: report.Data, newer: report.Data) -> report.Data:
    """A run of all parts, of which some come from a newer run; the page names these. Ends the
    program when the two were not on the same machine."""
    if older["machine"] != newer["machine"]:
        sys.exit(f"the older parts are of another machine: {older['machine']}")
    parts = {name: newer[name] for name in FULL if name in newer}
    later = older["run"].get("later", {}) | dict.fromkeys(parts, datetime.date.today().isoformat())
    whole = older | parts | {"run": {**older["run"], "later": later}}
    return {name: whole[name] for name in ("machine", *FULL, "run") if name in whole}


def write(data: report.Data, directory: Path) -> None:
    """performance.json, and performance.md with its pictures."""
    beside = directory / "performance"
    beside.mkdir(parents=True, exist_ok=True)
    # A line for each part, so that what has changed can be seen.
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    (directory / DATA).write_text(f"{{\n{lines}\n}}\n")
    # Of a run of its own, which no run of the others takes away.
    soaked = beside / soak.RESULT
    parts = data | ({"soak": json.loads(soaked.read_text())} if soaked.exists() else {})
    (directory / "performance.md").write_text(report.markdown(parts))
    for name, svg in report.pictures(data).items():
        (beside / name).write_text(svg)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure what Tapwright costs on this host, and write performance.md, its "
        "pictures and its data. Takes several minutes; needs a machine that does nothing else.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few samples of everything: to see that it works"
    )
    parser.add_argument(
        "--only", metavar="PART", action="append", choices=FULL, help="this part (repeatable)"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="where to write (default: docs; what is not a whole run, build/bench)",
    )
    parser.add_argument(
        "--templates",
        metavar="DIR",
        type=Path,
        help="start guests from the templates there (default: from new ones)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="put the parts of --only in the place of the older ones of a whole run",
    )
    parser.add_argument(
        "--data", metavar="FILE", type=Path, help="write the page of a performance.json; no run"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
