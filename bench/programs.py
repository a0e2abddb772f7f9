#!/usr/bin/env python3
"""Real programs by runc and in a sandbox: whether they do the same, and how long they take.

    python -m bench.programs [NAME …]

Takes minutes. Without names it runs all of tests/programs, checks of files with a directory of
100,000 entries too, and writes the table in docs/oci.md. The exit status is 1 when anything
differs.
"""

import datetime
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.place import Place, new_host, private, say
from bench.platforms import RUNTIMES, podman_in
from tests.programs import box, copying, known, programs, root
from tests.programs.box import Box, Done
from tests.programs.comparison import differences, unexpected

_PAGE = Path(__file__).parents[1] / "docs/oci.md"
_ENTRIES = 100_000
_CHECKS, _COPYING = "files", "podman"
_CELL = str.maketrans("|\n", "¦ ")
NAMES = (*(program.name for program in programs.ALL), _CHECKS, _COPYING)


class Row(NamedTuple):
    """A program by both; `differs` is empty when they do the same."""

    title: str
    runc: Done
    tapwright: Done
    differs: str


def measure(place: Place, debian: Path, names: Sequence[str]) -> Iterator[Row]:
    """In the order of `NAMES`. `debian` is a root filesystem of `root.ALL`."""
    with ExitStack() as stack:
        runtimes = box.runc(place.directory / "runc"), place.command(place.root("programs"))
        pair = [
            stack.enter_context(box.running(runtime, debian, place.directory / name))
            for runtime, name in zip(runtimes, RUNTIMES, strict=True)
        ]
        for program in programs.ALL:
            if program.name in names:
                runc, tapwright = (each.script(program.name, program.seconds) for each in pair)
                differs = programs.difference(runc, tapwright)
                yield Row(program.title, runc, tapwright, differs)
        if _CHECKS in names:
            yield _checks(pair)
    if _COPYING in names:
        new_host()
        with podman_in(place) as podman, tempfile.TemporaryDirectory() as directory:
            places = [Path(directory, kind) for kind in RUNTIMES]
            for each in places:
                each.mkdir()
            runs = [copying.copied(podman, *with_) for with_ in zip(RUNTIMES, places, strict=True)]
        title = "podman cp, diff, commit, export of a container that works"
        yield Row(title, runs[0], runs[1], programs.difference(*runs))


def _checks(pair: Sequence[Box]) -> Row:
    found = [box.checks(each, "/volume/checks", CHECKS_ENTRIES=str(_ENTRIES)) for each in pair]
    outcomes = [{name: each.outcome for name, each in run.items()} for run in found]
    lines = unexpected(differences(*outcomes), known.IN_A_VOLUME)
    done = [Done(0, "", sum(each.seconds for each in run.values())) for run in found]
    title = f"{len(found[0])} checks of files, {_ENTRIES:,} entries in a directory"
    return Row(title, done[0], done[1], "\n".join(lines))


def summary(rows: Sequence[Row], today: datetime.date) -> str:
    """What stands between the marks of the page."""
    lines = [
        [
            row.title,
            f"{_status(row.runc)}, {row.runc.seconds:.2f} s",
            f"{_status(row.tapwright)}, {row.tapwright.seconds:.2f} s",
            f"no: {row.differs.translate(_CELL)}" if row.differs else "yes",
        ]
        for row in rows
    ]
    head = ("", "runc", "Tapwright", "the same output")
    when = f"Measured on {today:%d %B %Y}: two cores, software emulation, a VM of 1 GiB."
    return f"{when}\n\n{_table(head, *lines)}"


def _table(*rows: Sequence[str]) -> str:
    """A table of texts, under its first row."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])


def _status(done: Done) -> str:
    return "did not end" if done.status is None else f"status {done.status}"


def put(page: str, name: str, text: str) -> str:
    """The page with this text between its marks `<!-- NAME -->` and `<!-- /NAME -->`. Raises
    ValueError when it has none."""
    marks = re.compile(f"(<!-- {name} -->\n).*(<!-- /{name} -->)", re.DOTALL)
    put, count = marks.subn(lambda found: f"{found[1]}{text}\n{found[2]}", page)
    if count != 1:
        raise ValueError(f"the page has no marks for {name}: put <!-- {name} --> where it is to be")
    return put


def main(names: Sequence[str]) -> int:
    if unknown := set(names) - set(NAMES):
        say(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
        return 2
    # While the package archive can still be reached.
    debian = root.ensure(root.ALL)
    rows = []
    with private() as place:
        for row in measure(place, debian, names or NAMES):
            rows.append(row)
            say(f"{row.title}: {row.runc.seconds:.2f} s, {row.tapwright.seconds:.2f} s")
            if row.differs:
                say(row.differs)
    if not names:
        text = summary(rows, datetime.date.today())
        _PAGE.write_text(put(_PAGE.read_text(), "programs", text))
    return int(any(row.differs for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
