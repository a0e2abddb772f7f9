"""The rooms of docs/architecture.md: which may import which."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapwright

pytestmark = pytest.mark.unit

PACKAGE = Path(tapwright.__file__).parent
ORDER = (
    *(
        "cli",
        "testing",
        "library",
        "diagnosis",
        "capture",
        "metrics",
        "netmon",
        "oci",
        "supervisor",
        "control",
        "sandbox",
        "nics",
        "state",
        "endpoint",
        "hypervisor",
        "agent",
        "image",
        "cni",
    ),
    "linux",
)
EVERYBODYS = ("command", "config", "dataclass", "errors", "progress", "shapes")
MODULES = sorted(PACKAGE.rglob("*.py"))
BENCH = Path(__file__).parents[1] / "bench"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "tapwright" else filter(is_module, names)
            if not all(map(is_module, names)):
                yield node.module


def is_module(name: str) -> bool:
    root = BENCH.parent if name.startswith("bench.") else PACKAGE.parent
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def rooms(path: Path) -> set[str]:
    return {
        name.split(".")[1]
        for name in imports(path)
        if name.startswith("tapwright.") and name != "tapwright.__version__"
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_downwards(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        allowed: tuple[str, ...] = ("library", "sandbox", "errors")  # what it shows, when asked
    elif room == "cni":
        allowed = ("cni",)
    elif room in ORDER:
        allowed = (*ORDER[ORDER.index(room) :], *EVERYBODYS)
    else:
        allowed = EVERYBODYS
    assert rooms(path) <= set(allowed)


def test_no_caller_loads_what_runs_in_the_supervisor() -> None:
    """Rooms above `supervisor` and below are other processes than its own."""
    own = {"supervisor", "control"}
    loading = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0] not in own and rooms(path) & own
    }
    assert loading == {"cli/image.py"}  # which makes templates


def test_no_circles_of_modules() -> None:
    """Not even of imports inside functions, and of those for types."""
    left = {}
    for path in [*MODULES, *BENCH.glob("*.py")]:
        root = BENCH.parent if path.parent == BENCH else PACKAGE.parent
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        left[name.removesuffix(".__init__")] = set(imports(path))
    del left["tapwright"]  # which imports nothing before the library is asked for
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_what_runs_in_the_guest_is_standard_library() -> None:
    from tapwright.image import sources

    for path in sources.own_sources().values():
        if path.suffix == ".py":
            roots = {name.split(".")[0] for name in imports(path)} - {"tapwright"}
            assert roots <= sys.stdlib_module_names, path


@pytest.mark.parametrize(
    "room",
    sorted({path.parent for path in PACKAGE.rglob("*/__init__.py")}),
    ids=lambda room: str(room.relative_to(PACKAGE)),
)
def test_every_room_names_its_modules(room: Path) -> None:
    """So that a reader finds a file by the folder's first page."""
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    files = [*room.glob("*.py"), *(path.parent for path in room.glob("*/__init__.py"))]
    modules = {path.stem for path in files if not path.name.startswith("__")}
    assert {name for name in modules if f"`{name}`" not in text} == set()


def test_each_room_has_a_test_for_other_releases() -> None:
    tests = Path(__file__).parent
    marked = {
        path.relative_to(tests).parts[0]
        for path in tests.rglob("test_*.py")
        if "@pytest.mark.smoke\n" in path.read_text()
    }
    elsewhere = {
        "testing",
        "supervisor",
        "control",
        "nics",
        "state",
    }  # tests/library, tests/sandbox
    assert marked == {*ORDER, "config", "platforms"} - elsewhere
