"""Part 7: documents that are almost right. What reads them raises its documented errors alone."""

import random

import pytest
from hypothesis import HealthCheck, Phase, seed, settings

from tests.torture import targets
from tests.torture.bound import Bound

pytestmark = pytest.mark.unit

_SHORT, _WHOLE, _AT_ONCE = 150, 100_000, 1000


@pytest.mark.parametrize("name", targets.TARGETS)
def test_only_documented_errors(bound: Bound, name: str) -> None:
    """A few by hypothesis, which finds the smallest that fails; many without it, in a tenth of the
    time. Each try of those has so many, by a seed of its own, which a failure names."""
    if not bound.is_whole:
        by_hypothesis(name)
        return
    for number in bound.goes_on(short=1, whole=_WHOLE // _AT_ONCE):
        drawn = f"{bound.seed} {number}"
        draw = random.Random(drawn)  # noqa: S311 - no secret
        try:
            for _ in range(_AT_ONCE):
                targets.attempt(name, draw.randrange)
        except Exception as error:
            error.add_note(f"drawn by {drawn!r}")
            raise
    bound.tell(7, f"documents for {name}", "documented errors alone", tries=bound.tries * _AT_ONCE)


def by_hypothesis(name: str) -> None:
    run = settings(
        max_examples=_SHORT,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(targets.test_of(name))
    seed(0)(run)()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("guests_answers", {"refused": [[0, float("inf"), "x"]]}),
        ("guests_answers", {"refused": [[0, 1 << 31, ""]]}),
        ("guests_answers", {"seconds": 10**400}),
        ("guests_answers", {"seconds": float("nan")}),
        ("guests_programs", [{"refused": "x", "number": 10**4300 - 1}]),
    ],
)
def test_what_has_failed(name: str, content: object) -> None:
    """Each of these has once had another error."""
    targets.TARGETS[name][0](content)
