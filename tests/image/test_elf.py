"""A program without one of its libraries."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tapwright.errors import ImageError
from tapwright.image.elf import without

pytestmark = pytest.mark.unit

PROGRAM = Path(shutil.which("crun") or "/usr/bin/crun")


def libraries(path: Path) -> list[str]:
    """Those that the loader loads; it may say nothing besides."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    return [line.split()[0] for line in listed.stdout.splitlines()]


def test_it_runs_as_before(tmp_path: Path) -> None:
    """crun of a release that does not link with systemd has nothing to lose."""
    before, less = libraries(PROGRAM), tmp_path / "crun"
    less.write_bytes(without(PROGRAM.read_bytes(), "libsystemd.so.0"))
    less.chmod(0o755)
    assert set(libraries(less)) <= set(before) - {"libsystemd.so.0"}
    for program in (PROGRAM, less):
        run = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        assert run.stdout.startswith("crun version")
        assert run.stderr == ""


def test_a_program_that_does_not_need_it_stays() -> None:
    program = PROGRAM.read_bytes()
    assert without(program, "libnothing.so.1") == program
    less = without(program, "libsystemd.so.0")
    assert without(less, "libsystemd.so.0") == less


@pytest.mark.parametrize("size", [0, 40, 64, 4096])
def test_what_is_no_program(size: int) -> None:
    with pytest.raises(ImageError, match=r"libsystemd.so.0 can't be taken from a program"):
        without(PROGRAM.read_bytes()[:size].ljust(64, b"\0"), "libsystemd.so.0")
