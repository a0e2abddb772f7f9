"""argparse, without what makes it slow to start: it asks for the terminal's size, through a module
that takes 2 ms to import, for each argument that it is told of."""

import argparse
from typing import Any

from tapwright.cli import output


class Parser(argparse.ArgumentParser):
    """Prints descriptions and epilogs of several lines as they are written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **options})


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=output.columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return text
        return super()._fill_text(text, width, indent)
