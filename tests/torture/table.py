"""Writes the results of scripts/torture into docs/security.md, between two marks:
`python -m tests.torture.table RESULTS DOCUMENT`.

Lines that say the same of several seeds are one row, which adds them up and names the seeds. The
last line of a seed counts, and a line that says something else replaces all before it."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"
_HEAD = """\
| part | what was tried | tries | seed | date | what came of it |
| --- | --- | --- | --- | --- | --- |
"""

Line = dict[str, Any]


def table(lines: list[str]) -> str:
    rows: dict[tuple[int, str], dict[int, Line]] = {}
    for line in map(json.loads, lines):
        row = rows.setdefault((line["part"], line["what"]), {})
        if any(before["result"] != line["result"] for before in row.values()):
            row.clear()
        row[line["seed"]] = line
    return _HEAD + "".join(_row(list(rows[key].values())) for key in sorted(rows))


def _row(lines: list[Line]) -> str:
    counts: dict[str, Counter[str]] = {}
    for line in lines:
        for name, count in line["counts"].items():
            counts.setdefault(name, Counter()).update(
                count if isinstance(count, dict) else {"": count}
            )
    told = {name: _told(count) for name, count in counts.items()}
    tries, seconds = (sum(line[name] for line in lines) for name in ("tries", "seconds"))
    dates = sorted({line["date"] for line in lines})
    cells = (
        lines[0]["part"],
        lines[0]["what"].format(**told),
        f"{tries:,} in {seconds:,} s",
        ", ".join(str(line["seed"]) for line in lines),
        " to ".join(dict.fromkeys((dates[0], dates[-1]))),
        lines[0]["result"].format(**told),
    )
    return f"| {' | '.join(map(str, cells))} |\n"


def _told(count: Counter[str]) -> str:
    """One number, or several with their names."""
    return ", ".join(f"{name} {number:,}".strip() for name, number in sorted(count.items()))


def written(document: str, rows: str) -> str:
    """The document with that table. Raises ValueError for one without the marks."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{rows}\n{end}{after}"


def main(results: str, document: str) -> None:
    path = Path(document)
    rows = table(Path(results).read_text().splitlines())
    path.write_text(written(path.read_text(), rows))
    print(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
