"""`tapwright check`: can this host run a sandbox, and with which configuration?"""

import argparse
import json
import sys
import textwrap
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any

from tapwright.cli import output

if TYPE_CHECKING:
    from tapwright.config import Config
    from tapwright.sandbox.finding import Finding

_COLUMNS = 80
_STATE, _NAME = 9, 13


def add_commands(command: argparse.ArgumentParser, words: Container[str]) -> None:
    """`check` has options, and no commands below it."""
    command.description = (
        "Check all that sandboxes need of this host, and print the configuration: the value and "
        "the source of each key, ignored keys, conflicts. Exit status 0 if a "
        "sandbox could start, 1 if not. To try KVM, the command boots a guest, once for each boot "
        "of the host."
    )
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    command.add_argument(
        "--print-default",
        action="store_true",
        help="print a configuration file with all keys and their defaults, and check nothing",
    )
    command.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from tapwright import config

    if arguments.print_default:
        with open(config.DEFAULT_FILE) as file:
            print(file.read(), end="")
        return 0
    from tapwright.sandbox import finding, readiness

    read = config.read(arguments.config)
    conflicts = config.conflicts(read)
    try:
        host = readiness.findings(read, output.show_progress, arguments.root)
    finally:
        output.end_progress()
    problems = [found.name for found in host if found.state == finding.PROBLEM]
    problems += ["conflicts in the configuration"] if conflicts else []
    if arguments.json:
        output.print_json(_described(read, host, conflicts, not problems))
    else:
        _print(read, host, conflicts)
    if problems:
        sys.stdout.flush()
        print(f"tapwright: a sandbox can't start here: {', '.join(problems)}", file=sys.stderr)
    return 1 if problems else 0


def _described(
    config: "Config", host: "list[Finding]", conflicts: list[str], ready: bool
) -> dict[str, Any]:
    return {
        "ready": ready,
        "host": [vars(finding) for finding in host],
        "configuration": [setting._asdict() for setting in config.settings()],
        "unused": config.unused,
        "warnings": config.warnings,
        "conflicts": conflicts,
    }


def _print(config: "Config", host: "list[Finding]", conflicts: list[str]) -> None:
    print("HOST")
    for finding in host:
        head = f"{finding.state:{_STATE}}{finding.name:{_NAME}}"
        _print_wrapped(head, finding.found)
        if finding.advice:
            _print_wrapped(" " * len(head), f"→ {finding.advice}")
    print(f"\nCONFIGURATION  {config.source or 'built-in defaults'}")
    _print_settings(config)
    for title, lines in (
        ("PASSED OVER, FOR KATA ONLY", _by_section(config.unused)),
        ("WARNINGS", config.warnings),
        ("CONFLICTS", conflicts),
    ):
        if lines:
            print(f"\n{title}")
            for line in lines:
                _print_wrapped("", line)


def _print_settings(config: "Config") -> None:
    settings = list(config.settings())
    width = max(len(setting.key) for setting in settings)
    section = ""
    for setting in settings:
        if setting.section != section:
            section = setting.section
            print(f"[{section}]")
        source = "default" if setting.source == "default" else "file"
        value = json.dumps(setting.value, ensure_ascii=False)
        state = "" if setting.state == "in use" else f"  ({setting.state})"
        print(f"  {setting.key:{width}}  {source:7}  {value}{state}")


def _by_section(names: Iterable[str]) -> list[str]:
    """`[section] key, key, …`, one line a section."""
    keys: dict[str, list[str]] = {}
    for name in names:
        section, _, key = name.partition(" ")
        keys.setdefault(section, []).append(key)
    return [f"{section} {', '.join(found)}".rstrip() for section, found in keys.items()]


def _print_wrapped(head: str, text: str) -> None:
    """Print the head, and beside it the text in several lines."""
    indent = " " * (len(head) or 2)
    lines = textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines))
