"""Output of all commands: JSON for programs, tables for people, progress on stderr; and the check
for root."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from tapwright.errors import TapwrightError, shown

_COLUMNS = 80


def need_root() -> None:
    if os.geteuid() != 0:
        raise TapwrightError(
            "only root can do this: sandboxes need network namespaces and TAP devices. Run it "
            "with sudo"
        )


def columns() -> int:
    """The width of the terminal, or a default."""
    try:
        return os.get_terminal_size(1).columns or _COLUMNS
    except OSError:
        return _COLUMNS


def print_json(content: Any) -> None:
    print(json.dumps(content))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; without rows only its head."""
    lines = [head, *rows]
    widths = [max(len(shown(line[column])) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (shown(cell).ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def show_progress(text: str) -> None:
    """Print a step: in place on a terminal, as a line elsewhere."""
    text = shown(text)
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text} …", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def show_warning(text: str) -> None:
    end_progress()
    print(f"tapwright: {text}", file=sys.stderr, flush=True)


def end_progress() -> None:
    """Clear the line of the progress."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
