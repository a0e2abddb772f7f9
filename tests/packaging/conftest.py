"""What is built once for all tests of packages."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
_BUILT_FROM = (
    "src",
    "scripts",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout. The build takes this environment's setuptools."""
    directory = tmp_path_factory.mktemp("wheel")
    checkout = directory / "checkout"
    checkout.mkdir()
    for name in _BUILT_FROM:
        path = PROJECT / name
        if path.is_dir():
            leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(path, checkout / name, ignore=leave)
        else:
            shutil.copy(path, checkout)
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", directory, checkout)
    [built] = directory.glob("*.whl")
    return built


def run(*argv: str | Path) -> str:
    """What a command prints, which is to succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout
