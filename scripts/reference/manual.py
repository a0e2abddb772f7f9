"""Man pages in man(7): one for each program and group, and one for the OCI verbs."""

import os
import re
import time
from collections.abc import Iterable, Iterator

from reference import commands
from reference.commands import Command, Option, sentence
from tapwright import __version__

_ENVIRONMENT = (
    ("TAPWRIGHT_CONFIG", "The configuration to read, unless --config names one."),
    ("TAPWRIGHT_ROOT", "The directory of the state of sandboxes, unless --root names one."),
)
_FILES = (
    ("/etc/tapwright/configuration.toml", "The configuration; `tapwright check` prints it."),
    ("/etc/cni/net.d", "CNI networks."),
    ("/var/lib/tapwright", "State of sandboxes, guest images and templates."),
)
_EXIT = (
    ("0", "The command is done."),
    ("1", "The command failed; standard error has the reason in a sentence."),
    ("2", "The command line is wrong."),
)


def pages() -> dict[str, str]:
    """The text of each page, by its file's name."""
    program, verbs, monitor = commands.tapwright(), commands.verbs(), commands.monitor()
    names = ["tapwright-oci", *("-".join(group.words) for group in program.commands)]
    names += [monitor.words[0]]
    found = {"tapwright": _program(program, verbs, names), "tapwright-oci": _group(verbs, "oci")}
    found |= {"-".join(group.words): _group(group) for group in program.commands}
    found[monitor.words[0]] = _monitor(monitor)
    return {f"{name}.1": f"{text}\n" for name, text in found.items()}


def _program(program: Command, verbs: Command, names: Iterable[str]) -> str:
    lines = [*_head("tapwright", program.description.split(":")[0])]
    lines += _synopsis([program, verbs])
    lines += _section("DESCRIPTION", [_text(program.description)])
    lines += _section("OPTIONS", _options(program.options))
    groups = [(" ".join(group.words[1:]), sentence(group.summary)) for group in program.commands]
    lines += _section("COMMANDS", _defined(groups))
    oci = [(" ".join(verb.words[1:]), sentence(verb.summary)) for verb in verbs.commands]
    lines += _section("OCI RUNTIME", _defined(oci))
    lines += _section("EXIT STATUS", _defined(_EXIT))
    lines += _section("ENVIRONMENT", _defined(_ENVIRONMENT))
    lines += _section("FILES", _defined(_FILES))
    return "\n".join([*lines, *_see(names)])


def _group(group: Command, name: str = "") -> str:
    """A group with its commands, or a command that has none below it."""
    name = f"tapwright-{name}" if name else "-".join(group.words)
    lines = [*_head(name, group.summary), *_synopsis(group.commands or [group])]
    lines += _section("DESCRIPTION", [_text(group.description)])
    own = [option for option in group.options if not group.commands or "--help" not in option.names]
    if own:
        lines += _section("GLOBAL OPTIONS" if group.commands else "OPTIONS", _options(own))
    if group.commands:
        lines.append(".SH COMMANDS")
    for command in group.commands:
        lines += [f".SS {_text(' '.join(command.words[1:]))}"]
        lines += [*_usage(command), ".PP", _text(command.description)]
        operands = [(operand.metavar, sentence(operand.help)) for operand in command.operands]
        lines += _defined([entry for entry in operands if entry[1] != "."])
        lines += _options(command.options)
    epilogs = {command.epilog for command in (group, *group.commands) if command.epilog}
    for epilog in sorted(epilogs):
        lines += _section("NOTES", [".nf", _text(epilog.strip()), ".fi"])
    return "\n".join([*lines, *_see(["tapwright"])])


def _monitor(monitor: Command) -> str:
    lines = [*_head(monitor.name, monitor.summary), *_synopsis([monitor])]
    lines += _section("DESCRIPTION", [_text(monitor.description)])
    lines += _section("OPTIONS", _options(monitor.options))
    lines += _section("ENVIRONMENT", _defined([("TAPWRIGHT_ROOT", monitor.epilog)]))
    return "\n".join([*lines, *_see(["tapwright"])])


def _head(name: str, summary: str) -> Iterator[str]:
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    yield ".\\\" Generated from the command's parsers by scripts/generate."
    yield f'.TH {_text(name.upper())} 1 {date} "Tapwright {__version__}" "Tapwright"'
    yield ".nh"  # names of variables are not to be broken
    yield ".SH NAME"
    yield f"{_text(name)} \\- {_text(summary)}"


def _synopsis(called: Iterable[Command]) -> Iterator[str]:
    yield ".SH SYNOPSIS"
    for place, command in enumerate(called):
        if place:
            yield ".br"
        yield from _usage(command)


def _usage(command: Command) -> Iterator[str]:
    yield f".B {_text(command.name)}"
    if command.usage:
        yield _text(command.usage)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return [f".SH {title}", *lines]


def _options(options: Iterable[Option]) -> list[str]:
    lines = []
    for option in options:
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in option.names)
        value = f" \\fI{_text(option.metavar)}\\fR" if option.metavar else ""
        lines += [".TP", f"{names}{value}", _text(sentence(option.help))]
    return lines


def _defined(entries: Iterable[tuple[str, str]]) -> list[str]:
    return [
        line
        for term, meaning in entries
        for line in (".TP", f"\\fB{_text(term)}\\fR", _text(meaning))
    ]


def _see(names: Iterable[str]) -> list[str]:
    *others, last = (f".BR {_text(name)} (1)" for name in names)
    return [".SH SEE ALSO", *(f"{other} ," for other in others), last]


def _text(text: str) -> str:
    """Plain text as roff's: what it would take for markup is escaped, all is ASCII."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return re.sub(r"^(?=[.'])", "\\\\&", text, flags=re.MULTILINE)
