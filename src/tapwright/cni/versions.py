"""Versions of the CNI specification, and the first one with each operation."""

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT = VERSIONS[-1]

# The first version that has the operation, or passes the result of ADD to it.
CHECK = DEL_WITH_RESULT = "0.4.0"
GC = STATUS = "1.1.0"
RICH_RESULTS = "0.3.0"
"""From here on a result has interfaces and any number of addresses."""


def at_least(version: str, minimum: str) -> bool:
    """Whether a version, which may be unknown, is `minimum` or later."""
    return number(version) >= number(minimum)


def number(version: str) -> tuple[int, ...]:
    """A tuple to compare versions by: "1.2" comes between "1.1.9" and "1.2.1" (libcni,
    pkg/version/plugin.go, ParseVersion)."""
    parts = [int(part) for part in version.split("-")[0].split("+")[0].split(".")]
    return (*parts, 0, 0)[:3]
