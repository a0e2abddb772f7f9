"""How long a torture goes on, by which seed, and how it reports."""

import datetime
import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SECONDS, SEED, RESULTS = "TORTURE_SECONDS", "TORTURE_SEED", "TORTURE_RESULTS"
"""Variables of the environment: how long each test goes on, by which number all that is drawn is
drawn, and the file to which each adds a line of JSON."""


class Bound:
    """One test's. `random` draws what is drawn; the reported seed repeats a failure."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.is_whole = SECONDS in os.environ
        self.seed = int(os.environ.get(SEED, "0"))
        self.random = random.Random(f"{self.seed} {name}")  # noqa: S311 - no secret
        self.tries = 0
        self._started = time.monotonic()

    def goes_on(self, short: int, whole: int = 0) -> Iterator[int]:
        """The numbers of the tries: a `short` count of them, or as many as there is time for, and a
        `whole` count of them even if there is not."""
        while self.tries < (max(short, whole) if self.is_whole else short) or (
            self.is_whole and self.seconds < float(os.environ[SECONDS])
        ):
            try:
                yield self.tries
            except GeneratorExit:
                return
            self.tries += 1

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def tell(
        self,
        part: int,
        what: str,
        result: str,
        tries: int | None = None,
        counts: Mapping[str, int | Mapping[str, int]] | None = None,
    ) -> None:
        """Add a line to the results: which part of the torture, what was tried, what came of it.
        The two texts have the names of `counts` in braces, for what can be added up."""
        if path := os.environ.get(RESULTS):
            line = {
                "part": part,
                "what": what,
                "seed": self.seed,
                "tries": self.tries if tries is None else tries,
                "seconds": round(self.seconds),
                "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
                "result": result,
                "counts": counts or {},
            }
            with Path(path).open("a") as file:
                file.write(json.dumps(line) + "\n")
