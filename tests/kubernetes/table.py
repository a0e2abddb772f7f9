"""Runs the tests on a cluster, and writes what came of them into docs/kubernetes.md.

    scripts/kubernetes [ARGUMENT…]

A row is what a test's description says, with what came of it by runc and by Tapwright, and the day.
Each version of Kubernetes has a table of its own. Rows of tests that did not run stay. A run
without arguments is one of all tests: the line above the table says how long the last such run
took, and what came of it.
"""

import ast
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from tests.kubernetes import build
from tests.kubernetes.cluster import RUNTIMES
from tests.kubernetes.conftest import WANTED

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs/kubernetes.md"
BEGIN = "<!-- table of Kubernetes {}: scripts/kubernetes writes it -->\n"
END = "<!-- end of the table -->\n"
COLUMNS = "| what | runc | tapwright | day |\n| --- | --- | --- | --- |\n"
WHOLE = "All of it ran in one go on "


def descriptions() -> dict[str, str]:
    """Module and name of each test → the first line of what it says about itself."""
    found = {}
    for file in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                said = ast.get_docstring(node) or node.name
                found[f"{file.stem}.{node.name}"] = said.partition("\n")[0]
    return found


def rows(report: Path) -> dict[str, str]:
    """Of a JUnit report: what each test says that ran → its row."""
    outcomes: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it
        name, _, parameter = (case.get("name") or "").partition("[")
        key = f"{(case.get('classname') or '').rpartition('.')[2]}.{name}"
        runtime = next((one for one in RUNTIMES if one in parameter), "")
        of_test = outcomes.setdefault(key, {})
        # Of several cases the one that does not pass tells.
        if of_test.get(runtime, "passes") == "passes":
            of_test[runtime] = _outcome(case)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return {
        said: f"| {said} | {_of(ran, 'runc')} | {_of(ran, 'tapwright')} | {today} |"
        for key, said in descriptions().items()
        if (ran := outcomes.get(key))
    }


def _of(outcome: dict[str, str], runtime: str) -> str:
    # A test without the parameter is about Tapwright alone.
    alone = outcome.get("", "") if runtime == "tapwright" else ""
    return outcome.get(runtime, alone)


def _outcome(case: ElementTree.Element) -> str:
    for child in case:
        if child.tag in ("failure", "error"):
            return "**fails**"
        if child.tag == "skipped":
            # What is known not to work is told by `pytest.xfail`.
            what = "no" if child.get("type") == "pytest.xfail" else "not tried"
            return f"{what}: {child.get('message')}"
    return "passes"


def whole(report: Path, minutes: float) -> str:
    """What came of a run of all tests."""
    outcomes = [_outcome(case) for case in ElementTree.parse(report).iter("testcase")]  # noqa: S314
    counts = {
        "passed": outcomes.count("passes"),
        "failed": outcomes.count("**fails**"),
        "known not to work": sum(one.startswith("no:") for one in outcomes),
        "not tried": sum(one.startswith("not tried:") for one in outcomes),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return f"{WHOLE}{today}, in {minutes:.0f} minutes: {told}.\n"


def head() -> str:
    """What ran."""
    programs = build.directory()
    kubernetes = build.version(programs)
    environment = build.environment(programs)
    said = subprocess.check_output(["containerd", "--version"], text=True, env=environment)
    containerd = said.split()[2]
    return (
        f"Kubernetes {kubernetes}, containerd {containerd}, {os.environ[WANTED]} nodes, "
        f"{os.cpu_count()} processors, software emulation.\n"
    )


def merged(page: str, begin: str, head: str, new: Mapping[str, str]) -> str:
    """The page with these rows in the table that `begin` begins, in the order of the tests; those
    of others stay, and so does what the page says of the last run of all tests, unless `head` does.
    A new table comes before the others."""
    if begin not in page:
        first = BEGIN.partition("{}")[0]
        above, found, below = page.partition(first)
        assert found, f"{DOCS} has no {first}"
        page = f"{above}{begin}{END}\n{found}{below}"
    before, _, rest = page.partition(begin)
    old, _, after = rest.partition(END)
    kept = {
        line.split(" | ")[0].removeprefix("| "): line
        for line in old.splitlines()
        if line.startswith("| ")
    }
    whole = {**kept, **{said: _joined(row, kept.get(said, "")) for said, row in new.items()}}
    table = "".join(f"{whole[said]}\n" for said in descriptions().values() if said in whole)
    if WHOLE not in head:
        head += "".join(line for line in old.splitlines(keepends=True) if line.startswith(WHOLE))
    return f"{before}{begin}{head}\n{COLUMNS}{table}{END}{after}"


def _joined(row: str, old: str) -> str:
    """With the old cell of a runtime that did not run this time."""
    cells, before = row.split(" | "), old.split(" | ")
    if len(before) == len(cells):
        cells = [one or other for one, other in zip(cells, before, strict=True)]
    return " | ".join(cells)


def run() -> int:
    """The command; its status is that of the tests."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        options = [f"--junitxml={report}", "--timeout=2400", "-p", "no:cacheprovider"]
        named = any(word.partition("::")[0].endswith(".py") for word in sys.argv[1:])
        words = [*([] if named else [str(HERE)]), *sys.argv[1:]]
        command = [sys.executable, "-m", "pytest", *options, *words]
        status = subprocess.run(command, check=False).returncode
        found = rows(report)
        minutes = (time.monotonic() - started) / 60
        # Other statuses are those of a run that was ended.
        ran_whole = not sys.argv[1:] and status in (0, 1)
        first = head() + (whole(report, minutes) if ran_whole else "")
    print("\n".join([first, *found.values()]))
    begin = BEGIN.format(build.version(build.directory()).rpartition(".")[0])
    DOCS.write_text(merged(DOCS.read_text(), begin, first, found))
    return status


if __name__ == "__main__":
    sys.exit(run())
