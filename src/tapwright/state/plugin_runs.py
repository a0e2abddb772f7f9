"""Adds up how long the CNI plugins of sandboxes ran: ROOT/plugin-runs.json.

Supervisors and `delete` are many processes, most of them short-lived, so the sums are in a file,
under a lock (flock(2)). They are for metrics: a sum that can't be written is lost, and no process
waits for the disk. The file has an entry for each plugin, command and result, and a bound.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapwright import cni, shapes
from tapwright.linux import filelock, files
from tapwright.linux.files import closing

FILE, _LOCK = "plugin-runs.json", "plugin-runs.lock"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, math.inf)
"""In seconds. Each run is counted at the least bound that it did not exceed."""
SUCCESS, FAILURE = "success", "failure"

_MOST_ENTRIES = 200
_LOCK_SECONDS = 1.0
_SHAPE = {"plugin": str, "command": str, "result": str, "counts": list[int], "seconds": float}

_log = logging.getLogger(__name__)

Trace = Callable[[cni.Run], None]


@dataclass
class Runs:
    """The runs of one kind. `counts` has, for each of `BOUNDS`, how many took no longer than it,
    and longer than the bound before; `seconds` is the sum of all."""

    plugin: str
    command: str
    result: str
    counts: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    seconds: float = 0.0

    @property
    def cumulative(self) -> Mapping[float, int]:
        """Return how many runs took no longer than each bound."""
        return {bound: sum(self.counts[: at + 1]) for at, bound in enumerate(BOUNDS)}


@contextlib.contextmanager
def noted(root: str | Path) -> Iterator[Trace]:
    """Yield a trace for `cni.Runtime`. At the end of the block, also after an exception, its runs
    are added to the file."""
    seen: list[cni.Run] = []
    try:
        yield seen.append
    finally:
        try:
            if seen:
                _add(Path(root), seen)
        except OSError as error:
            _log.warning("%s can't be written: %s", Path(root, FILE), error.strerror)


def read(root: str | Path) -> list[Runs]:
    """Return all noted runs; none if there is no file, or an invalid one."""
    try:
        content = json.loads(Path(root, FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return []
    entries = content if isinstance(content, list) else []
    return [Runs(**entry) for entry in entries[:_MOST_ENTRIES] if _is_sound(entry)]


def _is_sound(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == _SHAPE.keys()
        and not shapes.mistake(entry, _SHAPE)
        and len(entry["counts"]) == len(BOUNDS)
    )


def _add(root: Path, seen: list[cni.Run]) -> None:
    """Raises OSError."""
    with closing(os.open(root / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)) as fd:
        if not filelock.locked_within(fd, _LOCK_SECONDS):
            return  # numbers may be lost; no start or end may wait for them
        known = {(runs.plugin, runs.command, runs.result): runs for runs in read(root)}
        for run in seen:
            key = run.plugin, run.command, FAILURE if run.problem else SUCCESS
            if key not in known and len(known) >= _MOST_ENTRIES:
                continue
            runs = known.setdefault(key, Runs(*key))
            runs.counts[next(at for at, bound in enumerate(BOUNDS) if run.seconds <= bound)] += 1
            runs.seconds += run.seconds
        text = json.dumps([vars(runs) for runs in known.values()])
        files.replace(root / FILE, text, synced=False)
