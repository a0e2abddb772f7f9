"""`tapwright gc`: release what is left of dead sandboxes."""

import argparse
import dataclasses
import sys
from collections.abc import Container

from tapwright.cli import output
from tapwright.errors import shown


def add_commands(command: argparse.ArgumentParser, words: Container[str]) -> None:
    """`gc` has options, and no commands below it."""
    command.description = (
        "Release what sandboxes, spares and unfinished templates have left after a reboot of the "
        "host or after a kill: namespaces, leases, port mappings, ports of bridges, files. Leave "
        "alone what is alive, and containers that a platform has made since the host's last boot. "
        "Print one line for each thing released. "
        "Exit status 1 if something could not be released."
    )
    command.add_argument(
        "--force",
        action="store_true",
        help="remove dead sandboxes even where something can't be released, and print what",
    )
    command.add_argument("--json", action="store_true", help="print the released things as JSON")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import os

    from tapwright import config
    from tapwright.oci import leftovers

    output.need_root()
    templates = config.load(arguments.config).factory.template_path
    found = leftovers.collect(os.path.abspath(arguments.root), templates, arguments.force)
    for text in found.given_up:
        print(f"tapwright: given up: {shown(text)}", file=sys.stderr)
    for text in found.problems:
        print(f"tapwright: {shown(text)}", file=sys.stderr)
    if arguments.json:
        output.print_json(dataclasses.asdict(found))
    else:
        _print("container", found.containers)
        _print("sandbox", found.sandboxes)
        _print("spare", found.spares)
        _print("draft of a template", found.drafts)
    return 1 if found.problems else 0


def _print(kind: str, names: list[str]) -> None:
    for name in names:
        print(f"{kind} {shown(name)}")
