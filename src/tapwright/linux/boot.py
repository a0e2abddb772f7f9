"""Identifies the present boot of the host."""

_ID = "/proc/sys/kernel/random/boot_id"


def current() -> str:
    """Return the boot's UUID (random(4)). Raises OSError."""
    with open(_ID) as file:
        return file.read().strip()
