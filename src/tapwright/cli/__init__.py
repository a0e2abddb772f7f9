"""The `tapwright` command: parse, call, print. One module a command group (`check` is a command
by itself); no logic here.

Exit status: 0 done, 1 failed (one sentence on stderr), 2 wrong usage. Only the answer goes to
stdout. Modules of the groups import what they call when they call it: starting up is part of
every command's time.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from tapwright import __version__, command
from tapwright.cli.parser import Parser
from tapwright.errors import TapwrightError, UsageError

_GROUPS = {
    "check": "whether this host can run a sandbox, and with which configuration",
    "cni": "run CNI networks and their plugins",
    "image": "the guest's kernel and initrd",
    "kata-network": "NICs and routes of a running sandbox",
    "sandbox": "virtual machines on CNI networks",
}
_FAILED, _WRONG_USAGE, _INTERRUPTED = 1, 2, 130


def run() -> NoReturn:
    """The console script. Ends the process at once: the interpreter would tidy up for 5 ms."""
    import gc

    gc.set_threshold(100_000)  # a collection while importing finds nothing and takes 2 ms
    try:
        try:
            status = main()
        except SystemExit as end:  # from argparse
            status = end.code if isinstance(end.code, int) else _FAILED
        sys.stdout.flush()
    except BrokenPipeError:  # who read our output has gone
        status = _FAILED
    sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser(argv).parse_args(argv)
    # The supervisor, a process of its own, takes it from there.
    os.environ["TAPWRIGHT_LOG_LEVEL"] = arguments.log_level
    from tapwright.cni.errors import CniError

    try:
        status: int = arguments.run(arguments)
    except UsageError as error:
        return _complain(error, _WRONG_USAGE)
    except (TapwrightError, CniError) as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return _complain(f"{error}{notes}", _FAILED)
    except PermissionError as error:
        return _complain(f"{error}. Are you root?", _FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    return status


def _complain(what: object, status: int) -> int:
    print(f"tapwright: {what}", file=sys.stderr)
    return status


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that knows all groups by name, and more of those alone that `argv` may mean: to
    build all of it takes as long as many a command."""
    parser = Parser(
        # A link named kata-runtime is called as such.
        prog=os.path.basename(sys.argv[0]).removesuffix(".py") or "tapwright",
        description="Networking for secure containers: CNI networks carried into virtual machines.",
        epilog="'tapwright GROUP COMMAND --help' tells all about a command.",
    )
    parser.add_argument("--version", action="version", version=f"tapwright {__version__}")
    # The second name is that of kata-runtime, whose scripts run through a link of its name.
    parser.add_argument(
        "--config", "--kata-config", metavar="FILE", help="configuration.toml to use"
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        default=command.root(),
        help=f"where the state of sandboxes is kept (default: ${command.ROOT_VARIABLE}, or "
        f"{command.DEFAULT_ROOT})",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="what supervisors write to their logs (default: %(default)s)",
    )
    # With `prog` given, argparse need not measure the terminal (2 ms).
    groups = parser.add_subparsers(metavar="GROUP", required=True, prog=parser.prog)
    for name, summary in _GROUPS.items():
        group = groups.add_parser(name, help=summary)
        if name in argv:
            module = importlib.import_module(f"tapwright.cli.{name.replace('-', '_')}")
            module.add_commands(group, argv)
    return parser
