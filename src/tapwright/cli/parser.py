"""argparse, without what makes it slow to start: it asks for the terminal's size, through a module
that takes 2 ms to import, for each argument."""

import argparse
from typing import Any

from tapwright.cli import output


class Parser(argparse.ArgumentParser):
    """Prints descriptions and epilogs of several lines as they are written. With `mixes` options
    may also stand between and after words of which there may be any number."""

    mixes = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if not self.mixes:
            return super().parse_known_args(args, namespace)
        self.mixes = False  # what follows calls this
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.mixes = True


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=output.columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return text
        return super()._fill_text(text, width, indent)
