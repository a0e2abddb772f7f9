"""Binds a sandbox's own network namespace again, whose name somebody has removed."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tapwright.errors import SandboxStateError
from tapwright.linux import netns
from tapwright.state import entries, ownership, supervisors
from tapwright.state.record import load


def bind_again(directory: Path) -> None:
    """Do so for a sandbox that is about to be taken down. Its supervisor still has the namespace,
    so that plugins find there all that they made, if they come before the supervisor ends."""
    with suppress(OSError, SandboxStateError):
        pid = supervisors.pid_of(directory)
        for entry in load(directory).held:
            own = entries.read(entry) if entry["kind"] == "netns" else None
            if not isinstance(own, entries.Netns) or os.path.exists(own.path):
                continue
            if not pid:
                return
            for path in _namespaces_of(pid):
                if own.namespace and ownership.is_still(own.namespace, path):
                    netns.bind(path, own.path)
                    return


def _namespaces_of(supervisor: int) -> Iterator[str]:
    """The namespaces that the supervisor has open, and those of its children, because older
    versions ran QEMU in the sandbox's."""
    kind = os.stat(netns.OWN).st_dev
    descriptors = f"/proc/{supervisor}/fd"
    for path in (f"{descriptors}/{name}" for name in os.listdir(descriptors)):
        with suppress(OSError):
            if os.stat(path).st_dev == kind:
                yield path
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    yield from (f"/proc/{child}/ns/net" for child in children)
