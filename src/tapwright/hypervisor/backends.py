"""The host's side of a NIC, as the endpoints make it and QEMU gets it.

The module is apart from `nics`, so that a deletion can remove endpoints without loading asyncio.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tap:
    """A TAP as the host's side of a NIC: one descriptor for each of its queues. The caller closes
    them."""

    fds: Sequence[int]

    @property
    def queues(self) -> int:
        return len(self.fds)


@dataclass(frozen=True)
class VhostUser:
    """A unix socket to a vhost-user backend as the host's side of a NIC.

    `fd` (the caller closes it) is a directory that QEMU may use. If QEMU `listens`, it makes a
    socket of that name there; otherwise it connects to the one that is there. `opened` is called
    when QEMU has done so. QEMU must have been started with a `memory_directory`.
    """

    fd: int
    name: str
    listens: bool
    queues: int
    opened: Callable[[], None]


Backend = Tap | VhostUser
