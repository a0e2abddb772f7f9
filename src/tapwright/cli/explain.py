"""`tapwright sandbox explain`: where a packet ends, and why."""

import argparse
from typing import TYPE_CHECKING, Any

from tapwright.cli import output
from tapwright.cli.parser import add_id
from tapwright.errors import UsageError, shown

if TYPE_CHECKING:
    from tapwright.diagnosis.case import Explanation, Wish


def add_command(commands: Any) -> None:
    command = commands.add_parser(
        "explain",
        help="say why a packet of a sandbox does not arrive",
        description="Send a few packets from the guest, or with --from towards it, follow them, "
        "and say in words whether they arrive, where they end if not, why, and what to do. Exit "
        "status 0 when they arrive, 1 when they do not. The command changes nothing.",
    )
    add_id(command)
    command.add_argument(
        "--to",
        metavar="ADDRESS[:PORT]|NAME[:PORT]",
        default="",
        help="send the packets to this target, an IPv6 address with a port as [ADDRESS]:PORT; the "
        "guest looks up a name (default: the guest's default gateway; with --from, the guest)",
    )
    command.add_argument(
        "--from",
        metavar="ADDRESS",
        dest="source",
        default=None,
        help="send packets to the guest from this address of the host ('host': from any); then "
        "--to is :PORT, an address of the guest, or a port that the host publishes",
    )
    command.add_argument(
        "--udp", action="store_true", help="send UDP, not TCP, to the port of --to"
    )
    command.add_argument("--json", action="store_true", help="print the verdict as JSON")
    command.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    output.need_root()
    wish = wish_of(arguments.to, arguments.source, arguments.udp)
    from tapwright.diagnosis import explaining
    from tapwright.state import registry

    explanation = explaining.explain(registry.find(arguments.root, arguments.id), wish)
    if arguments.json:
        import dataclasses

        output.print_json(dataclasses.asdict(explanation))
    else:
        print("\n".join(map(shown, lines(explanation))))
    return 0 if explanation.arrives else 1


def wish_of(to: str, source: str | None, udp: bool) -> "Wish":
    """Raises UsageError."""
    from tapwright.diagnosis.case import Wish

    target, port = split(to)
    towards = source is not None
    return Wish(target, port, udp, "" if source in (None, "host") else str(source), towards)


def split(text: str) -> tuple[str, int]:
    """(address or name, port or 0). Raises UsageError."""
    if text.startswith("["):
        target, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"{text!r} is not [ADDRESS]:PORT")
        port = rest[1:]
        if not rest:
            return target, 0
    elif text.count(":") == 1:
        target, _, port = text.partition(":")
    else:
        return text, 0
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r}: a port is a number from 1 to 65535")
    return target, int(port)


def lines(explanation: "Explanation") -> list[str]:
    """The lines of the answer, for people."""
    verdict = explanation.verdict
    way = " → ".join(explanation.way)
    found = [f"{explanation.sandbox}: {explanation.question}"]
    if way:
        found.append(f"  way       {way}")
    if verdict is None:
        found.append("  arrives")
        return found + [f"  note      {note}" for note in explanation.notes]
    found += [f"  ends at   {verdict.hop}", f"  because   {verdict.why}"]
    found += [f"  seen      {seen}" for seen in verdict.evidence]
    for number, command in enumerate(verdict.remedy):
        found.append(f"  {'to mend' if not number else '':<9} {command}")
    if verdict.advice:
        found.append(f"  {'' if verdict.remedy else 'to mend':<9} {verdict.advice}")
    return found
