"""The drawing for a terminal."""

import re

import pytest

from tapwright.diagnosis import checking, terminal, way
from tapwright.diagnosis.way import Picture
from tests.diagnosis import golden, pictures

pytestmark = pytest.mark.unit


def broken() -> Picture:
    picture = pictures.picture(pictures.nic(), pictures.nic("eth1", "02:00:00:00:00:1a", index=3))
    first, second = picture.ways
    first.points[5].state = way.DOWN
    second.points[3].filters.pop()
    second.points[6].mtu = 1400
    picture.guest_failure = "the agent did not answer look within 3 s"
    return checking.check(picture)


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_as_before(columns: int) -> None:
    golden.assert_as_before(
        f"good-{columns}.txt", terminal.drawing(pictures.picture(), columns) + "\n"
    )
    golden.assert_as_before(f"broken-{columns}.txt", terminal.drawing(broken(), columns) + "\n")


@pytest.mark.parametrize("columns", [40, 47, 63, 80, 110])
def test_it_is_no_wider_than_the_terminal(columns: int) -> None:
    assert max(map(len, terminal.drawing(broken(), columns).splitlines())) <= columns


def test_colours_say_what_is_wrong() -> None:
    text = terminal.drawing(broken(), 80, colours=True)
    assert "\x1b[31m✗ \x1b[0m" in text
    assert re.sub(r"\x1b\[\d+m", "", text) == terminal.drawing(broken(), 80)


def test_in_ascii() -> None:
    assert terminal.drawing(broken(), 80, unicode=False).isascii()


def test_words_of_a_guest_command_nothing() -> None:
    picture = pictures.picture()
    picture.ways[0].points[0].addresses.append("\x1b[2J\r\nall is well")
    picture.ways[0].points[0].facts += ["x" * 5000] * 100
    text = terminal.drawing(checking.check(picture), 80)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "and 94 more" in text
