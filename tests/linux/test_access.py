"""Where others could put something in the place of a file."""

import os
from pathlib import Path

import pytest

from tapwright.linux import access

OTHER = 65534


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "a" / "b" / "c"
    place.mkdir(parents=True)
    for path in (place, place.parent, place.parent.parent):
        path.chmod(0o755)
    return place


def test_what_is_roots_alone(place: Path) -> None:
    assert access.foothold(place) is None
    assert access.foothold(place / "not" / "there") is None
    (place / "link").symlink_to("../../b/c")
    assert access.foothold(place / "link" / ".." / "c") is None


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_directory_on_the_way_that_others_can_write_to(place: Path, mode: int) -> None:
    place.parent.chmod(mode)
    assert access.foothold(place) == place.parent
    place.parent.chmod(0o1777)
    assert access.foothold(place) is None
    place.chmod(0o1777)
    assert access.foothold(place) == place, "others can make files there"


@pytest.mark.parametrize("depth", [0, 1])
def test_what_is_another_users(place: Path, depth: int) -> None:
    theirs = [place, place.parent][depth]
    os.chown(theirs, OTHER, OTHER)
    assert access.foothold(place) == theirs


def test_links(place: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(place.parent)
    assert access.foothold(link / "c") is None
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    assert access.foothold(link / "c") == link
    os.chown(link, 0, 0, follow_symlinks=False)
    place.parent.chmod(0o777)
    assert access.foothold(link / "c") == place.parent, "behind the link"
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"):
        access.foothold(tmp_path / "round")
