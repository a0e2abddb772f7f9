"""All commands, operands and options, as the parsers have them: argparse's, those of the OCI verbs,
and the usage of tapwright-netmon."""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tapwright.cli import groups, oci_options
from tapwright.netmon import __main__ as netmon

COMMAND, MONITOR = "tapwright", "tapwright-netmon"


@dataclass(frozen=True)
class Option:
    """`metavar` is empty for a flag; `choices` are all values, where they are known."""

    names: tuple[str, ...]
    metavar: str
    help: str
    choices: tuple[str, ...] = ()
    repeatable: bool = False


@dataclass(frozen=True)
class Operand:
    """`count` is argparse's nargs: empty for one, `?`, `*`, `+`."""

    metavar: str
    help: str
    count: str = ""


@dataclass(frozen=True)
class Command:
    """`words` are what it is called by, the program first; `usage` is what follows them."""

    words: tuple[str, ...]
    summary: str
    description: str
    usage: str
    epilog: str = ""
    options: tuple[Option, ...] = ()
    operands: tuple[Operand, ...] = ()
    commands: tuple["Command", ...] = ()

    @property
    def name(self) -> str:
        return " ".join(self.words)

    def all(self) -> Iterator["Command"]:
        """This one and those below it."""
        yield self
        for command in self.commands:
            yield from command.all()


class _Everything:
    """Has the group's parser build all commands, whatever they are called."""

    def __contains__(self, word: object) -> bool:
        return True


def tapwright() -> Command:
    """The program `tapwright`: its groups and their commands."""
    return _of_parser(groups.parser(_Everything(), COMMAND), (COMMAND,), "")


def verbs() -> Command:
    """The program `tapwright` once more: the OCI runtime's verbs, with their global options."""
    return Command(
        words=(COMMAND,),
        summary="run containers in sandboxes, as an OCI runtime",
        description="The commands of an OCI runtime, with the options of runc, for container "
        "platforms. Each container, or each pod, runs in a virtual machine of its own.",
        usage="[GLOBAL OPTION ...] VERB [OPTION ...]",
        options=tuple(map(_of_verb_option, oci_options.GLOBAL)),
        commands=tuple(
            Command(
                words=(COMMAND, name),
                summary=verb.words,
                description=sentence(verb.words),
                usage=f"[OPTION ...] {verb.usage}".strip(),
                options=tuple(map(_of_verb_option, (*verb.options, *oci_options.HELP))),
                operands=_operands(verb.usage),
            )
            for name, verb in oci_options.VERBS.items()
        ),
    )


def monitor() -> Command:
    """The program `tapwright-netmon`, from what its -help prints."""
    usage, description, listed, epilog = netmon.USAGE.strip().split("\n\n")
    found = re.findall(r"^  (-\S.*?)\s{2,}(.*(?:\n {8,}.*)*)$", listed, re.MULTILINE)
    options = []
    for named, help_text in found:
        *flags, last = named.split(", ")
        flag, _, metavar = last.partition(" ")
        options.append(Option((*flags, flag), metavar, " ".join(help_text.split())))
    return Command(
        words=(MONITOR,),
        summary="carry changes of a network namespace into a virtual machine",
        description=" ".join(description.split()),
        usage=usage.partition(MONITOR)[2].strip(),
        epilog=epilog,
        options=tuple(options),
    )


def everything() -> list[Command]:
    """All commands of both programs, in the order of their documentation."""
    return [*tapwright().all(), *verbs().commands, monitor()]


def sentence(text: str) -> str:
    """A help text as a sentence of prose."""
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", ":")) else ".")


def _of_parser(parser: argparse.ArgumentParser, words: tuple[str, ...], summary: str) -> Command:
    options, operands, commands = [], [], []
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {entry.dest: entry.help or "" for entry in action._choices_actions}
            commands += [
                _of_parser(below, (*words, name), summaries[name])
                for name, below in action.choices.items()
            ]
            operands.append(Operand(str(action.metavar), ""))
            continue
        if action.help == argparse.SUPPRESS:
            continue
        help_text = formatter._expand_help(action) if action.help else ""
        choices = tuple(map(str, action.choices or ()))
        metavar = str(action.metavar or "|".join(choices)) if action.nargs != 0 else ""
        if action.option_strings:
            repeatable = isinstance(action, argparse._AppendAction)
            names = tuple(action.option_strings)
            options.append(Option(names, metavar, help_text, choices, repeatable))
        else:
            operands.append(Operand(metavar, help_text, str(action.nargs or "")))
    if commands:
        operands[-1] = Operand(operands[-1].metavar, "", "")
    usage = f"[OPTION ...] {' '.join(map(_shown, operands))}".strip()
    if parser.usage:
        usage = parser.usage.removeprefix("%(prog)s ")
    return Command(
        words=words,
        summary=summary,
        description=parser.description or sentence(summary),
        usage=usage,
        epilog=parser.epilog or "",
        options=tuple(options),
        operands=() if commands else tuple(operands),
        commands=tuple(commands),
    )


def _shown(operand: Operand) -> str:
    forms = {"?": "[{}]", "*": "[{} ...]", "+": "{} [{} ...]"}
    return forms.get(operand.count, "{}").replace("{}", operand.metavar)


def _of_verb_option(option: oci_options.Option) -> Option:
    short = (f"-{option.short}",) if option.short else ()
    repeatable = "(repeatable)" in option.words
    return Option((*short, f"--{option.name}"), option.metavar, option.words, (), repeatable)


def _operands(usage: str) -> tuple[Operand, ...]:
    """Of a verb: what its usage says up to an alternative."""
    found = usage.partition(" | ")[0].replace("[", "").replace("]", "").split()
    return tuple(
        Operand(word, "", "*" if "..." in found[place + 1 :][:1] else "")
        for place, word in enumerate(found)
        if word != "..."
    )
