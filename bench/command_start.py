#!/usr/bin/env python3
"""How long the command takes that does nothing, relative to the interpreter alone.

    scripts/bench --only command_start

`tapwright --version` against `python3 -I -c pass`, by the interpreter itself and no link to it.
"""

import os
import subprocess
import sys
import time
from typing import TypedDict

from bench.place import COMMAND
from bench.samples import Milliseconds, Samples, rounded

INTERPRETER = os.path.realpath(sys.executable)
COMMANDS = {
    "python": [INTERPRETER, "-I", "-c", "pass"],
    "version": [COMMAND, "--version"],
}


class CommandStart(TypedDict):
    """Milliseconds from fork to exit."""

    python: Samples
    version: Samples


def measure(rounds: int) -> CommandStart:
    took: dict[str, Samples] = {name: [] for name in COMMANDS}
    for number in range(rounds + 2):
        for name, command in COMMANDS.items():
            milliseconds = _run(command)
            if number >= 2:
                took[name].append(milliseconds)
    return {"python": rounded(took["python"]), "version": rounded(took["version"])}


def _run(command: list[str]) -> Milliseconds:
    start = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.monotonic() - start) * 1e3
