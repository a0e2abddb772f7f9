"""The command groups, and their options (`check` is a command by itself)."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from tapwright import command
from tapwright.cli import version
from tapwright.cli.oci_options import VERBS
from tapwright.cli.parser import Parser
from tapwright.errors import TapwrightError, UsageError, shown

_GROUPS = {
    "check": "whether this host can run a sandbox, and with which configuration",
    "cni": "run CNI networks and their plugins",
    "image": "the guest's kernel, initrd and disk",
    "kata-ipvs": "load balancing in a running sandbox",
    "kata-network": "NICs and routes of a running sandbox",
    "sandbox": "virtual machines on CNI networks",
}
_FAILED, _WRONG_USAGE, _INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str]) -> int:
    """Run one command of a group; return its exit status."""
    arguments = _parser(argv).parse_args(_joined(argv))
    # The supervisor, a process of its own, takes it from there.
    os.environ[command.LOG_LEVEL_VARIABLE] = arguments.log_level
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
    except BrokenPipeError:  # who read our output has gone
        raise
    except OSError as error:
        return _complain(error, _FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    return status


def _joined(argv: Sequence[str]) -> list[str]:
    """`--parameters VALUE` as one word: argparse would take the value, `--list`, for an option."""
    words = list(argv)
    for place, word in enumerate(words[:-1]):
        if word == "--parameters" and "kata-ipvs" in words:
            words[place : place + 2] = [f"{word}={words[place + 1]}"]
            break
    return words


def _complain(what: object, status: int) -> int:
    print(f"tapwright: {shown(what)}", file=sys.stderr)
    return status


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that knows all groups by name, and more of those alone that `argv` may mean: to
    build all of it takes as long as many a command."""
    parser = Parser(
        # A link named kata-runtime is called as such.
        prog=os.path.basename(sys.argv[0]).removesuffix(".py") or "tapwright",
        description="Networking for secure containers: CNI networks carried into virtual machines.",
        epilog=f"""\
OCI runtime verbs, with the options of runc:
  {" ".join(VERBS)}

'tapwright GROUP COMMAND --help' and 'tapwright VERB --help' tell all about a command.""",
    )
    parser.add_argument("--version", action="version", version=version.TEXT)
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
