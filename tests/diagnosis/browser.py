"""A browser without a window: Debian's chromium, or its headless shell."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

_PROGRAMS = ("chromium-headless-shell", "chromium")
_SECONDS = 60


def program() -> str:
    """Its path; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        pytest.skip("there is no browser: apt-get install chromium-headless-shell, or chromium")
    return found


def document(address: str, profile: Path, *options: str, milliseconds: int = 1000) -> str:
    """What a page has become when its scripts have run for some (virtual) time; fails where a
    script did."""
    done = _run(address, profile, "--dump-dom", f"--virtual-time-budget={milliseconds}", *options)
    complaints = re.findall(r".*(?:CONSOLE|Uncaught|Refused to).*", done.stderr)
    assert not complaints, complaints
    assert 'data-errors="0"' in done.stdout
    assert 'data-ready="yes"' in done.stdout
    return done.stdout


def screenshot(address: str, profile: Path, path: Path, width: int, height: int) -> bytes:
    _run(address, profile, f"--screenshot={path}", f"--window-size={width},{height}")
    return path.read_bytes()


def _run(address: str, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [
            program(),
            *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            f"--user-data-dir={profile}",
            *options,
            address,
        ],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
