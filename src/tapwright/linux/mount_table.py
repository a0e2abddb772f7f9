"""The mounts in the namespace of this process (proc(5), /proc/PID/mountinfo)."""

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ESCAPED = re.compile(rb"\\([0-7]{3})")  # white space and backslashes in paths


def entries() -> "Iterator[tuple[str, str]]":
    """Yield (mount point, mounted path within its filesystem) of each mount."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            root, place = line.split(b" ")[3:5]
            yield _path(place), _path(root)


def _path(written: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), written))
