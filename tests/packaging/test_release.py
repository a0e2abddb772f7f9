"""`scripts/release` refuses what is not ready. (Building is tested with wheel and package.)"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.conftest import PROJECT

VERSION = "7.1.0"
_FILES = ("pyproject.toml", "src/tapwright/__init__.py", "CHANGELOG.md", "SECURITY.md")
_SCRIPTS = ("scripts/release", "scripts/debian/control")


def change(checkout: Path, file: str, pattern: str, by: str) -> None:
    text = (checkout / file).read_text()
    changed = re.sub(pattern, by, text, flags=re.MULTILINE)
    assert changed != text
    (checkout / file).write_text(changed)


def git(checkout: Path, *words: str) -> None:
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", "-C", checkout, *who, *words], check=True, capture_output=True)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A checkout of which VERSION could be released."""
    for name in (*_FILES, *_SCRIPTS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    change(tmp_path, "pyproject.toml", "^version = .*", f'version = "{VERSION}"')
    change(tmp_path, "pyproject.toml", r"example\.org", "tapwright.invalid")
    change(tmp_path, "scripts/debian/control", r"example\.org", "tapwright.invalid")
    change(tmp_path, _FILES[1], "^__version__ = .*", f'__version__ = "{VERSION}"')
    change(
        tmp_path, "CHANGELOG.md", "^## Unreleased", f"## Unreleased\n\n## {VERSION} - 2026-12-01"
    )
    change(tmp_path, "SECURITY.md", "ADDRESS", "security@tapwright.invalid")
    git(tmp_path, "init")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--message", "Release")
    return tmp_path


def refusals(checkout: Path, version: str = VERSION) -> list[str]:
    done = subprocess.run(
        [checkout / "scripts/release", "--check", version], capture_output=True, text=True
    )
    found = done.stderr.splitlines()
    assert done.returncode == (1 if found else 0)
    return found


def test_what_is_ready_is_not_refused(ready: Path) -> None:
    assert refusals(ready) == []


@pytest.mark.parametrize(
    ("file", "pattern", "by", "said"),
    [
        (
            "pyproject.toml",
            "^version = .*",
            'version = "7.0.0"',
            "pyproject.toml says version 7.0.0",
        ),
        (_FILES[1], "^__version__ = .*", '__version__ = "7.0.0"', "__version__ 7.0.0"),
        ("CHANGELOG.md", f"^## {VERSION} - .*", f"## {VERSION}", "has no section"),
        ("SECURITY.md", "security@", "ADDRESS@", "no address"),
        ("pyproject.toml", r"tapwright\.invalid", "example.org", "has example.org"),
    ],
)
def test_what_is_not_ready_is_named(
    ready: Path, file: str, pattern: str, by: str, said: str
) -> None:
    change(ready, file, pattern, by)
    git(ready, "commit", "--all", "--message", "Spoil it")
    [refusal] = refusals(ready)
    assert said in refusal


def test_what_is_not_committed_or_was_released_is_refused(ready: Path) -> None:
    (ready / "more").touch()
    git(ready, "tag", f"v{VERSION}")
    assert len(refusals(ready)) == 2
    assert "is no version" in refusals(ready, "7.1")[0]
