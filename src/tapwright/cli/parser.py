"""argparse, without what makes it slow to start: it asks for the terminal's size, through a module
that takes 2 ms to import, for each argument that it is told of."""

import argparse
import os
from typing import Any

_COLUMNS = 80


class Parser(argparse.ArgumentParser):
    """Prints descriptions and epilogs of several lines as they are written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **options})


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return text
        return super()._fill_text(text, width, indent)


def _columns() -> int:
    try:
        return os.get_terminal_size(1).columns or _COLUMNS
    except OSError:
        return _COLUMNS
