"""`scripts/bench`, as far as it is not setting up: a quick run, its page, and what it leaves."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import drawing, report, samples
from bench.__main__ import replaced
from tests.host import eventually

pytestmark = pytest.mark.timeout(900)

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "bench", "--quick")


def left() -> list[str]:
    """What a run could leave on the machine."""
    namespaces = [
        name for name in os.listdir("/run/netns") if re.match("tapwright-bench|bench|twbench", name)
    ]
    directories = map(str, Path("/var/lib").glob("tapwright-bench-*"))
    return [*namespaces, *directories, *processes()]


def processes() -> Iterator[str]:
    """The command lines that name a sandbox of a run."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if "/tapwright-bench-" in (command := path.read_text()):
                yield command


@pytest.fixture(autouse=True, scope="module")
def left_before() -> list[str]:
    """By a run that was killed."""
    return left()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, session_templates: Path) -> Path:
    """What a quick run of all parts has written."""
    directory = tmp_path_factory.mktemp("bench")
    command = [*COMMAND, "--templates", str(session_templates), "--output", str(directory)]
    done = subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def data(output: Path) -> Any:
    return json.loads((output / "performance.json").read_text())


def test_a_quick_run_measures_everything(output: Path, data: Any, left_before: list[str]) -> None:
    page = (output / "performance.md").read_text()
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert titles == [
        "Aims",
        "Start to first ping",
        "Deleting a sandbox",
        "Many sandboxes",
        "Memory of a sandbox",
        "Containers",
        "Pods",
        "The command's own start",
        "Plugging a NIC into a running VM",
        "Following the namespace",
        "Carrying routes, rules and settings",
        "Running CNI networks",
        "Models and endpoints",
    ]
    assert len(report.aims(data)) == 21
    assert data["crowd"]["answered"] == data["crowd"]["most"]
    assert data["crowd"]["left"] == []
    assert data["pods"]["parts"]["verbs"]["sandbox"] == ["create", "start"]
    assert data["pods"]["parts"]["verbs"]["exec"] == ["exec"]
    assert "### Where the time of a pod goes" in page
    assert set(data["memory"]["share"]) == {"QEMU", "supervisor", "monitor"}
    variants = {"floor", "ready", "library", "command", "alone", "cold", "spare", "spare_library"}
    assert set(data["starts"]["variants"]) == variants
    assert eventually(lambda: left() == left_before), left()


def test_pictures_are_there_and_well_formed(output: Path) -> None:
    page = (output / "performance.md").read_text()
    linked = {output / path for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)}
    assert linked == set((output / "performance").iterdir())
    for path in linked:
        root = ElementTree.parse(path).getroot()  # noqa: S314 - our own
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter("{http://www.w3.org/2000/svg}rect"):
            assert 0 <= float(element.attrib["x"]) <= width
            assert 0 <= float(element.attrib["y"]) <= height


def test_nothing_written_names_the_host(output: Path) -> None:
    for path in filter(Path.is_file, output.rglob("*")):
        text = path.read_text()
        assert not re.search(r"/(var|tmp|root|home|run|work|usr)/", text), path
        assert str(REPOSITORY) not in text
        assert os.uname().nodename not in re.findall(r"[\w.-]+", text), path


def test_the_page_can_be_made_again_of_its_data(output: Path, tmp_path: Path) -> None:
    source = output / "performance.json"
    command = [*COMMAND, "--data", str(source), "--output", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    for path in filter(Path.is_file, output.rglob("*")):
        assert (tmp_path / path.relative_to(output)).read_text() == path.read_text()


def test_a_part_can_be_of_a_later_run(data: Any) -> None:
    scrape = {**data["scrape"], "sandboxes": 777}
    newer = {"machine": data["machine"], "scrape": scrape, "run": {"quick": True, "seconds": 1}}
    whole = replaced(data, newer)
    assert whole["cni"] == data["cni"]
    assert [*whole] == [*data]
    page = report.markdown(whole)
    assert "777 sandboxes" in page
    assert re.search(r"Later runs, on \d{4}-\d\d-\d\d, measured\s+these\s+parts", page)
    assert "Later runs" not in report.markdown(data)
    with pytest.raises(SystemExit, match="of another machine"):
        replaced(data, {**newer, "machine": {**data["machine"], "cores": 999}})


def test_whether_an_aim_is_met_follows_from_the_data(data: Any) -> None:
    def verdict(changed: Any) -> bool:
        (aim,) = (aim for aim in report.aims(changed) if "--version" in aim.what)
        assert (f"| {aim.measured:.2f} times | yes |" in report.markdown(changed)) == aim.is_met
        return aim.is_met

    changed = copy.deepcopy(data)
    changed["command_start"] = {"python": [10.0, 10.0], "version": [20.0, 20.0]}
    assert verdict(changed)
    changed["command_start"]["version"] = [20.2, 20.2]
    assert not verdict(changed)
    assert "10 ms more" in report.markdown(changed)


def test_what_was_not_measured_is_not_on_the_page(data: Any) -> None:
    page = report.markdown({key: data[key] for key in ("machine", "run", "cni")})
    assert "## Running CNI networks" in page
    assert "## Start to first ping" not in page


def one_runs(left_before: list[str]) -> bool:
    records = [
        record
        for directory in Path("/var/lib").glob("tapwright-bench-*")
        if str(directory) not in left_before
        for record in directory.glob("roots/*/sandboxes/*/record.json")
    ]
    return any('"status": "running"' in path.read_text() for path in records)


def test_a_run_that_is_ended_takes_everything_back(
    tmp_path: Path, left_before: list[str], session_templates: Path
) -> None:
    templates = "--templates", str(session_templates)
    command = [*COMMAND, "--only", "memory", *templates, "--output", str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as run:
        try:
            assert eventually(lambda: one_runs(left_before))
        finally:
            run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM
    assert eventually(lambda: left() == left_before), left()
    assert list(tmp_path.iterdir()) == []


def test_summary_and_ticks() -> None:
    assert samples.summary([3.0]) == (3.0, 3.0, 3.0, 1)
    assert samples.summary([1.0, 2.0, 3.0, 4.0, 100.0])[:3] == (3.0, 2.0, 4.0)
    assert drawing.ticks(10) == [0, 2, 4, 6, 8, 10]
    assert drawing.ticks(0.9) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert drawing.ticks(4321) == [0, 1000, 2000, 3000, 4000]
