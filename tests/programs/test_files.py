"""What programs find of their files: the same list of checks by runc and in a sandbox."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tapwright.hypervisor import virtiofsd
from tapwright.hypervisor.machine import Daemon
from tests.amounts import amount
from tests.programs import known
from tests.programs.box import checks
from tests.programs.comparison import ENDED, Known, differences, kernel, unexpected
from tests.programs.conftest import Pair

DOCS = Path(__file__).parents[2] / "docs/oci.md"

# The first run of a machine makes the root filesystem.
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    ("where", "entries", "differs"),
    [
        pytest.param(
            *("/volume/checks", amount(400, 10_000), known.IN_A_VOLUME),
            id="volume",
            marks=pytest.mark.large,
        ),
        pytest.param("/root/checks", 400, known.IN_THE_ROOT, id="root"),
    ],
)
def test_files_are_as_by_runc(
    pair: Pair, where: str, entries: int, differs: Sequence[Known]
) -> None:
    any_name = "1" if virtiofsd.is_in_c(virtiofsd.program_of(Daemon())) else ""
    runc, tapwright = (
        checks(box, where, CHECKS_ENTRIES=str(entries), CHECKS_ANY_NAME=any_name) for box in pair
    )
    assert len(runc) > 80
    ended = {name: found.outcome for name, found in runc.items() if ENDED in found.outcome}
    assert not ended, "checks themselves do not work"
    host, guest = (kernel(box.run("uname", "-r").output) for box in pair)
    outcomes = ({name: found.outcome for name, found in run.items()} for run in (runc, tapwright))
    known_there = [entry for entry in differs if entry.holds(host, guest)]
    lines = unexpected(differences(*outcomes), known_there)
    assert not lines, "\n".join(lines)


@pytest.mark.unit
def test_every_difference_is_in_the_documentation() -> None:
    page = DOCS.read_text()
    for entry in {*known.IN_A_VOLUME, *known.IN_THE_ROOT}:
        assert f"| {entry.what} |" in page
