"""Our dataclasses beside the original's."""

import dataclasses
import pprint
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tapwright import dataclass as ours

pytestmark = pytest.mark.unit


class Pair(NamedTuple):
    """The same two classes, one that may change, and one that may not."""

    inner: Any
    frozen: Any


def made(dataclass: Any, field: Any) -> Pair:
    @dataclass
    class Inner:
        """With each kind of default."""

        name: str
        number: int = 3
        texts: list[str] = field(default_factory=list)

        @property
        def both(self) -> str:
            return f"{self.name}{self.number}"

    @dataclass(frozen=True)
    class Frozen:
        """With another one in it."""

        inner: Inner
        inners: list[Inner] = field(default_factory=list)
        text: str = ""

        def __post_init__(self) -> None:
            if self.text == "wrong":
                raise ValueError(self.text)

    return Pair(Inner, Frozen)


OURS = made(ours.dataclass, ours.field)
ORIGINAL = made(dataclasses.dataclass, dataclasses.field)


@pytest.mark.parametrize(
    "use",
    [
        lambda of: of.inner("a"),
        lambda of: of.inner("a", 4),
        lambda of: of.inner(number=4, name="a").both,
        lambda of: list(vars(of.inner(number=4, name="a"))),
        lambda of: of.inner("a", texts=["b"]) == of.inner("a", 3, ["b"]),
        lambda of: of.inner("a") == of.inner("b"),
        lambda of: of.inner("a") == "a",
        lambda of: of.inner("a").texts is of.inner("a").texts,
        lambda of: of.inner.number,
        lambda of: hasattr(of.inner, "texts"),
        lambda of: of.inner.__hash__,
        lambda of: hash(of.frozen("x", (), "y")) == hash(of.frozen("x", (), "y")),
        lambda of: of.frozen(of.inner("a"), [of.inner("b")]),
        lambda of: ours.replace(of.frozen(1, [], "c"), text="d"),
        lambda of: dataclasses.replace(of.frozen(1, [], "c"), text="d"),
        lambda of: dataclasses.asdict(of.frozen(of.inner("a"), [of.inner("b")])),
        lambda of: dataclasses.is_dataclass(of.inner),
        lambda of: (of.inner.__dataclass_params__, of.frozen.__dataclass_params__),
        lambda of: pprint.pformat(of.inner("a")),
        lambda of: [(each.name, each.default) for each in dataclasses.fields(of.inner)],
        lambda of: of.inner.__match_args__,
        lambda of: of.inner(),
        lambda of: of.inner("a", 1, [], 2),
        lambda of: of.inner("a", name="b"),
        lambda of: of.inner("a", other="b"),
        lambda of: of.frozen(1, [], "wrong"),
        lambda of: setattr(of.frozen(1), "text", "d"),
        lambda of: delattr(of.frozen(1), "text"),
        lambda of: ours.replace(of.frozen(1), other=2),
    ],
)
def test_it_does_what_the_original_does(use: Callable[[Pair], Any]) -> None:
    def outcome(of: Pair) -> object:
        try:
            found = use(of)
        except Exception as error:
            return type(error)
        return repr(found)

    assert outcome(OURS) == outcome(ORIGINAL)


def test_nested_ones_become_objects() -> None:
    nested = OURS.frozen(OURS.inner("a", texts=["b"]), [OURS.inner("c")])
    assert ours.asdict(nested) == dataclasses.asdict(nested)


def test_the_start_of_a_sandbox_does_without_the_original() -> None:
    """Nor without what takes as long to load."""
    program = (
        "import sys\n"
        "import tapwright.library.sandbox, tapwright.config.reading, tapwright.sandbox.spares\n"
        "print({'dataclasses', 'inspect', 'asyncio', 'logging', 'subprocess'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
