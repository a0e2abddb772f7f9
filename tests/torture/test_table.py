"""The table of results, and its place in a document."""

import json

import pytest

from tests.torture import table

pytestmark = pytest.mark.unit


def line(part: int, what: str, tries: int) -> str:
    rest = {"seed": 7, "seconds": 5, "date": "2026-01-01", "result": "fine"}
    return json.dumps({"part": part, "what": what, "tries": tries, **rest})


def test_a_line_is_as_it_came_last() -> None:
    rows = table.table(
        [line(9, "kills (all 3)", 3), line(1, "files", 1), line(9, "kills (a 4)", 4)]
    )
    assert rows.splitlines()[2:] == [
        "| 1 | files | 1 in 5 s | 7 | 2026-01-01 | fine |",
        "| 9 | kills (a 4) | 4 in 5 s | 7 | 2026-01-01 | fine |",
    ]


def test_it_goes_between_its_marks() -> None:
    document = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    written = table.written(document, "new\n")
    assert written == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter\n"
    assert table.written(written, "new\n") == written
    with pytest.raises(ValueError, match="no lines"):
        table.written("before", "new")
