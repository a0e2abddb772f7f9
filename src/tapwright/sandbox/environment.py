"""A process's environment, for another process that works in its place: a file in memory."""

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def handed_over() -> "Iterator[int]":
    """This process's environment as a descriptor to send, for the length of the block. Raises
    OSError."""
    fd = os.memfd_create("tapwright-environment")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(b"\0".join(b"%b=%b" % item for item in os.environb.items()))
        yield fd
    finally:
        os.close(fd)


def take(fd: int) -> None:
    """Replace this process's environment by that in the descriptor, and close the descriptor."""
    with open(fd, "rb") as file:
        file.seek(0)
        content = file.read()
    os.environb.clear()
    for entry in content.split(b"\0"):
        name, _, value = entry.partition(b"=")
        os.environb[name] = value
