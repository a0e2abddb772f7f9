"""The drawing as SVG, and the page around it."""

import copy
import re
from xml.etree import ElementTree

import pytest

from tapwright.diagnosis import checking, drawing, page, way
from tapwright.diagnosis.way import Picture
from tests.diagnosis import golden, pictures
from tests.diagnosis.test_terminal import broken

pytestmark = pytest.mark.unit

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '<script>alert("no")</script>&<b onclick=x>'


def host() -> list[Picture]:
    """Three sandboxes, two of them in one bridge."""
    found = []
    for number in range(3):
        picture = pictures.picture(pictures.nic(mac=f"02:00:00:00:00:a{number}"))
        picture.id = f"box{number}"
        for point in picture.ways[0].points:
            point.place = point.place.replace("box", picture.id)
            if point.kind == way.PEER:
                point.name = f"veth{number}"
            if number == 2:
                point.name = point.name.replace("br-dual", "br-other")
        found.append(picture)
    return found


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314  # we have written it


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}text")]


def test_as_before() -> None:
    golden.assert_as_before("good.svg", drawing.svg([pictures.picture()]))
    golden.assert_as_before("broken.svg", drawing.svg([broken()]))
    golden.assert_as_before("host.svg", drawing.svg(host()))


@pytest.mark.parametrize("found", [[pictures.picture()], [broken()], host(), []])
def test_all_of_it_is_within(found: list[Picture]) -> None:
    root = parsed(drawing.svg(found))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [
        tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        for rect in root.iter(f"{SVG}rect")
    ]
    for x, y, w, h in boxes:
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    for number, (x, y, w, h) in enumerate(boxes[1:]):
        for x2, y2, w2, h2 in boxes[number + 2 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, "one over another"
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height


def test_what_is_shared_is_one_box() -> None:
    told = texts(drawing.svg(host()))
    assert [line for line in told if "bridge br-dual" in line] == ["● bridge br-dual"]
    assert [line for line in told if "bridge br-other" in line] == ["● bridge br-other"]
    assert [line for line in told if "host NIC" in line] == ["● host NIC enp1s0"]
    assert len([line for line in told if "gateway" in line]) == 2
    assert len([line for line in told if "veth peer" in line]) == 3


def test_complaints_are_in_it() -> None:
    told = " ".join(texts(drawing.svg([broken()])))
    for complaint in broken().complaints:
        assert complaint.what in told


def evil() -> Picture:
    picture = pictures.picture()
    picture.ways[0].points[0].addresses = [EVIL, "\x1b[2J\x00\ud800"]
    picture.ways[0].points[0].name = EVIL
    picture.guest_failure = EVIL
    return checking.check(picture)


def test_words_of_a_guest_are_text() -> None:
    told = " ".join(texts(drawing.svg([evil()])))
    assert EVIL in told
    whole = page.page([evil()])
    assert "<script>alert" not in whole
    assert "<b onclick" not in whole
    assert "\x00" not in whole
    whole.encode()


def test_the_page_fetches_nothing() -> None:
    whole = page.page([broken()])
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", whole)
    assert not re.search(r"\b(src|href)=\"(?!data:)", whole)
    assert "connect-src 'none'" in whole


def test_the_same_twice() -> None:
    picture = broken()
    assert drawing.svg([picture]) == drawing.svg([copy.deepcopy(picture)])
