"""The reference of the library, docs/library-reference.md, from the docstrings of its public names.

`PYTHONPATH=scripts python3 -m reference.library` writes the page. It parses the sources, so its
text does not depend on the version of Python.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

_PROJECT = Path(__file__).parents[2]
_SOURCES = _PROJECT / "src/tapwright"
PAGE = _PROJECT / "docs/library-reference.md"
# For the library itself, and for `library.foreground`.
_INNER = frozenset(
    (
        *("Process.room", "Process.finish", "Process.fileno", "Process.pump"),
        *("Process.wait_until", "Output.read_waiting", "Output.add"),
    )
)
_NAMES = (
    ("library/sandbox.py", ("Sandbox", "sandboxes")),
    ("sandbox/execution.py", ("Process", "Output", "Completed")),
    ("library/nics.py", ("Nics", "Nic", "Routes", "Route")),
    ("library/files.py", ("Files",)),
    ("library/asynchronous.py", ("AsyncSandbox", "AsyncProcess", "AsyncNic")),
)
_HEAD = """\
# The library's reference

[The library](library.md) shows these names in use. `nics` of a sandbox is a `Nics`, `routes` a
`Routes`, `files` a `Files`. The asynchronous classes have the same methods, with `await`.
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def page() -> str:
    parts = [_HEAD]
    for name, wanted in _NAMES:
        tree = ast.parse((_SOURCES / name).read_text())
        found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | Function)}
        for each in wanted:
            parts += _described(found[each], found)
    return "\n".join(parts)


def _described(
    node: ast.ClassDef | Function, others: dict[str, ast.ClassDef | Function]
) -> Iterator[str]:
    if not isinstance(node, ast.ClassDef):
        yield f"## `{node.name}({_arguments(node)})`\n\n{_text(node)}"
        return
    yield f"## {node.name}\n\n{_text(node)}"
    bases = [others[name] for name in map(ast.unparse, node.bases) if name in others]
    for member in (member for each in (*bases, node) for member in each.body):
        if not isinstance(member, Function) or member.name[0] == "_" or not _text(member):
            continue
        name = f"{node.name}.{member.name}"
        is_overload = "overload" in map(ast.unparse, member.decorator_list)
        if not is_overload and name not in _INNER:
            yield _function(member, name)


def _function(node: Function, name: str) -> str:
    decorators = {ast.unparse(each) for each in node.decorator_list}
    if decorators & {"property", "functools.cached_property"}:
        return f"### `{name}`\n\n{_text(node)}"
    prefix = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"### `{prefix}{name}({_arguments(node)})`\n\n{_text(node)}"


def _arguments(node: Function) -> str:
    """The names and defaults of a function's arguments, as a caller writes them."""
    given = node.args
    words = [each.arg for each in given.args if each.arg not in ("self", "cls")]
    for place, default in enumerate(reversed(given.defaults), 1):
        words[-place] += f"={_default(default)}"
    if given.kwonlyargs:
        words.append("*")
    for each, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        words.append(each.arg if value is None else f"{each.arg}={_default(value)}")
    return ", ".join([*words, *([f"**{given.kwarg.arg}"] if given.kwarg else [])])


def _default(value: ast.expr) -> str:
    text = ast.unparse(value)
    return "…" if text.startswith("_") else "0o644" if text == str(0o644) else text


def _text(node: ast.ClassDef | Function) -> str:
    text = ast.get_docstring(node)
    return f"{text}\n" if text else ""


if __name__ == "__main__":
    PAGE.write_text(page())
