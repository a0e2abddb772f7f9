"""The command groups, and their options; `check`, `gc` and `metrics` are commands by themselves."""

import argparse
import importlib
import os
import sys
from collections.abc import Container, Sequence

from tapwright import command
from tapwright.cli import version
from tapwright.cli.oci_options import CONFIG_HELP, VERBS
from tapwright.cli.parser import Parser
from tapwright.errors import TapwrightError, UsageError, shown

_GROUPS = {
    "check": "check whether this host can run a sandbox, and with which configuration",
    "cni": "attach namespaces to CNI networks, without a VM",
    "gc": "release what dead sandboxes, spares and containers still hold on this host",
    "image": "build, list, export and import the guest's kernel, initrd and disk",
    "kata-ipvs": "balance load in a running sandbox",
    "kata-network": "plug NICs into a running sandbox and set its routes",
    "metrics": "export the counters of sandboxes, NICs and guests to Prometheus",
    "sandbox": "run, inspect and delete virtual machines on CNI networks",
}
_MODULES = {"gc": "collection"}
_FAILED, _WRONG_USAGE, _INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str]) -> int:
    """Run one command of a group; return its exit status."""
    # The command may be called through a link, such as kata-runtime.
    name = os.path.basename(sys.argv[0]).removesuffix(".py") or "tapwright"
    arguments = parser(argv, name).parse_args(_joined(argv))
    # The supervisor is another process, which reads the level there.
    os.environ[command.LOG_LEVEL_VARIABLE] = arguments.log_level
    from tapwright.cni.errors import CniError

    try:
        status: int | None = arguments.run(arguments)
    except UsageError as error:
        return _complain(error, _WRONG_USAGE)
    except (TapwrightError, CniError) as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return _complain(f"{error}{notes}", _FAILED)
    except PermissionError as error:
        return _complain(f"{error}. Are you root?", _FAILED)
    except BrokenPipeError:  # the reader of our output has gone
        raise
    except OSError as error:
        return _complain(error, _FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    return status or 0


def _joined(argv: Sequence[str]) -> list[str]:
    """Join `--parameters VALUE`: argparse would take a value such as `--list` for an option."""
    words = list(argv)
    for place, word in enumerate(words[:-1]):
        if word == "--parameters" and "kata-ipvs" in words:
            words[place : place + 2] = [f"{word}={words[place + 1]}"]
            break
    return words


def _complain(what: object, status: int) -> int:
    print(f"tapwright: {shown(what)}", file=sys.stderr)
    return status


def parser(argv: Container[str], name: str) -> argparse.ArgumentParser:
    """A parser with the names of all groups, and the commands of those groups that `argv` names:
    building all commands takes as long as running some of them."""
    parser = Parser(
        prog=name,
        description="Networking for secure containers: CNI networks carried into virtual machines.",
        epilog=f"""\
OCI runtime verbs, with the options of runc:
  {" ".join(VERBS)}

'tapwright GROUP COMMAND --help' and 'tapwright VERB --help' describe a command.""",
    )
    parser.add_argument(
        *("-v", "--version"),
        action="version",
        version=version.TEXT,
        help="print the version and exit",
    )
    # The second name is kata-runtime's: scripts for it call this command through a link.
    parser.add_argument(
        "--config",
        "--kata-config",
        metavar="FILE",
        help=CONFIG_HELP,
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        default=command.root(),
        help="keep the state of sandboxes in this directory "
        f"(default: ${command.ROOT_VARIABLE}, or {command.DEFAULT_ROOT})",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="choose what supervisors log (default: %(default)s)",
    )
    # With `prog` given, argparse need not measure the terminal (2 ms).
    groups = parser.add_subparsers(metavar="GROUP", required=True, prog=parser.prog)
    for name, summary in _GROUPS.items():
        group = groups.add_parser(name, help=summary)
        if name in argv:
            module_name = _MODULES.get(name, name.replace("-", "_"))
            module = importlib.import_module(f"tapwright.cli.{module_name}")
            module.add_commands(group, argv)
    return parser
