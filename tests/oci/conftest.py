from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tapwright.linux import libc
from tests.oci.runtime import Runtime
from tests.sandboxes import Tapwright

_PR_SET_CHILD_SUBREAPER = 36


# Not of the session: platforms count on their orphans being waited for, as init does.
@pytest.fixture(scope="package")
def runtime(tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    yield Runtime(tapwright, tmp_path_factory.mktemp("oci"))
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


@pytest.fixture(scope="module")
def modules_of_the_host() -> Iterator[None]:
    """A host without a kernel of its own has no directory of modules."""
    path = Path("/lib/modules")
    is_new = not path.exists()
    path.mkdir(exist_ok=True)
    yield
    if is_new:
        with suppress(OSError):
            path.rmdir()
