"""That differences between two runs are seen."""

import pytest

from bench.programs import put
from tests.programs import programs
from tests.programs.box import Done
from tests.programs.comparison import ENDED, Difference, Known, differences, kernel, unexpected

pytestmark = pytest.mark.unit

RUNC: dict[str, dict[str, object]] = {
    "names.one": {"open": "ok", "stat": [1, 2], "long": list(range(30))},
    "names.two": {"read": "text", "nested": {"inner": True}},
}


def changed(check: str, **fields: object) -> list[Difference]:
    return differences(RUNC, RUNC | {check: {**RUNC[check], **fields}})


def test_nothing_differs() -> None:
    assert differences(RUNC, RUNC) == []


@pytest.mark.parametrize(
    ("check", "fields", "expected"),
    [
        ("names.one", {"open": "EACCES"}, ("names.one: open", "ok", "EACCES")),
        ("names.one", {"stat": [1, 3]}, ("names.one: stat", "[1, 2]", "[1, 3]")),
        ("names.one", {"long": [*range(29), 7]}, ("names.one: long: 29", "29", "7")),
        ("names.one", {"long": list(range(29))}, ("names.one: long: length", "30", "29")),
        ("names.one", {"new": "ok"}, ("names.one: new", "missing", "ok")),
        ("names.two", {"nested": "EPERM"}, ("names.two: nested", "1 results", "EPERM")),
        ("names.two", {"nested": {}}, ("names.two: nested: inner", "true", "missing")),
        ("names.two", {ENDED: "does not end"}, ("names.two", "2 results", "does not end")),
    ],
)
def test_a_field_differs(check: str, fields: dict[str, object], expected: tuple[str, ...]) -> None:
    assert changed(check, **fields) == [Difference(*expected)]


def test_a_check_that_is_missing() -> None:
    found = differences(RUNC, {"names.one": RUNC["names.one"]})
    assert found == [Difference("names.two", "2 results", "missing")]


def test_what_is_known() -> None:
    found = changed("names.one", open="EACCES")
    known = Known(r"names\.one: open", "EACCES", "opening")
    assert unexpected(found, [known]) == []
    assert unexpected(found, []) == ["names.one: open: runc 'ok', Tapwright 'EACCES'"]
    assert unexpected([], [known]) == ["opening: does not differ any more"]
    other = known._replace(tapwright="EPERM")
    assert len(unexpected(found, [other])) == 2


def test_what_depends_on_kernels() -> None:
    old, new = kernel("6.1.0-37-amd64\n"), kernel("6.12-rc1")
    assert (old, new) == ((6, 1), (6, 12))
    always = Known(".*", ".*", "always")
    assert always.holds(old, new)
    of_guests = always._replace(until=(6, 8))
    assert of_guests.holds(old, old)
    assert not of_guests.holds(old, new)
    of_both = of_guests._replace(since=(6, 8))
    assert of_both.holds(new, old)
    assert not of_both.holds(old, old)
    assert not of_both.holds(new, new)


def test_programs_differ() -> None:
    done = Done(0, "one\ntwo\n", 1.0)
    assert programs.difference(done, done._replace(seconds=9.0)) == ""
    other = done._replace(output="one\nthree\n")
    assert programs.difference(done, other) == "line 2: runc 'two', Tapwright 'three'"
    assert programs.difference(done, done._replace(output="one\n")).endswith("'nothing'")
    ended = programs.difference(done, done._replace(status=3))
    assert ended == "runc: status 0 (one / two); Tapwright: status 3 (one / two)"
    assert "did not end" in programs.difference(done, done._replace(status=None))


def test_a_table_is_put_into_a_page() -> None:
    page = "before\n<!-- here -->\nold\n\nolder\n<!-- /here -->\nbehind\n"
    expected = "before\n<!-- here -->\n| new \\1 |\n<!-- /here -->\nbehind\n"
    assert put(page, "here", "| new \\1 |") == expected
    with pytest.raises(ValueError, match="no marks for there"):
        put(page, "there", "")
