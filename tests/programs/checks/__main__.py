"""Run the checks, each in a process and a directory of its own."""

import json
import os
import select
import signal
import sys
import time
import traceback
from typing import Any

from tests.programs.checks import (  # noqa: F401 - they enter their checks
    attributes,
    data,
    directories,
    exerciser,
    kinds,
    locks,
    maps,
    mounts,
    names,
    open_files,
    permissions,
    xattrs,
)
from tests.programs.checks.frame import CHECKS, ENDED, Check

_SECONDS = 120
_GRACE_SECONDS = 5


def main(base: str, *wanted: str) -> None:
    os.umask(0o022)
    # What programs say that checks run is not part of the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(os.open("/dev/null", os.O_RDWR), 1)
    for name, function in CHECKS.items():
        if wanted and not any(name == word or name.startswith(f"{word}.") for word in wanted):
            continue
        directory = os.path.join(base, name)
        os.makedirs(directory)
        begun = time.monotonic()
        outcome = _outcome(function, directory)
        taken = round(time.monotonic() - begun, 3)
        line = {"check": name, "seconds": taken, "outcome": outcome}
        print(json.dumps(line), file=answer, flush=True)


def _outcome(function: Check, directory: str) -> Any:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run(function, directory, writer)
    os.close(writer)
    said = _read(reader, _SECONDS)
    if said is None:
        os.killpg(pid, signal.SIGKILL)
        said = _read(reader, _GRACE_SECONDS)
        return {ENDED: "does not end"}
    os.waitpid(pid, 0)
    return json.loads(said) if said else {ENDED: "died"}


def _read(reader: int, seconds: float) -> bytes | None:
    """All of it, or None when the time is over before it has ended."""
    said = b""
    deadline = time.monotonic() + seconds
    while select.select([reader], [], [], max(0, deadline - time.monotonic()))[0]:
        if not (chunk := os.read(reader, 65536)):
            return said
        said += chunk
    return None


def _run(function: Check, directory: str, writer: int) -> None:
    os.setpgid(0, 0)
    os.chdir(directory)
    try:
        outcome = function()
    except BaseException as failed:
        where = traceback.extract_tb(failed.__traceback__)[-1]
        outcome = {ENDED: f"{type(failed).__name__}: {failed} ({where.name})"}
    said = json.dumps(outcome).encode()
    while said:
        said = said[os.write(writer, said) :]
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
