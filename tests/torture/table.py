"""Writes the results of scripts/torture into docs/security.md, between two marks:
`python -m tests.torture.table RESULTS DOCUMENT`. A line of a test is as it came last."""

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"
_HEAD = """\
| part | what was tried | tries | seed | date | what came of it |
| --- | --- | --- | --- | --- | --- |
"""


def table(lines: list[str]) -> str:
    last = {}
    for line in map(json.loads, lines):
        # Counts of kinds in brackets are other ones each time.
        last[line["part"], line["what"].partition(" (")[0]] = line
    rows = [
        f"| {line['part']} | {line['what']} | {line['tries']:,} in {line['seconds']} s "
        f"| {line['seed']} | {line['date']} | {line['result']} |\n"
        for line in sorted(last.values(), key=lambda line: (line["part"], line["what"]))
    ]
    return _HEAD + "".join(rows)


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
