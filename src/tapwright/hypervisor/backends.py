"""The host's side of a NIC, as the endpoints make it and QEMU gets it.

Apart from `nics`, so that a deletion can take endpoints down without loading asyncio.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tap:
    """The host's side of a NIC: one descriptor for each queue of a TAP. They stay the caller's."""

    fds: Sequence[int]

    @property
    def queues(self) -> int:
        return len(self.fds)


@dataclass(frozen=True)
class VhostUser:
    """The host's side of a NIC: a unix socket to a vhost-user backend.

    `fd` (O_PATH; stays the caller's) is the backend's socket, which QEMU must have the right to
    connect to; or, with a `name`, the directory in which QEMU must have the right to make a socket
    of that name, to listen on. `opened` is called when it has done so. QEMU must have been started
    with a `memory_directory`.
    """

    fd: int
    name: str
    queues: int
    opened: Callable[[], None]


Backend = Tap | VhostUser
