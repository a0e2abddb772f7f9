"""The table of results, and its place in a document."""

import json

import pytest

from tests.torture import table

pytestmark = pytest.mark.unit


def line(what: str, tries: int, seed: int = 7, result: str = "fine", **counts: object) -> str:
    rest = {"part": 9, "seconds": 5, "date": f"2026-01-0{seed}", "result": result}
    return json.dumps({"what": what, "tries": tries, "seed": seed, "counts": counts, **rest})


def test_other_seeds_are_added_up() -> None:
    rows = table.table(
        [
            line("kills ({killed})", 3, 7, "{left} left", killed={"all": 1, "qemu": 2}, left=1),
            line("kills ({killed})", 2000, 8, "{left} left", killed={"all": 2000}, left=4),
            line("kills ({killed})", 4, 7, "{left} left", killed={"all": 3, "shim": 1}, left=2),
            line("files", 1),
        ]
    )
    assert rows.splitlines()[2:] == [
        "| 9 | files | 1 in 5 s | 7 | 2026-01-07 | fine |",
        "| 9 | kills (all 2,003, shim 1) | 2,004 in 10 s | 7, 8 | 2026-01-07 to 2026-01-08 "
        "| 6 left |",
    ]


def test_another_result_replaces_those_before() -> None:
    rows = table.table([line("x", 1, 1), line("x", 2, 2, "bad"), line("x", 3, 3, "bad")])
    assert rows.splitlines()[2:] == [
        "| 9 | x | 5 in 10 s | 2, 3 | 2026-01-02 to 2026-01-03 | bad |"
    ]
    rows = table.table([line("x", 1, 1, "bad"), line("x", 2, 2)])
    assert rows.splitlines()[2:] == ["| 9 | x | 2 in 5 s | 2 | 2026-01-02 | fine |"]


def test_it_goes_between_its_marks() -> None:
    document = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    written = table.written(document, "new\n")
    assert written == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter\n"
    assert table.written(written, "new\n") == written
    with pytest.raises(ValueError, match="no lines"):
        table.written("before", "new")
