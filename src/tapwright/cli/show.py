"""`tapwright sandbox show`: the way of a sandbox's packets, as a drawing."""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from tapwright.cli import output

if TYPE_CHECKING:
    from tapwright.diagnosis.way import Picture


def add_command(commands: Any) -> None:
    command = commands.add_parser(
        "show",
        help="draw the way of a sandbox's packets, and complain of faults",
        description="Draw the way of a sandbox's packets. For each NIC the drawing has the guest's "
        "end, QEMU's NIC, the TAP, the tc filters, the interface of the namespace, its peer, the "
        "bridge, the gateway and the host's NIC, with their addresses, states and counters, and "
        "the CNI plugin that made each. Packets go away from the guest at an arrow down, and "
        "towards it at one up. "
        "Complaints say what keeps packets from arriving. Nothing is changed. The exit status is 0 "
        "also where there are complaints.",
    )
    command.add_argument("id", metavar="ID", help="the id of a sandbox, or the beginning of its id")
    command.add_argument(
        "--json", action="store_true", help="print the picture as JSON on one line"
    )
    command.set_defaults(run=_show)


def _show(arguments: argparse.Namespace) -> int:
    output.need_root()
    picture = _picture(arguments)
    if arguments.json:
        import dataclasses

        output.print_json(dataclasses.asdict(picture))
        return 0
    print(_drawn(picture))
    return 0


def _picture(arguments: argparse.Namespace) -> "Picture":
    from tapwright.diagnosis import checking, collecting
    from tapwright.state import registry

    return checking.check(collecting.picture(registry.find(arguments.root, arguments.id)))


def _drawn(picture: "Picture") -> str:
    from tapwright.diagnosis import told

    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    return told.drawing(picture, output.columns(), colours, unicode=encoding == "utf8")
