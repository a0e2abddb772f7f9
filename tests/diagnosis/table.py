"""Writes what `explain` said of each fault into docs/diagnosis.md: python -m tests.diagnosis.table
ROWS DOCUMENT."""

import re
import sys
from pathlib import Path

BEGIN, END = "<!-- the catalogue -->", "<!-- the end of the catalogue -->"
_OWN = (
    (r"veth[0-9a-f]{8}", "veth0"),
    (r"tap\d+_kata", "tap2_kata"),
    (r"/run/netns/\S+", "NETNS"),
    (r"process \d+", "process PID"),
    (r"((?:[0-9a-f]{2}:){5})[0-9a-f]{2}", "MAC"),
)


def written(document: str, rows: list[str]) -> str:
    """The document with those rows; a row for a fault that has one already takes its place."""
    before, _, rest = document.partition(BEGIN)
    old, _, after = rest.partition(END)
    by_name = {}
    for row in [*old.splitlines()[4:], *rows]:
        if row.startswith("| "):
            by_name[row.split(" | ")[0]] = _general(row)
    lines = ["", "| fault | what is said | time |", "| --- | --- | --- |"]
    table = "\n".join([*lines, *by_name.values(), ""])
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _general(row: str) -> str:
    for pattern, word in _OWN:
        row = re.sub(pattern, word, row)
    return row


def main() -> None:
    rows, document = map(Path, sys.argv[1:])
    document.write_text(written(document.read_text(), rows.read_text().splitlines()))


if __name__ == "__main__":
    main()
