"""The wheel, built from the checkout and installed into an empty environment."""

import json
import subprocess
import venv
from pathlib import Path

import pytest
from reference import completions, manual

import tapwright
from tests.packaging.conftest import PIP, PROJECT, run


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has nothing but the wheel."""
    environment = tmp_path_factory.mktemp("installed")
    venv.create(environment)
    python = environment / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", "--no-compile", wheel)
    return environment


def test_the_command_works(installed: Path) -> None:
    said = run(installed / "bin/tapwright", "--version")
    assert said.startswith(f"tapwright version {tapwright.__version__}\n")
    default = run(installed / "bin/tapwright", "check", "--print-default")
    assert default == (PROJECT / "src/tapwright/config/configuration.toml").read_text()
    assert "-r RUNTIME" in run(installed / "bin/tapwright-netmon", "-help")


def test_it_looks_at_the_host(installed: Path) -> None:
    """Whatever comes of it: nothing else than the standard library is needed."""
    done = subprocess.run(
        [installed / "bin/tapwright", "check", "--json"], capture_output=True, text=True
    )
    assert json.loads(done.stdout)["ready"] is (done.returncode == 0)


def test_it_brings_man_pages_and_completions(installed: Path) -> None:
    pages = {path.name for path in (installed / "share/man/man1").iterdir()}
    assert pages == set(manual.pages())
    for name in completions.scripts():
        assert (installed / "share" / name).is_file()


def test_it_has_all_that_is_no_python(installed: Path) -> None:
    [package] = (installed / "lib").glob("python*/site-packages/tapwright")
    for path in (PROJECT / "src/tapwright").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = path.relative_to(PROJECT / "src/tapwright")
            assert (package / name).read_bytes() == path.read_bytes()


def test_its_metadata(installed: Path) -> None:
    [path] = (installed / "lib").glob("python*/site-packages/*.dist-info/METADATA")
    head, _, body = path.read_text().partition("\n\n")
    assert "License-Expression: Apache-2.0" in head.splitlines()
    assert "Description-Content-Type: text/markdown" in head.splitlines()
    assert body.strip() == (PROJECT / "README.md").read_text().strip()
