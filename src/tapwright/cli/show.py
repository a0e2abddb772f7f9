"""`tapwright sandbox show`: the way of a sandbox's packets, as a drawing."""

import argparse
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from tapwright.cli import output
from tapwright.cli.parser import add_id
from tapwright.errors import UsageError

if TYPE_CHECKING:
    from tapwright.diagnosis.way import Picture

_SECONDS = 2.0


def add_command(commands: Any) -> None:
    command = commands.add_parser(
        "show",
        help="draw the way of a sandbox's packets, and name faults",
        description="Draw the way of a sandbox's packets. For each NIC the drawing has the guest's "
        "end, QEMU's NIC, the TAP, the tc filters, the interface of the namespace, its peer, the "
        "bridge, the gateway and the host's NIC, with their addresses, states and counters, and "
        "the CNI plugin that made each. An arrow down is the way from the guest to the network, an "
        "arrow up the way back. Complaints say what keeps packets from arriving. The command "
        "changes nothing. The exit status is 0 even if there are complaints.",
    )
    which = command.add_mutually_exclusive_group(required=True)
    add_id(which, nargs="?")
    which.add_argument("--all", action="store_true", help="draw all sandboxes of this host")
    command.add_argument(
        "--json", action="store_true", help="print the picture as JSON on one line (--all: a list)"
    )
    command.add_argument(
        "--svg", metavar="FILE", help="write the picture to FILE as an SVG drawing (-: to stdout)"
    )
    command.add_argument(
        "--html",
        metavar="FILE",
        help="write the picture to FILE as one page for a browser, which fetches nothing (-: to "
        "stdout)",
    )
    command.add_argument(
        "--watch",
        action="store_true",
        help="draw anew every two seconds until Ctrl-C; with --html, print the address of a page "
        "that refreshes itself, which only this machine can open",
    )
    command.set_defaults(run=_show)


def _show(arguments: argparse.Namespace) -> None:
    output.need_root()
    if arguments.watch:
        if arguments.json or arguments.svg:
            raise UsageError("--watch is for the terminal, or for --html")
        with contextlib.suppress(KeyboardInterrupt):
            _watch_page(arguments) if arguments.html else _watch_terminal(arguments)
        return
    pictures = _pictures(arguments)
    if arguments.svg:
        from tapwright.diagnosis import drawing

        _write(arguments.svg, drawing.svg(pictures))
    if arguments.html:
        from tapwright.diagnosis import page

        _write(arguments.html, page.page(pictures))
    if arguments.json:
        import dataclasses

        found = [dataclasses.asdict(picture) for picture in pictures]
        output.print_json(found if arguments.all else found[0])
    elif not arguments.svg and not arguments.html:
        print("\n\n".join(_drawn(picture) for picture in pictures) or "There is no sandbox.")


def _pictures(arguments: argparse.Namespace) -> "list[Picture]":
    from tapwright.diagnosis import checking, collecting
    from tapwright.state import registry

    if not arguments.all:
        found = registry.find(arguments.root, arguments.id)
        return [checking.check(collecting.picture(found))]
    pictures = collecting.pictures(registry.listing(arguments.root))
    for picture in pictures:
        checking.check(picture)
    checking.check_all(pictures)
    return pictures


def _watch_page(arguments: argparse.Namespace) -> None:
    from tapwright.diagnosis import page
    from tapwright.diagnosis.live import Live

    pictures = _pictures(arguments)
    live = Live(lambda: _pictures(arguments))
    _write(arguments.html, page.page(pictures, link=live.address))
    print(live.address, file=sys.stderr if arguments.html == "-" else sys.stdout, flush=True)
    try:
        live.serve()
    finally:
        live.close()


def _watch_terminal(arguments: argparse.Namespace) -> None:
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
    while True:
        drawn = "\n\n".join(_drawn(picture) for picture in _pictures(arguments))
        print(f"{clear}{drawn or 'There is no sandbox.'}", flush=True)
        time.sleep(_SECONDS)


def _write(path: str, text: str) -> None:
    """Write to a file, or to stdout for `-`. Raises OSError."""
    if path == "-":
        sys.stdout.write(text)
    else:
        # Only root may know the connections of sandboxes, and the address of the live page.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)


def _drawn(picture: "Picture") -> str:
    from tapwright.diagnosis import terminal

    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    return terminal.drawing(picture, output.columns(), colours, unicode=encoding == "utf8")
