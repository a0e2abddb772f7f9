"""Writes what `explain` said of each fault into docs/diagnosis.md: python -m tests.diagnosis.table
ROWS DOCUMENT."""

import datetime
import os
import re
import sys
import textwrap
from pathlib import Path

BEGIN, END = "<!-- the catalogue -->", "<!-- the end of the catalogue -->"
_HEAD = "| fault | what is said | mended | time |"
_OWN = (
    (r"veth[0-9a-f]{8}", "veth0"),
    (r"tap\d+_kata", "tap2_kata"),
    (r"/run/netns/\S+", "NETNS"),
    (r"process \d+", "process PID"),
    (r"((?:[0-9a-f]{2}:){5})[0-9a-f]{2}", "MAC"),
    (r"fe80::[0-9a-f:]+", "fe80::…"),
)


def written(document: str, rows: list[str], day: str, load: str) -> str:
    """The document with those rows; a row for a fault that has one already takes its place."""
    before, _, rest = document.partition(BEGIN)
    old, _, after = rest.partition(END)
    lines = old.splitlines()
    kept = lines[lines.index(_HEAD) + 2 :] if _HEAD in lines else []
    by_name = {row.split(" | ")[0]: _general(row) for row in [*kept, *rows] if row[:2] == "| "}
    table = "\n".join(["", _summary(list(by_name.values()), day, load), "", _HEAD])
    body = "\n".join(["| --- | --- | --- | --- |", *by_name.values(), ""])
    return f"{before}{BEGIN}\n{table}\n{body}\n{END}{after}"


def _summary(rows: list[str], day: str, load: str) -> str:
    mended = sum(" | yes | " in row for row in rows)
    times = sorted(float(row.rpartition("| ")[2].split()[0]) for row in rows)
    said = (
        f"{mended} of {len(rows)} faults were named and mended, last on {day}. Half of the answers "
        f"took {times[len(times) // 2]:.1f} s or less, the longest {times[-1]:.1f} s, on a machine "
        f"of {os.cpu_count()} processors with a load of {load}."
    )
    return textwrap.fill(said, 100)


def _general(row: str) -> str:
    for pattern, word in _OWN:
        row = re.sub(pattern, word, row)
    return row


def main() -> None:
    rows, document = map(Path, sys.argv[1:])
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    load = f"{os.getloadavg()[2]:.1f}"
    text = written(document.read_text(), rows.read_text().splitlines(), day, load)
    document.write_text(text)


if __name__ == "__main__":
    main()
