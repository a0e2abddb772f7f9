from collections.abc import Iterator

import pytest

from tests.oci.conftest import runtime as runtime  # its shims are this process's children, too
from tests.torture.bound import SEED, Bound


@pytest.fixture
def bound(request: pytest.FixtureRequest) -> Iterator[Bound]:
    bound = Bound(request.node.nodeid)
    yield bound
    print(f"{bound.tries} tries in {bound.seconds:.0f} s; again by {SEED}={bound.seed}")
