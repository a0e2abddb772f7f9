"""The site of the documentation, in which each link leads somewhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import PROJECT

_NAMES = (
    *("docs", "examples", "scripts", "mkdocs.yml", "LICENSE"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the site is made from, with this environment."""
    for name in _NAMES:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, tmp_path / name)
        else:
            shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def build(checkout: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([checkout / "scripts/site"], capture_output=True, text=True)


def test_each_page_is_built(checkout: Path) -> None:
    done = build(checkout)
    assert done.returncode == 0, done.stderr
    site = checkout / "build/site"
    for page in (PROJECT / "docs").glob("*.md"):
        assert (site / page.with_suffix(".html").name).is_file()
    assert "Networking for secure containers" in (site / "index.html").read_text()


def test_a_broken_link_is_a_failure(checkout: Path) -> None:
    links = ("nowhere.md", "cni.md#nowhere", "../src/nowhere.py")
    with (checkout / "docs/oci.md").open("a") as page:
        page.writelines(f"\n[broken]({link})\n" for link in links)
    done = build(checkout)
    assert done.returncode != 0
    for link in links:
        assert f"'{link.removeprefix('../')}'" in done.stderr
