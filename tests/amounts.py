"""How much of something a test makes, sends or repeats: enough in the suite to see a fault, much
in `scripts/torture large`, which runs the tests that are marked `large`."""

import os

LARGE = "TAPWRIGHT_LARGE"
"""A variable of the environment that is set for the large form."""


def amount(suite: int, large: int) -> int:
    return large if os.environ.get(LARGE) else suite
