"""Makes a template in a process of its own, beside the sandbox that wants it first.

A platform gives up a start after seconds, and a template takes longer. So this process finishes the
template, even when the platform has gone, and the next start uses it. It gets the lock on the
templates from the sandbox's supervisor, so no other maker begins in between.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tapwright import errors
from tapwright.errors import HypervisorError, TapwrightError
from tapwright.hypervisor import template
from tapwright.hypervisor.template_store import Store
from tapwright.linux.files import closing
from tapwright.sandbox import launching
from tapwright.state.record import Spec, written_spec

_ANSWER_FD = 4  # 3 is the lock


def elsewhere(spec: Spec, accelerator: str) -> Callable[[int], Awaitable[None]]:
    """For `template.find_or_make`: a function that starts another process to make the template."""

    async def make(lock: int) -> None:
        reading, writing = os.pipe()
        with closing(reading):
            with closing(writing):
                order = {"spec": written_spec(spec), "accelerator": accelerator}
                begin = launching.in_background
                await asyncio.to_thread(begin, "template", (lock, writing), **order)
            answer = await _read(reading)
        if not answer:
            raise HypervisorError("the process that made the template was killed")
        failure = json.loads(answer)
        if failure:
            if failure["errno"]:
                raise OSError(failure["errno"], failure["failed"])
            raise errors.named(failure["kind"])(failure["failed"])

    return make


def main(spec: Spec, accelerator: str) -> None:
    """Make the template, and report the result, if a process still listens."""
    machine = replace(spec.machine, accelerator=accelerator)
    store = Store(Path(spec.template), spec.template_limit)
    failure: dict[str, Any] = {}
    try:
        asyncio.run(template.make(machine, store, spec.boot_timeout))
    except TapwrightError as error:
        failure = {"failed": str(error), "kind": type(error).__name__, "errno": 0}
    except OSError as error:
        failure = {"failed": error.strerror or str(error), "errno": error.errno or 0, "kind": ""}
    with contextlib.suppress(BrokenPipeError):
        os.write(_ANSWER_FD, json.dumps(failure).encode())


async def _read(fd: int) -> bytes:
    """Read a pipe to its end."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(fd), "rb", buffering=0)
    )
    try:
        return await reader.read()
    finally:
        transport.close()
