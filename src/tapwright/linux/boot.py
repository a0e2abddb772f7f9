"""What tells this run of the host from others."""

_ID = "/proc/sys/kernel/random/boot_id"


def current() -> str:
    """A UUID (random(4)). Raises OSError."""
    with open(_ID) as file:
        return file.read().strip()
