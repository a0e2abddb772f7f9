"""`tapwright sandbox`: run, list, inspect, exec, delete, spares; `show`, `explain` and `capture`
have modules of their own."""

import argparse
import os
import sys
import time
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from tapwright.cli import capture, explain, output, show
from tapwright.cli.parser import add_id
from tapwright.command import LOG_LEVEL_VARIABLE
from tapwright.errors import SandboxNotFoundError, TapwrightError, UsageError, shown

if TYPE_CHECKING:
    from tapwright.config import Config
    from tapwright.sandbox.launching import Launch
    from tapwright.state.registry import Sandbox

_CAPTURED_BYTES = 64 * 1024 * 1024


def add_commands(group: argparse.ArgumentParser, words: Container[str]) -> None:
    commands = group.add_subparsers(metavar="COMMAND", required=True, prog=group.prog)
    _add_run(commands)
    _add_exec(commands)
    capture.add_command(commands)
    command = commands.add_parser(
        "list",
        help="list the sandboxes of this host",
        description="List the sandboxes of this host, with their status and addresses.",
    )
    command.add_argument("--json", action="store_true", help="print the sandboxes as JSON")
    command.set_defaults(run=_list)
    command = commands.add_parser(
        "inspect",
        help="show the state of a sandbox, as JSON",
        description="Show all that Tapwright knows of a sandbox, as JSON.",
    )
    add_id(command)
    command.add_argument("--json", action="store_true", help="print the JSON on one line")
    command.set_defaults(run=_inspect)
    show.add_command(commands)
    explain.add_command(commands)
    command = commands.add_parser(
        "delete",
        help="end sandboxes and release all that they hold on the host",
        description="End sandboxes in any state, and release all that they hold on "
        "the host. Deleting a sandbox that does not exist is no failure.",
    )
    add_id(command, "ids", nargs="+")
    command.add_argument(
        "--force",
        action="store_true",
        help="delete the sandbox even where something can't be released, and print what",
    )
    command.add_argument("--json", action="store_true", help="print the deleted ids as JSON")
    command.set_defaults(run=_delete)
    command = commands.add_parser(
        "spares",
        help="list or end the spares, guests that wait for sandboxes",
        description="List the spares: guests that Tapwright restored ahead, and that wait for "
        "sandboxes ([factory] vm_cache_number); with what they hold of the host's memory.",
    )
    command.add_argument("--drop", action="store_true", help="end all spares and print their names")
    command.add_argument("--json", action="store_true", help="print the spares as JSON")
    command.set_defaults(run=_spares)


def _add_run(commands: Any) -> None:
    command = commands.add_parser(
        "run",
        help="start a sandbox on CNI networks",
        description="Start a virtual machine and attach it to CNI networks; return when the "
        "guest is on them. Without --network the guest has no network. The first sandbox makes the "
        "template that later ones start from, unless enable_template is false.",
    )
    command.add_argument(
        "id",
        metavar="ID",
        help="the id of the new sandbox: letters, digits, '_', '.', '-'; at most 64",
    )
    command.add_argument(
        "--network",
        metavar="NAME[:IFNAME]",
        action="append",
        default=[],
        help="attach the guest to this CNI network (repeatable; default interfaces: eth0, eth1, …)",
    )
    command.add_argument(
        "--publish",
        metavar="[IP:]HOSTPORT:PORT[/PROTOCOL]",
        action="append",
        default=[],
        help="publish a port of the guest on the host (repeatable); the command does not check "
        "whether the host's port is free",
    )
    command.add_argument(
        "--tap",
        metavar="NAME[,bridge=BR|,ovs=BR]",
        action="append",
        default=[],
        help="give the guest a TAP of the host's own namespace, made where none exists, in a Linux "
        "bridge or a bridge of Open vSwitch (repeatable); further parts: ,ip=ADDRESS/PREFIX "
        ",mac=MAC ,mtu=N ,name=IFNAME",
    )
    command.add_argument(
        "--netns",
        metavar="PATH",
        default="",
        help="use this network namespace in place of a new one",
    )
    command.add_argument(
        "--net-dir",
        metavar="DIR",
        help="read CNI networks from this directory (default: /etc/cni/net.d)",
    )
    command.add_argument(
        "--plugin-dir",
        metavar="DIR",
        action="append",
        help="look for CNI plugins in this directory (repeatable, searched in order)",
    )
    command.add_argument(
        "--memory",
        metavar="MIB",
        type=_positive,
        default=0,
        help="give the guest this much memory, at least 128 MiB (default: default_memory of the "
        "configuration)",
    )
    command.add_argument(
        "--vcpus",
        metavar="N",
        type=_positive,
        default=0,
        help="give the guest this many CPUs (default: default_vcpus of the configuration)",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        action="store_true",
        help="print the sandbox as JSON, with the time of each phase of its start",
    )
    form.add_argument(
        "--timing", action="store_true", help="draw how long each phase of the start took"
    )
    command.set_defaults(run=_run)


def _add_exec(commands: Any) -> None:
    command = commands.add_parser(
        "exec",
        help="run a command in the guest of a sandbox",
        usage="%(prog)s [--env KEY=VALUE] [--cwd DIR] [--json] ID -- COMMAND [ARG ...]",
        description="Run a command in the guest, with the stdin, stdout, stderr and signals of "
        "this command, and exit with its status (128 + N for signal N, 127 when the command does "
        "not exist, 126 when it can't be run).",
    )
    add_id(command)
    command.add_argument(
        "--env",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set an environment variable (repeatable)",
    )
    command.add_argument(
        "--cwd", metavar="DIR", default="/", help="run the command in this directory (default: /)"
    )
    command.add_argument(
        "--json",
        action="store_true",
        help="print status, stdout and stderr as JSON when the command has ended; exit 0",
    )
    command.add_argument(
        "argv", metavar="COMMAND", nargs="+", help="the command to run, and its arguments"
    )
    command.set_defaults(run=_exec)


def _run(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    output.need_root()
    from tapwright.sandbox import launching

    with launching.ahead(arguments.root) as launch:
        sandbox = _run_with(launch, arguments, started)
    for text in sandbox.record.warnings if sandbox.record else ():
        print(f"warning: {shown(text)}", file=sys.stderr)
    if arguments.json:
        output.print_json(_described(sandbox))
    else:
        _print_sandbox(sandbox)
    if arguments.timing and sandbox.record:
        from tapwright.cli import timing

        print(timing.picture(sandbox.record.phases, output.columns()))


def _run_with(launch: "Launch | None", arguments: argparse.Namespace, started: float) -> "Sandbox":
    from tapwright.library.sandbox import Sandbox
    from tapwright.state import registry

    configuration = _config(arguments)
    if configuration.runtime.enable_debug:
        os.environ[LOG_LEVEL_VARIABLE] = "debug"
    try:
        Sandbox.run(
            arguments.id,
            networks=arguments.network,
            publish=arguments.publish,
            taps=arguments.tap,
            netns=arguments.netns,
            memory_mib=arguments.memory,
            vcpus=arguments.vcpus,
            config=configuration,
            root=arguments.root,
            progress=output.show_progress,
            warn=output.show_warning,
            launch=launch,
            started=started,
        )
    finally:
        output.end_progress()
    return registry.find(arguments.root, arguments.id)


def _list(arguments: argparse.Namespace) -> None:
    from tapwright.state import registry

    output.need_root()
    sandboxes = registry.listing(arguments.root)
    if arguments.json:
        output.print_json([_described(sandbox) for sandbox in sandboxes])
        return
    rows = []
    for sandbox in sandboxes:
        interfaces = sandbox.record.interfaces if sandbox.record else []
        addresses = [address for interface in interfaces for address in interface.addresses]
        rows.append((sandbox.id, sandbox.status, _created(sandbox), ", ".join(addresses)))
    output.print_table(("ID", "STATUS", "CREATED", "ADDRESSES"), rows)


def _inspect(arguments: argparse.Namespace) -> None:
    import json

    from tapwright.state import registry

    output.need_root()
    described = _described(registry.find(arguments.root, arguments.id))
    print(json.dumps(described, indent=None if arguments.json else 2))


def _exec(arguments: argparse.Namespace) -> int:
    from tapwright.library.foreground import attend
    from tapwright.library.sandbox import Sandbox

    output.need_root()
    sandbox = Sandbox.find(arguments.id, root=arguments.root)
    environment = dict(_pair(text) for text in arguments.env)
    captured = {"stdout": bytearray(), "stderr": bytearray()}

    def sink(name: str, fd: int) -> Any:
        def write(data: bytes) -> None:
            if not arguments.json:
                while data:
                    data = data[os.write(fd, data) :]
            elif len(captured[name]) + len(data) > _CAPTURED_BYTES:
                raise TapwrightError(f"the command printed more than {_CAPTURED_BYTES} bytes")
            else:
                captured[name].extend(data)

        return write

    try:
        with sandbox.popen(
            arguments.argv, stdin=True, env=environment, cwd=arguments.cwd
        ) as started:
            status = attend(started, 0, sink("stdout", 1), sink("stderr", 2))
    except BrokenPipeError:
        return 128 + 13  # SIGPIPE: the reader of our output has gone
    if not arguments.json:
        return status
    texts = {name: data.decode(errors="replace") for name, data in captured.items()}
    output.print_json({"id": sandbox.id, "status": status, **texts})
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    from tapwright.sandbox import client, deletion
    from tapwright.state import ids

    output.need_root()
    deleted, status = [], 0
    for given in arguments.ids:
        place = client.directory_of(arguments.root, given)
        if ids.is_id(given) and deletion.is_by_supervisor(place):
            deleted.append(given)
            continue
        # Loading these takes as long as a deletion by the supervisor.
        from tapwright.sandbox import lifecycle
        from tapwright.state import registry

        try:
            found = registry.find(arguments.root, given)
            # The supervisor of a complete id has been asked above.
            delete = lifecycle.delete_from_here if found.id == given else lifecycle.delete
            for left in delete(arguments.root, found.id, arguments.force):
                print(f"tapwright: {found.id}: given up: {shown(left)}", file=sys.stderr)
            deleted.append(found.id)
        except SandboxNotFoundError:
            lifecycle.sweep(arguments.root)
            print(f"tapwright: there is no sandbox {given!r}", file=sys.stderr)
        except TapwrightError as error:
            print(f"tapwright: {shown(error)}", file=sys.stderr)
            status = 2 if isinstance(error, UsageError) else 1
    if arguments.json:
        output.print_json({"deleted": deleted})
    else:
        print("".join(f"{name}\n" for name in deleted), end="")
    return status


def _spares(arguments: argparse.Namespace) -> None:
    from tapwright.dataclass import asdict
    from tapwright.sandbox import spares

    output.need_root()
    if arguments.drop:
        dropped = spares.drop(arguments.root)
        if arguments.json:
            output.print_json(dropped)
        else:
            print("".join(f"{name}\n" for name in dropped), end="")
        return
    found = [(spare, spares.held_mib(spare)) for spare in spares.listing(arguments.root)]
    reason = spares.last_failure(arguments.root)
    if arguments.json:
        listed = [
            {**asdict(spare), "directory": str(spare.directory), "held_mib": held}
            for spare, held in found
        ]
        output.print_json({"spares": listed, "last_failure": reason})
        return
    head = "NAME", "STATUS", "MEMORY", "VCPUS", "FILES", "HOLDS", "SINCE"
    rows = [
        (
            *(spare.name, "ready" if spare.is_ready else "being made"),
            *(f"{spare.memory_mib} MiB", str(spare.vcpus), "yes" if spare.share else "no"),
            *(f"{held} MiB", _when(spare.since)),
        )
        for spare, held in found
    ]
    output.print_table(head, rows)
    if reason:
        print(f"The last spare that failed: {shown(reason)}")


def _config(arguments: argparse.Namespace) -> "Config":
    from tapwright import config

    loaded = config.load(arguments.config)
    for warning in loaded.warnings:
        print(f"tapwright: {loaded.source}: {warning}", file=sys.stderr)
    changes: dict[str, Any] = {}
    if arguments.net_dir:
        changes["conf_dir"] = arguments.net_dir
    if arguments.plugin_dir:
        changes["bin_dirs"] = tuple(map(os.path.abspath, arguments.plugin_dir))
    return loaded._replace(cni=loaded.cni._replace(**changes))


def _described(sandbox: "Sandbox") -> dict[str, Any]:
    """A sandbox as JSON, the same in every command."""
    from datetime import UTC, datetime

    from tapwright.dataclass import asdict
    from tapwright.state import supervisors

    described: dict[str, Any] = {"id": sandbox.id, "status": sandbox.status}
    if sandbox.problem:
        described["problem"] = sandbox.problem
    record = sandbox.record
    if record is None:
        return described
    supervisor = supervisors.pid_of(sandbox.directory) if sandbox.status != "dead" else None
    return described | {
        "created": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds"),
        "netns": record.netns,
        "networks": [
            {"name": network.name, "ifname": network.ifname} for network in record.spec.networks
        ],
        "interfaces": [asdict(interface) for interface in record.interfaces],
        "warnings": record.warnings,
        "accelerator": record.accelerator,
        "accelerator_reason": record.accelerator_reason,
        "memory_mib": record.memory_mib or record.spec.machine.memory_mib,
        "vcpus": record.vcpus or record.spec.machine.vcpus,
        "supervisor_pid": supervisor,
        "phases": [asdict(phase) for phase in record.phases],
    }


def _print_sandbox(sandbox: "Sandbox") -> None:
    accelerator = f" ({sandbox.record.accelerator})" if sandbox.record else ""
    print(f"{sandbox.id} {sandbox.status}{accelerator}")
    for interface in sandbox.record.interfaces if sandbox.record else ():
        addresses = " ".join(interface.addresses) or "no address"
        print(f"  {interface.name}  {addresses}  {interface.mac}  mtu {interface.mtu}")


def _created(sandbox: "Sandbox") -> str:
    if sandbox.record is None:
        return "?"
    return _when(sandbox.record.created)


def _when(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"{text!r} is not KEY=VALUE")
    return key, value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
