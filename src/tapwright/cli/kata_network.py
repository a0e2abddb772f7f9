"""`tapwright kata-network`: NICs and routes of a running sandbox, with the names, the JSON and the
answers of `kata-runtime kata-network`."""

import argparse
import json
import sys
from collections.abc import Callable, Container
from typing import Any, NamedTuple

from tapwright.cli import output
from tapwright.cli.parser import add_id
from tapwright.errors import TapwrightError

Json = Any


class Verb(NamedTuple):
    """`call` is a method of `sandbox.client.Supervisor`; `takes` names the JSON that it reads."""

    call: str
    help: str
    takes: str = ""


_VERBS = {
    "add-iface": Verb(
        "add_interface", "plug an existing device of the host into the VM", "an interface"
    ),
    "del-iface": Verb("remove_interface", "unplug a NIC from the VM", "an interface"),
    "update-iface": Verb("update_interface", "replace the addresses of a NIC", "an interface"),
    "list-ifaces": Verb("list_interfaces", "list the NICs of the guest"),
    "add-route": Verb("add_routes", "add routes in the guest", "a route, or a list of routes,"),
    "del-route": Verb(
        "remove_routes", "remove routes in the guest", "a route, or a list of routes,"
    ),
    "update-routes": Verb("update_routes", "replace the guest's routes", "a list of routes"),
    "list-routes": Verb("list_routes", "list the routes of the guest"),
}

_BLANKS = " \t\n\r"

_EPILOG = """\
An interface:
  {"device":"tap-test","name":"eth-test","IPAddresses":[{"address":"172.16.0.3","mask":"16"}],
   "hwAddr":"02:42:20:6f:a3:69","mtu":1500}
  optional: IPAddresses, mtu, queues, vhostUserSocket, linkType

  to update: name, IPAddresses; all else empty or 0

A route, or a list of them, [{…}, …] (update-routes: a list):
  {"dest":"10.0.0.0/8","gateway":"172.16.0.1","device":"eth-test"}
  optional: gateway, source, scope, metric

Prints the answer as one line of JSON; after a failure null (del-iface: the interface that could not
be removed), and the reason on stderr. See docs/tap-networking.md."""


def add_commands(group: argparse.ArgumentParser, words: Container[str]) -> None:
    group.description = "Plug existing TAPs into a running sandbox and set the guest's routes."
    group.epilog = _EPILOG
    commands = group.add_subparsers(metavar="VERB", required=True, prog=group.prog)
    for name, verb in _VERBS.items():
        if name not in words:
            commands.add_parser(name, help=verb.help, add_help=False)
            continue
        command = commands.add_parser(
            name, help=verb.help, description=f"{verb.help[0].upper()}{verb.help[1:]}."
        )
        add_id(command, of_containers=True)
        if verb.takes:
            command.add_argument(
                "file",
                metavar="FILE|-",
                help=f"a file with {verb.takes} as JSON; - reads standard input",
            )
        command.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
        command.set_defaults(run=_run, verb=verb)


def _run(arguments: argparse.Namespace) -> None:
    from tapwright.oci import pods
    from tapwright.sandbox import client

    verb: Verb = arguments.verb
    content: Json = None
    try:
        output.need_root()
        content = _read(arguments.file) if verb.takes else None
        sandbox = pods.sandbox_of(arguments.root, arguments.id)
        call: Callable[..., Json] = getattr(client.of(sandbox), verb.call)
        answer = call(content) if verb.takes else call()
    except TapwrightError as error:
        # Like kata-runtime, print an interface that could not be removed.
        _print((error.result or content) if verb.call == "remove_interface" else None)
        raise
    _print(answer or None)


def _read(path: str) -> Json:
    """The first JSON value; as for Kata's runtime, which decodes a stream, it does not matter what
    comes after it."""
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read()
    except OSError as error:
        raise TapwrightError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TapwrightError(f"{path} is not text: {error}") from None
    try:
        return json.JSONDecoder().raw_decode(text.lstrip(_BLANKS))[0]
    except (ValueError, RecursionError) as error:
        name = "standard input" if path == "-" else path
        raise TapwrightError(f"{name} is not JSON: {error}") from None


def _print(content: Json) -> None:
    print(json.dumps(content, separators=(",", ":")))
