"""Types of what was read from a file."""

from typing import Any

import pytest

from tapwright import shapes

pytestmark = pytest.mark.unit


class Union314:
    """`int | None` as Python 3.14 has it (Objects/unionobject.c: union_origin)."""

    __args__ = int, type(None)
    __origin__ = property(type)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (str, ["", "a"], [None, 1, [], b""]),
        (int, [0, -1, 1 << 70], [True, 1.0, "1", None]),
        (float, [0, 0.5], [True, "1", None]),
        (bool, [True], [0, None]),
        (list, [[], [1]], [(), {}, "a"]),
        (list[str], [[], ["a"]], [["a", 1], "a", None]),
        (list[list[str]], [[["a"]]], [[["a", 1]], ["a"]]),
        (dict, [{}], [[], None]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, []]),
        (dict[str, Any] | None, [None, {"a": object()}], [[], 0]),
        (int | str, [1, "a"], [1.5, None]),
        (Union314(), [1, None], [1.5, "a"]),
        (object, [None, 1, []], []),
        (list[Any], [[None, 1]], [None]),
    ],
)
def test_what_fits(kind: Any, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if not shapes.fits(value, kind)] == []
    assert [value for value in wrong if shapes.fits(value, kind)] == []


def test_mistakes_are_named() -> None:
    shape = {"a": int, "b": list[str], "c": dict[str, Any] | None}
    assert shapes.mistake({"a": 1, "b": [], "c": None, "d": 5}, shape) == ""
    assert shapes.mistake({"a": 1, "b": []}, shape) == "c is missing"
    assert shapes.mistake({"a": "1"}, shape) == "a must be a whole number"
    assert shapes.mistake({"a": 1, "b": [1]}, shape) == "b must be a list"
    assert shapes.mistake({"a": 1, "b": [], "c": 1}, shape) == "c must be an object or null"
