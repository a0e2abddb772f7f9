"""Faults of the host's files under a guest that uses them: the program gets an error, and nothing
else suffers."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.sandbox import client
from tapwright.state import registry
from tests.host import eventually
from tests.sandboxes import Tapwright, show

SANDBOX = "share-faults"


@pytest.fixture(scope="module")
def sandbox(tapwright: Tapwright) -> Iterator[registry.Sandbox]:
    yield tapwright.run_with_share(SANDBOX)
    tapwright.run("sandbox", "delete", "--force", SANDBOX)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=False, stderr=subprocess.DEVNULL)


def sh(tapwright: Tapwright, command: str) -> str:
    return tapwright.exec(SANDBOX, "sh", "-c", f"({command}) 2>&1; true")


@pytest.fixture
def beside(tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path) -> Iterator[None]:
    """What else the guest has of the host works all the time."""
    (tmp_path / "beside").mkdir()
    place = show(sandbox, "beside", tmp_path / "beside")
    yield
    assert sh(tapwright, f"echo works > {place}/file; cat {place}/file") == "works\n"
    for container in ("beside", "test"):
        client.of(sandbox).unshare(container)


def test_no_space(
    tapwright: Tapwright, sandbox: registry.Sandbox, small: Path, beside: None
) -> None:
    place = show(sandbox, "test", small)
    said = sh(tapwright, f"dd if=/dev/zero of={place}/big bs=64k count=64")
    assert "No space left on device" in said
    assert (small / "big").stat().st_size == 1 << 20
    sh(tapwright, f"rm {place}/big")
    # The daemon gives the space back when the guest has let go of the file.
    written = f"echo small > {place}/file; cat {place}/file"
    assert eventually(lambda: sh(tapwright, written) == "small\n")


def test_a_source_that_is_removed(
    tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path, beside: None
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("there\n")
    place = show(sandbox, "test", source)
    assert sh(tapwright, f"cat {place}/file") == "there\n"
    shutil.rmtree(source)
    # What it knows of the file lasts for a second.
    assert eventually(
        lambda: sh(tapwright, f"cat {place}/file").endswith("No such file or directory\n")
    )
    assert "No such file or directory" in sh(tapwright, f"touch {place}/new")


def test_a_source_that_is_unmounted(
    tapwright: Tapwright, sandbox: registry.Sandbox, small: Path, beside: None
) -> None:
    """Whatever unmounts it: the guest keeps the files that it had, as a container by runc does."""
    (small / "file").write_text("there\n")
    place = show(sandbox, "test", small)
    subprocess.run(["umount", small], check=True)
    assert sh(tapwright, f"cat {place}/file; echo more >> {place}/file") == "there\n"
    assert sh(tapwright, f"cat {place}/file") == "there\nmore\n"
