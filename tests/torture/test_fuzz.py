"""Part 7: documents that are almost right. What reads them raises its documented errors alone."""

import pytest
from hypothesis import HealthCheck, Phase, seed, settings

from tests.torture import targets
from tests.torture.bound import Bound

pytestmark = pytest.mark.unit

_SHORT, _WHOLE = 150, 1000


@pytest.mark.parametrize("name", targets.TARGETS)
def test_only_documented_errors(bound: Bound, name: str) -> None:
    """Each try has so many documents; the seed of each is another."""
    documents = _WHOLE if bound.is_whole else _SHORT
    for number in bound.goes_on(short=1):
        run = settings(
            max_examples=documents,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(targets.test_of(name))
        seed(bound.seed * 1000 + number)(run)()
    bound.tell(7, f"documents for {name}", "documented errors alone", bound.tries * documents)
