"""`tapwright cni`: run CNI networks; a drop-in for cnitool."""

import argparse
import json
import os
import sys
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any

from tapwright.cli import cni_environment as environment
from tapwright.cli import output
from tapwright.errors import UsageError, printable, shown

if TYPE_CHECKING:
    from tapwright.cni import CniError, Entry, Run, Runtime


def add_commands(group: argparse.ArgumentParser, words: Container[str]) -> None:
    commands = group.add_subparsers(metavar="COMMAND", required=True, prog=group.prog)
    for name, (run, add_arguments, help_text) in _COMMANDS.items():
        if name not in words:
            commands.add_parser(name, help=help_text, add_help=False)
            continue
        command = commands.add_parser(
            name,
            help=help_text,
            description=f"{help_text[0].upper()}{help_text[1:]}.",
            epilog=environment.DESCRIPTION,
        )
        if add_arguments:
            add_arguments(command)
        command.add_argument(
            "--cache-dir",
            metavar="DIR",
            help="keep attachments in this directory (default: /var/lib/cni)",
        )
        command.add_argument(
            "--trace",
            action="store_true",
            help="show each run of a plugin, with input and output, on stderr",
        )
        command.add_argument("--json", action="store_true", help="print the answer as JSON")
        command.set_defaults(run=run)


def _attachment_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("network", metavar="NET", help="the name of a network")
    command.add_argument("netns", metavar="NETNS", help="the path of a network namespace")
    command.add_argument(
        "-i",
        "--ifname",
        metavar="NAME",
        help="name the interface in the namespace (default: $CNI_IFNAME or eth0)",
    )
    command.add_argument(
        "--container-id",
        metavar="ID",
        help="set the container id (default: derived from NETNS, as by cnitool)",
    )


def _network_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("network", metavar="NET", help="the name of a network")
    command.add_argument(
        "netns", metavar="NETNS", nargs="?", help="accepted without effect, as by cnitool"
    )


def _gc_arguments(command: argparse.ArgumentParser) -> None:
    _network_arguments(command)
    command.add_argument(
        "--keep",
        metavar="ID/IFNAME",
        action="append",
        help="keep only the attachments that this option names (repeatable; default: keep those "
        "whose namespace exists)",
    )
    command.add_argument(
        "--all", action="store_true", help="keep no attachment of the network, as cnitool does"
    )


def _version_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "plugins", metavar="PLUGIN", nargs="*", help="the type of a plugin to ask, such as bridge"
    )


def _validate_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "networks",
        metavar="NET",
        nargs="*",
        help="the name of a network to validate (default: all)",
    )


def _attachments_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--container-id", metavar="ID", help="list the attachments of this container alone"
    )


def _add(arguments: argparse.Namespace) -> None:
    network, attachment = environment.network(arguments), environment.attachment(arguments)
    if not os.path.exists(attachment.netns):
        from tapwright.cni import CniError

        raise CniError(
            f"there is no network namespace {attachment.netns}; make one with 'ip netns add'"
        )
    result = _runtime(arguments).add(network, attachment)
    print(json.dumps(result, indent=4))


def _check(arguments: argparse.Namespace) -> None:
    network = environment.network(arguments)
    checked = _runtime(arguments).check(network, environment.attachment(arguments))
    if arguments.json:
        output.print_json({"network": network.name, "checked": checked})


def _delete(arguments: argparse.Namespace) -> int:
    network = environment.network(arguments, any_version=True)
    try:
        _runtime(arguments).delete(network, environment.attachment(arguments))
    except ExceptionGroup as group:
        return _complain(group.exceptions)
    if arguments.json:
        output.print_json({"network": network.name, "deleted": True})
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    network = environment.network(arguments)
    try:
        collected = _runtime(arguments).gc(network, _valid(arguments))
    except ExceptionGroup as group:
        return _complain(group.exceptions)
    _complain(collected.problems)
    if arguments.json:
        deleted = [_described(entry) for entry in collected.deleted]
        output.print_json({"network": network.name, "deleted": deleted})
    return 0


def _valid(arguments: argparse.Namespace) -> "list[tuple[str, str]] | None":
    if arguments.all:
        return []
    if arguments.keep is None:
        return None
    for text in arguments.keep:
        if "/" not in text:
            raise UsageError(f"--keep {text!r}: must be a container id, '/', an interface name")
    split = (text.split("/", 1) for text in arguments.keep)
    return [(container_id, ifname) for container_id, ifname in split]


def _status(arguments: argparse.Namespace) -> None:
    network = environment.network(arguments)
    asked = _runtime(arguments).status(network)
    if arguments.json:
        output.print_json({"network": network.name, "ready": True, "asked": asked})


def _version(arguments: argparse.Namespace) -> None:
    from tapwright.cni import versions

    supported: dict[str, tuple[str, ...]] = {"tapwright": versions.VERSIONS}
    runtime = _runtime(arguments)
    for kind in arguments.plugins:
        supported[kind] = runtime.version(kind)
    if arguments.json:
        output.print_json(supported)
    else:
        rows = [(kind, ", ".join(known)) for kind, known in supported.items()]
        output.print_table(("NAME", "VERSIONS"), rows)


def _list(arguments: argparse.Namespace) -> None:
    from tapwright.cni import load_networks

    networks, problems = load_networks(environment.net_dir(arguments))
    _complain(problems)
    listed = [
        {
            "name": network.name,
            "versions": network.versions,
            "plugins": [plugin["type"] for plugin in network.plugins],
            "capabilities": sorted(network.capabilities),
            "file": network.source,
        }
        for network in networks
    ]
    if arguments.json:
        output.print_json(listed)
        return
    lines = [
        (entry.name, entry.cni_version, ", ".join(p["type"] for p in entry.plugins), entry.source)
        for entry in networks
    ]
    output.print_table(("NETWORK", "VERSION", "PLUGINS", "FILE"), lines)


def _validate(arguments: argparse.Namespace) -> int:
    from tapwright.cni import find_network, load_networks

    directory = environment.net_dir(arguments)
    problems: list[str] = []
    if arguments.networks:
        networks = [find_network(directory, name) for name in arguments.networks]
    else:
        networks, broken = load_networks(directory)
        problems += map(str, broken)
    runtime = _runtime(arguments)
    for network in networks:
        problems += runtime.validate(network)
    if arguments.json:
        output.print_json(
            {"networks": [network.name for network in networks], "problems": problems}
        )
        return 1 if problems else 0
    return _complain(problems)


def _attachments(arguments: argparse.Namespace) -> None:
    entries, problems = _runtime(arguments).attachments()
    _complain(problems)
    if arguments.container_id is not None:
        entries = [e for e in entries if e.attachment.container_id == arguments.container_id]
    if arguments.json:
        output.print_json([_described(entry) | {"result": entry.result} for entry in entries])
        return
    rows = []
    for entry in entries:
        addresses = [ip.get("address", "?") for ip in (entry.result or {}).get("ips") or ()]
        a = entry.attachment
        state = "attached" if entry.result else "half attached"
        rows.append((entry.network, a.container_id, a.ifname, a.netns, state, " ".join(addresses)))
    output.print_table(("NETWORK", "CONTAINER", "INTERFACE", "NETNS", "STATE", "ADDRESSES"), rows)


def _described(entry: "Entry") -> dict[str, Any]:
    attachment = entry.attachment
    return {
        "network": entry.network,
        "container_id": attachment.container_id,
        "ifname": attachment.ifname,
        "netns": attachment.netns,
        "attached": entry.result is not None,
    }


def _runtime(arguments: argparse.Namespace) -> "Runtime":
    return environment.runtime(arguments, _show_run if arguments.trace else None)


def _show_run(run: "Run") -> None:
    """Print one run of a plugin, for people."""
    end = "not run to its end" if run.status is None else f"exit {run.status}"
    lines = [f"--- {run.command} {run.plugin} ({run.path}): {end}, {run.seconds * 1000:.1f} ms"]
    lines += [f"    {name}={value}" for name, value in run.environment.items()]
    for name, text in (("stdin", run.stdin), ("stdout", run.stdout), ("stderr", run.stderr)):
        if text.strip():
            lines += [f"    {name}:", *(f"      {line}" for line in text.strip().splitlines())]
    if run.problem:
        lines.append(f"    problem: {run.problem}")
    lines += [f"    remark: {remark}" for remark in run.remarks]
    print("\n".join(map(printable, lines)), file=sys.stderr)


def _complain(problems: "Iterable[CniError | Exception | str]") -> int:
    """Print each problem on stderr; return 1 if there are any."""
    status = 0
    for problem in problems:
        notes = "".join(f"; {note}" for note in getattr(problem, "__notes__", ()))
        print(f"tapwright: {shown(problem)}{shown(notes)}", file=sys.stderr)
        status = 1
    return status


_COMMANDS: dict[str, tuple[Any, Any, str]] = {
    "add": (_add, _attachment_arguments, "attach a namespace to a network and print the result"),
    "check": (_check, _attachment_arguments, "check that an attachment is unchanged"),
    "del": (_delete, _attachment_arguments, "detach a namespace from a network"),
    "gc": (
        _gc,
        _gc_arguments,
        "detach what no longer exists from a network, then run GC of its plugins",
    ),
    "status": (_status, _network_arguments, "ask the plugins of a network whether they are ready"),
    "version": (
        _version,
        _version_arguments,
        "print the CNI versions that Tapwright and plugins support",
    ),
    "list": (_list, None, "list the networks, and report broken files"),
    "validate": (
        _validate,
        _validate_arguments,
        "report mistakes in the configurations of networks",
    ),
    "attachments": (_attachments, _attachments_arguments, "list the attachments of all networks"),
}
