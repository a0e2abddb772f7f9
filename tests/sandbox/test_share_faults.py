"""What goes wrong with the host's files under a guest that uses them: the program hears of it, and
nobody else."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.config import load
from tapwright.linux import mounts
from tapwright.sandbox import client, lifecycle, planning, registry
from tapwright.sandbox.planning import Wish
from tests.host import eventually
from tests.sandboxes import Tapwright

SANDBOX = "share-faults"


@pytest.fixture(scope="module")
def sandbox(tapwright: Tapwright) -> Iterator[registry.Sandbox]:
    spec = planning.plan(load(str(tapwright.config)), Wish(share=True), print)
    lifecycle.run(tapwright.root, SANDBOX, spec)
    yield registry.find(tapwright.root, SANDBOX)
    tapwright.run("sandbox", "delete", "--force", SANDBOX)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=False, stderr=subprocess.DEVNULL)


def shown(sandbox: registry.Sandbox, source: Path) -> str:
    fd = mounts.clone(str(source))
    try:
        return client.share(sandbox, "test", {"root": fd})["root"]
    finally:
        os.close(fd)


def sh(tapwright: Tapwright, command: str) -> str:
    return tapwright.exec(SANDBOX, "sh", "-c", f"({command}) 2>&1; true")


@pytest.fixture
def beside(tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path) -> Iterator[None]:
    """What else the guest has of the host works all the time."""
    (tmp_path / "beside").mkdir()
    fd = mounts.clone(str(tmp_path / "beside"))
    try:
        place = client.share(sandbox, "beside", {"root": fd})["root"]
    finally:
        os.close(fd)
    yield
    assert sh(tapwright, f"echo works > {place}/file; cat {place}/file") == "works\n"
    for container in ("beside", "test"):
        client.unshare(sandbox, container)


def test_no_space(
    tapwright: Tapwright, sandbox: registry.Sandbox, small: Path, beside: None
) -> None:
    place = shown(sandbox, small)
    said = sh(tapwright, f"dd if=/dev/zero of={place}/big bs=64k count=64")
    assert "No space left on device" in said
    assert (small / "big").stat().st_size == 1 << 20
    assert (
        sh(tapwright, f"rm {place}/big; echo small > {place}/file; cat {place}/file") == "small\n"
    )


def test_a_source_that_is_removed(
    tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path, beside: None
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("there\n")
    place = shown(sandbox, source)
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
    """By who unmounts it: the guest keeps what it was shown, as a container by runc does."""
    (small / "file").write_text("there\n")
    place = shown(sandbox, small)
    subprocess.run(["umount", small], check=True)
    assert sh(tapwright, f"cat {place}/file; echo more >> {place}/file") == "there\n"
    assert sh(tapwright, f"cat {place}/file") == "there\nmore\n"
