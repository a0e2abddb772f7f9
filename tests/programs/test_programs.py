"""Real programs, by runc and in a sandbox: how they end, and what they print."""

import pytest

from tests.programs import programs
from tests.programs.conftest import Pair
from tests.programs.programs import Program

pytestmark = pytest.mark.timeout(900)
_LONG = pytest.mark.skip(reason="takes minutes: python -m bench.programs runs it")


@pytest.mark.parametrize(
    "program",
    [
        *(pytest.param(program, id=program.name) for program in programs.USUAL),
        *(pytest.param(program, id=program.name, marks=_LONG) for program in programs.LONG),
    ],
)
def test_a_program_does_as_by_runc(pair: Pair, program: Program) -> None:
    runc, tapwright = (box.script(program.name, program.seconds) for box in pair)
    assert runc.status == 0, runc.output
    assert programs.difference(runc, tapwright) == ""
