"""argparse that starts faster: the original asks for the terminal's size for each argument, through
a module that takes 2 ms to import."""

import argparse
from typing import Any

from tapwright.cli import output


def add_id(command: Any, name: str = "id", of_containers: bool = False, **more: Any) -> None:
    """Add the argument ID: a sandbox, or with `of_containers` also any container in it."""
    words = "the id of a sandbox, or the beginning of its id"
    if of_containers:
        words = "the id of a sandbox, or of one of its containers, or the beginning of an id"
    command.add_argument(name, metavar="ID", help=words, **more)


class Parser(argparse.ArgumentParser):
    """A parser that prints descriptions of several lines unchanged. With `mixes`, options may also
    stand between and after the words of a list."""

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
