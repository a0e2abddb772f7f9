"""One file or directory of the host in several containers of a sandbox: it is one and the same."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.sandbox import client
from tapwright.state import registry
from tests.sandboxes import Tapwright, show

SANDBOX = "sources"
SHARE = "/run/tapwright/share"


@pytest.fixture(scope="module")
def sandbox(tapwright: Tapwright) -> Iterator[registry.Sandbox]:
    yield tapwright.run_with_share(SANDBOX)
    tapwright.run("sandbox", "delete", "--force", SANDBOX)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "volume"
    place.mkdir()
    (place / "file").write_text("content\n")
    return place


def sh(tapwright: Tapwright, command: str) -> str:
    return tapwright.exec(SANDBOX, "sh", "-c", f"({command}) 2>&1; true")


def test_it_is_there_as_long_as_somebody_has_it(
    tapwright: Tapwright, sandbox: registry.Sandbox, tree: Path
) -> None:
    first = show(sandbox, "one", tree)
    assert show(sandbox, "two", tree, name="other") == first
    assert show(sandbox, "two", tree / "file") != first
    client.of(sandbox).unshare("one")
    assert sh(tapwright, f"cat {first}/file") == "content\n"
    client.of(sandbox).unshare("two")
    assert sh(tapwright, f"ls {SHARE}") == ""


def test_one_that_is_apart(tapwright: Tapwright, sandbox: registry.Sandbox, tree: Path) -> None:
    shown = show(sandbox, "one", tree, apart=["root"])
    assert show(sandbox, "two", tree) != shown
    for container in ("one", "two"):
        client.of(sandbox).unshare(container)


def test_who_may_write_may_write(
    tapwright: Tapwright, sandbox: registry.Sandbox, tree: Path
) -> None:
    apart = show(sandbox, "zero", tree, read_only=True, apart=["root"])
    shown = show(sandbox, "one", tree, read_only=True)
    assert "Read-only file system" in sh(tapwright, f"touch {shown}/new")
    assert show(sandbox, "two", tree) == shown
    assert sh(tapwright, f"touch {shown}/new") == ""
    assert "Read-only file system" in sh(tapwright, f"touch {apart}/newer")
    for container in ("zero", "one", "two"):
        client.of(sandbox).unshare(container)
    assert sorted(os.listdir(tree)) == ["file", "new"]


def test_a_container_that_is_started_again_has_its_own_files(
    tapwright: Tapwright, sandbox: registry.Sandbox, tree: Path, tmp_path: Path
) -> None:
    """At once, though a guest knows for a while what was in a place."""
    for number in range(3):
        source = tmp_path / str(number)
        source.mkdir()
        (source / "file").write_text(f"{number}\n")
        shown = show(sandbox, "again", source)
        assert sh(tapwright, f"cat {shown}/file") == f"{number}\n"
        client.of(sandbox).unshare("again")


def test_an_old_owner_s_place_is_not_taken(
    tapwright: Tapwright, sandbox: registry.Sandbox, tree: Path, tmp_path: Path
) -> None:
    kept = show(sandbox, "one", tree)
    show(sandbox, "two", tree)
    client.of(sandbox).unshare("one")
    (tmp_path / "another").mkdir()
    new = show(sandbox, "one", tmp_path / "another")
    assert new != kept
    assert (sh(tapwright, f"ls {kept}"), sh(tapwright, f"ls {new}")) == ("file\n", "")
    for container in ("one", "two"):
        client.of(sandbox).unshare(container)
    assert sh(tapwright, f"ls {SHARE}") == ""
