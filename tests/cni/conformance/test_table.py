"""docs/cni-conformance.md names tests that exist, in every row of both tables."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "docs" / "cni-conformance.md"


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("Section", "Case", "---")]


def test_no_row_is_empty() -> None:
    assert len(rows()) > 60
    for row in rows():
        assert len(row) == 4, row
        assert all(row), row


def test_every_named_test_exists() -> None:
    for row in rows():
        names = re.findall(r"`([\w/]+)::(test_\w+)`", row[3])
        assert names, f"no test in {row}"
        for module, test in names:
            source = (ROOT / "tests" / "cni" / f"{module}.py").read_text()
            assert f"def {test}(" in source, f"{module} has no {test}"


def test_every_conformance_test_is_named() -> None:
    named = {test for row in rows() for test in re.findall(r"::(test_\w+)`", row[3])}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path != Path(__file__):
            for test in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE):
                assert test in named, f"{path.name}: {test} is in no row"
