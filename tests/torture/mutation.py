"""Documents that are almost right, as a mistake, a version to come or an attacker makes them."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

Json = Any

# What finds the places where a type, a size or an alphabet was taken for granted.
_ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 1 << 64, 10**30, 0.5, 1e308, -0.0),
        *("", "0", "-1", ".", "..", "/", "a/b", "\0", "\ud800", "é", "x" * 300, "eth0", "1.0.0"),
        *("10.0.0.1", "10.0.0.1/24", "fd00::1/64", "::", "0.0.0.0/0", "%d", "a b", "\n", "\x1b[2J"),
        *([], {}, [[]], [{}], [None], [0], [""], {"": ""}, {"a": None}, ["a", 1], "٣", "²"),
    ]
)


def _places(document: Json, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(holder, key or index) of each part."""
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            found.append((document, key))
            _places(value, found)
    return found


@st.composite
def mutated(draw: st.DrawFn, documents: list[Json], odd: st.SearchStrategy[Json] = _ODD) -> Json:
    """One of the documents, with some of its parts missing, doubled, exchanged or odd."""
    # In a list, so that the whole can be exchanged, too.
    whole = [copy.deepcopy(draw(st.sampled_from(documents)))]
    for _ in range(draw(st.integers(1, 4))):
        places = _places(whole, [])
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(("odd", "odd", "odd", "gone", "other", "double"))):
            case "gone" if holder is not whole:
                del holder[key]
            case "other":
                other, place = places[draw(st.integers(0, len(places) - 1))]
                holder[key] = copy.deepcopy(other[place])
            case "double" if isinstance(holder, list) and holder is not whole:
                holder.append(copy.deepcopy(holder[key]))
            case _:
                holder[key] = copy.deepcopy(draw(odd))
    return whole[0]


def as_text(document: Json) -> str:
    """As a file has it."""
    return json.dumps(document)
