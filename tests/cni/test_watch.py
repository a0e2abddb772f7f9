"""Networks follow their directory."""

import json
from pathlib import Path

import pytest

from tapwright.cni import NetworkWatcher

pytestmark = pytest.mark.unit

SECONDS = 60.0


def write(path: Path, name: str = "n") -> None:
    path.write_text(json.dumps({"name": name, "plugins": [{"type": "p"}]}))


def names(watcher: NetworkWatcher) -> list[str]:
    return [network.name for network in watcher.networks]


def wait_for(watcher: NetworkWatcher, expected: list[str]) -> None:
    """One change may cause several reports."""
    while names(watcher) != expected:
        assert watcher.wait(SECONDS), f"no event, and still {names(watcher)}"


def test_files_come_change_and_go(tmp_path: Path) -> None:
    with NetworkWatcher(tmp_path) as watcher:
        assert not watcher.wait(0)
        write(tmp_path / "a.conflist", "a")
        wait_for(watcher, ["a"])
        write(tmp_path / "a.conflist", "b")
        wait_for(watcher, ["b"])
        write(tmp_path / "new", "c")
        (tmp_path / "new").rename(tmp_path / "c.conflist")
        wait_for(watcher, ["b", "c"])
        (tmp_path / "a.conflist").unlink()
        wait_for(watcher, ["c"])
        (tmp_path / "c.conflist").write_text("{")
        wait_for(watcher, [])
        while not watcher.problems:
            assert watcher.wait(SECONDS)
        assert watcher.problems[0].source.endswith("c.conflist")


def test_nothing_happens_without_a_change(tmp_path: Path) -> None:
    """Loading must not wake itself up: that would be polling."""
    write(tmp_path / "a.conflist")
    with NetworkWatcher(tmp_path) as watcher:
        write(tmp_path / "a.conflist", "b")
        wait_for(watcher, ["b"])
        while watcher.wait(0):
            pass
        assert not watcher.wait(0.2)


def test_folders_of_plugins(tmp_path: Path) -> None:
    (tmp_path / "a.conflist").write_text('{"name": "n", "plugins": [{"type": "p"}]}')
    with NetworkWatcher(tmp_path) as watcher:
        (tmp_path / "n").mkdir()
        (tmp_path / "n" / "x.conf").write_text('{"type": "q"}')
        while len(watcher.networks[0].plugins) < 2:
            assert watcher.wait(SECONDS)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_directory_comes_and_goes(tmp_path: Path, depth: int) -> None:
    directory = tmp_path.joinpath(*"abc"[:depth])
    with NetworkWatcher(directory) as watcher:
        for _ in range(2):
            directory.mkdir(parents=True)
            write(directory / "a.conflist")
            wait_for(watcher, ["n"])
            (directory / "a.conflist").unlink()
            for path in [directory, *directory.parents][:depth]:
                path.rmdir()
            wait_for(watcher, [])
