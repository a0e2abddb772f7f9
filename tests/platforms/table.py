"""Runs the platforms' tests, and writes what came of them into docs/platforms.md.

    .venv/bin/python -m tests.platforms.table             # runs them
    .venv/bin/python -m tests.platforms.table REPORT      # what pytest --junitxml=REPORT wrote
    scripts/on trixie .venv/bin/python -m tests.platforms.table

A row is a platform of a release: its version, the day, and how many tests passed, were skipped and
failed. Rows of other releases stay.
"""

import datetime
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

DOCS = Path(__file__).parents[2] / "docs/platforms.md"
TESTS = "tests/platforms", "tests/sandbox/test_openvswitch.py"
HEAD = "| platform | version | release | day | tests |"


class Platform(NamedTuple):
    """`tests` matches the names of its tests, `version` prints what it is."""

    name: str
    tests: str
    version: tuple[str, ...]


PLATFORMS = (
    Platform("podman", r"podman", ("podman", "--version")),
    Platform("containerd, by `ctr`", r"test_ctr", ("containerd", "--version")),
    Platform("containerd, by the CRI", r"test_cri", ("containerd", "--version")),
    Platform("docker", r"docker", ("dockerd", "--version")),
    Platform("Open vSwitch with DPDK", r"test_openvswitch", ("ovs-vswitchd", "--version")),
)


def outcomes(report: Path) -> dict[str, Counter[str]]:
    """Of a JUnit report: how many tests of each platform passed, were skipped, and failed."""
    found = {entry.name: Counter[str]() for entry in PLATFORMS}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it
        name = f"{case.get('classname')}.{case.get('name')}"
        kinds = {child.tag for child in case}
        outcome = (
            "failed"
            if kinds & {"failure", "error"}
            else "skipped"
            if "skipped" in kinds
            else "passed"
        )
        for entry in PLATFORMS:
            if re.search(entry.tests, name):
                found[entry.name][outcome] += 1
                break
    return found


def merged(page: str, rows: list[str]) -> str:
    """The page with these rows in its table, in the place of those of the same platform, version
    and release."""
    before, rule, after = page.partition(f"{HEAD}\n| --- | --- | --- | --- | --- |\n")
    assert rule, f"{DOCS} has no table with the head {HEAD}"
    lines = after.splitlines(keepends=True)
    size = next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))
    new = {_key(row): row + "\n" for row in rows}
    kept = {_key(line): line for line in lines[:size]}
    table = "".join((kept | new)[key] for key in sorted(kept | new))
    return before + rule + table + "".join(lines[size:])


def _key(row: str) -> tuple[str, ...]:
    return tuple(row.split(" | ")[:3])


def _release() -> str:
    names = platform.freedesktop_os_release()
    # Of sid: "Debian GNU/Linux forky/sid".
    number = names.get("VERSION_ID") or names["PRETTY_NAME"].split()[-1]
    return f"{names['ID'].capitalize()} {number}"


def _version(command: tuple[str, ...]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+[\w.+~-]*", said)
    assert found, said
    return found[0].rstrip(".,")


def examine(report: Path) -> int:
    """Run the tests, with what came of them in a report; the status is that of pytest."""
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *TESTS]
    return subprocess.run(command, check=False).returncode


def write(report: Path) -> None:
    """Put what a report of today has into the page, and print it."""
    counted = outcomes(report)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    rows = [
        f"| {entry.name} | {_version(entry.version)} | {_release()} | {today} | "
        + ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
        + " |"
        for entry in PLATFORMS
        if (counts := counted[entry.name])
    ]
    DOCS.write_text(merged(DOCS.read_text(), rows))
    print("\n".join(rows))


def run() -> int:
    """The command. Its status is that of the tests, where it ran them."""
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        status = examine(report)
        write(report)
    return status


if __name__ == "__main__":
    sys.exit(run())
