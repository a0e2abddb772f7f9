"""Documents that are almost right, as a mistake, a version to come or an attacker makes them."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

Json = Any

Choose = Callable[[int], int]
"""A number from 0 to below the one that is given: drawn by a seed, by hypothesis, or by atheris."""
Make = Callable[[Choose], Any]
"""What makes an input out of such numbers."""

# What finds the places where a type, a size or an alphabet was taken for granted.
_ODD: tuple[Json, ...] = (
    *(None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 1 << 64, 10**30, 0.5, 1e308, -0.0),
    *(10**400, float("inf"), float("nan")),
    *("", "0", "-1", ".", "..", "/", "a/b", "\0", "\ud800", "é", "x" * 300, "eth0", "1.0.0"),
    *("10.0.0.1", "10.0.0.1/24", "fd00::1/64", "::", "0.0.0.0/0", "%d", "a b", "\n", "\x1b[2J"),
    *([], {}, [[]], [{}], [None], [0], [""], {"": ""}, {"a": None}, ["a", 1], "٣", "²"),
)
_WAYS = ("odd", "odd", "odd", "gone", "other", "double")


def _places(document: Json, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(holder, key or index) of each part."""
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            found.append((document, key))
            _places(value, found)
    return found


def one_of(values: Sequence[Any]) -> Make:
    return lambda choose: values[choose(len(values))]


def mutated(documents: Sequence[Json], odd: Sequence[Json] = _ODD) -> Make:
    """One of the documents, with some of its parts missing, doubled, exchanged or odd."""

    def make(choose: Choose) -> Json:
        # In a list, so that the whole can be exchanged, too.
        whole = [copy.deepcopy(documents[choose(len(documents))])]
        for _ in range(1 + choose(4)):
            places = _places(whole, [])
            holder, key = places[choose(len(places))]
            match _WAYS[choose(len(_WAYS))]:
                case "gone" if holder is not whole:
                    del holder[key]
                case "other":
                    other, place = places[choose(len(places))]
                    holder[key] = copy.deepcopy(other[place])
                case "double" if isinstance(holder, list) and holder is not whole:
                    holder.append(copy.deepcopy(holder[key]))
                case _:
                    holder[key] = copy.deepcopy(odd[choose(len(odd))])
        return whole[0]

    return make


def as_text(document: Json) -> str:
    """As in a file."""
    return json.dumps(document)
