"""`tapwright kata-ipvs`: the load balancer of a running sandbox's kernel, with the names and
parameters of openEuler's `kata-runtime kata-ipvs`."""

import argparse
import sys
from collections.abc import Container

from tapwright.cli import output
from tapwright.cli.parser import add_id
from tapwright.errors import TapwrightError, UsageError

_MOST_BYTES = 4 * 1024 * 1024

_EPILOG = """\
ipvsadm --parameters, those of ipvsadm(8):
  -A|-E -t|-u IP:PORT [-s SCHEDULER] [-p SECONDS]   add, edit a virtual service
  -D -t|-u IP:PORT                                  delete it
  -a|-e -t|-u IP:PORT -r IP:PORT [-w WEIGHT]        add, edit a real server, by NAT
  -d -t|-u IP:PORT -r IP:PORT                       delete it
  -L|-l [-t|-u IP:PORT] [-n] [--stats|--rate|--timeout] [--exact]
  -C                                                clear the table
  --set TCP TCPFIN UDP                              timeouts in seconds
cleanup --parameters, those of conntrack(8):
  -d|--orig-dst IP -p|--protonum tcp|udp            forget the connections to an address

See docs/openeuler.md."""


def add_commands(group: argparse.ArgumentParser, words: Container[str]) -> None:
    group.description = "Balance load in a running sandbox: IPVS in the guest's kernel."
    group.epilog = _EPILOG
    commands = group.add_subparsers(metavar="VERB", required=True, prog=group.prog)
    ipvsadm = commands.add_parser(
        "ipvsadm",
        help="list and change virtual services and real servers",
        description="List and change virtual services and real servers, as ipvsadm does.",
    )
    either = ipvsadm.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "--parameters", metavar="TEXT", help="pass these parameters of ipvsadm, in one word"
    )
    either.add_argument(
        "--restore", metavar="-", help="load the rules on standard input into a table that is empty"
    )
    ipvsadm.set_defaults(run=_ipvsadm)
    cleanup = commands.add_parser(
        "cleanup",
        help="remove tracked connections",
        description="Remove tracked connections, as conntrack -D does.",
    )
    cleanup.add_argument(
        "--parameters",
        metavar="TEXT",
        required=True,
        help="pass these parameters of conntrack -D, in one word",
    )
    cleanup.set_defaults(run=_cleanup)
    for command in (ipvsadm, cleanup):
        add_id(command, of_containers=True)


def _ipvsadm(arguments: argparse.Namespace) -> None:
    from tapwright.oci import pods
    from tapwright.sandbox import balancing, ipvsadm

    output.need_root()
    if arguments.restore is None:
        command = ipvsadm.read(arguments.parameters)
        sys.stdout.writelines(balancing.run(pods.sandbox_of(arguments.root, arguments.id), command))
        return
    if arguments.restore != "-":
        raise UsageError("rules are read from standard input: --restore - < FILE")
    rules = ipvsadm.read_rules(_read())
    balancing.restore(pods.sandbox_of(arguments.root, arguments.id), rules)


def _cleanup(arguments: argparse.Namespace) -> None:
    from tapwright.oci import pods
    from tapwright.sandbox import balancing, ipvsadm

    output.need_root()
    wanted = ipvsadm.read_cleanup(arguments.parameters)
    sys.stdout.writelines(balancing.cleanup(pods.sandbox_of(arguments.root, arguments.id), wanted))


def _read() -> str:
    data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise UsageError(f"standard input is too large for rules: more than {_MOST_BYTES} bytes")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise TapwrightError(f"standard input is not ASCII text: {error}") from None
