"""Versions of the CNI specification, and what each of them allows."""

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT = VERSIONS[-1]

# The first version that has the operation, or passes the result of ADD to it.
CHECK = DEL_WITH_RESULT = "0.4.0"
GC = STATUS = "1.1.0"
RICH_RESULTS = "0.3.0"
"""From here on a result has interfaces and any number of addresses."""


def at_least(version: str, minimum: str) -> bool:
    """Whether a supported version is `minimum` or later."""
    return VERSIONS.index(version) >= VERSIONS.index(minimum)
