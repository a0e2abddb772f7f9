"""Completions for bash, zsh and fish. What can follow is known by the name of an operand, or of an
option's value: files, directories, sandboxes, containers, networks."""

import re
import shlex
from collections.abc import Iterable, Iterator

from reference import commands
from reference.commands import COMMAND, MONITOR, Command, Operand, Option

FILES, DIRECTORIES = "files", "directories"
SANDBOXES, CONTAINERS, NETWORKS = "sandboxes", "containers", "networks"
_KINDS = {
    "FILE": FILES,
    "FILE|-": FILES,
    "PATH": FILES,
    "NETNS": FILES,
    "RUNTIME": FILES,
    "DIR": DIRECTORIES,
    "LEVEL": "debug,info,warning,error",
    "NET": NETWORKS,
    "NAME[:IFNAME]": NETWORKS,
}
# Each prints what there is, a line each.
_LISTING = {
    SANDBOXES: "tapwright sandbox list 2>/dev/null | awk 'NR > 1 { print $1 }'",
    CONTAINERS: "tapwright list --quiet 2>/dev/null",
    NETWORKS: "tapwright cni list 2>/dev/null | awk 'NR > 1 { print $1 }'",
}
_NOTE = "Generated from the command's parsers by scripts/generate."


def scripts() -> dict[str, str]:
    """The text of each script, by its path below `share`."""
    return {
        "bash-completion/completions/tapwright": _bash(COMMAND, _roots()),
        "bash-completion/completions/tapwright-netmon": _bash(MONITOR, [commands.monitor()]),
        "zsh/site-functions/_tapwright": _zsh(),
        "fish/vendor_completions.d/tapwright.fish": _fish(),
    }


def _roots() -> list[Command]:
    """All that `tapwright` can be followed by: a tree, in the order of its words."""
    program, verbs = commands.tapwright(), commands.verbs()
    known = {name for option in program.options for name in option.names}
    # Options that verbs alone know come before these, too.
    further = [option for option in verbs.options if not known & set(option.names)]
    root = Command(
        program.words,
        program.summary,
        program.description,
        program.usage,
        options=(*program.options, *further),
        commands=(*program.commands, *verbs.commands),
    )
    return list(root.all())


def _kind_of_value(option: Option) -> str:
    """Empty where nothing is known of the value."""
    return ",".join(option.choices) if option.choices else _KINDS.get(option.metavar, "")


def _kind_of_operand(command: Command, operand: Operand) -> str:
    if operand.metavar != "ID":
        return _KINDS.get(operand.metavar, "")
    if command.words[-1] in ("run", "create"):
        return ""  # a new one
    of_sandboxes = ("sandbox", "kata-network", "kata-ipvs")
    return SANDBOXES if command.words[1] in of_sandboxes else CONTAINERS


def _bash(program: str, known: Iterable[Command]) -> str:
    function = f"_{program.replace('-', '_')}"
    return f"""\
# bash completion for {program}(1). {_NOTE}

{function}_about() {{ # what can follow the command "$1"
    case $1 in
{"".join(map(_bash_case, known))}\
    esac
}}

{function}_kind() {{ # candidates of the kind "$1", a line each
    case $1 in
    {SANDBOXES}) {_LISTING[SANDBOXES]} ;;
    {CONTAINERS}) {_LISTING[CONTAINERS]} ;;
    {NETWORKS}) {_LISTING[NETWORKS]} ;;
    {FILES}) compgen -f -- "$2" ;;
    {DIRECTORIES}) compgen -d -- "$2" ;;
    -) ;;
    *) printf '%s\\n' "${{1//,/$'\\n'}}" ;;
    esac
}}

{function}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} at={program} value='' count=0 i word entry
    local commands options valued operands kind
    {function}_about "$at"
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        if [[ $value ]]; then
            [[ $word == = ]] || value= # bash splits at an equals sign
            continue
        fi
        case $word in
        --) options='' valued='' ;;
        -*)
            for entry in $valued; do
                [[ $entry != "$word="* ]] || value=${{entry#*=}}
            done
            ;;
        *)
            if [[ " $commands " == *" $word "* ]]; then
                at="$at $word"
                {function}_about "$at"
            else
                ((++count))
            fi
            ;;
        esac
    done
    COMPREPLY=()
    [[ $cur != = ]] || cur=
    kind=$value
    if [[ ! $value ]]; then
        if [[ $cur == -* ]]; then
            mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
            return
        fi
        if [[ $commands ]]; then
            mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur")
            return
        fi
        # The last operand may come again.
        for entry in $operands; do
            kind=${{entry%+}}
            if ((count-- <= 0)); then break; fi
            [[ $entry == *+ ]] || kind=-
        done
    fi
    [[ $kind != {FILES} && $kind != {DIRECTORIES} ]] || compopt -o filenames 2>/dev/null
    while IFS= read -r entry; do
        [[ $entry != "$cur"* ]] || COMPREPLY+=("$entry")
    done < <({function}_kind "${{kind:--}}" "$cur")
}}

complete -F {function} {program}
"""


def _bash_case(command: Command) -> str:
    words = " ".join(below.words[-1] for below in command.commands)
    options = " ".join(name for option in command.options for name in option.names)
    valued = " ".join(
        f"{name}={_kind_of_value(option) or '-'}"
        for option in command.options
        if option.metavar
        for name in option.names
    )
    operands = " ".join(
        (_kind_of_operand(command, operand) or "-") + ("+" if operand.count in ("*", "+") else "")
        for operand in command.operands
    )
    return f"""\
    {shlex.quote(command.name)})
        commands={shlex.quote(words)}
        options={shlex.quote(options)}
        valued={shlex.quote(valued)}
        operands={shlex.quote(operands)}
        ;;
"""


def _zsh() -> str:
    known = [*_roots(), commands.monitor()]
    listings = "".join(
        f"_tapwright_{kind}() {{\n"
        f"    local -a found\n"
        f'    found=(${{(f)"$({listing})"}})\n'
        f"    compadd -a found\n"
        f"}}\n\n"
        for kind, listing in _LISTING.items()
    )
    return f"""\
#compdef tapwright tapwright-netmon
# zsh completion for tapwright(1) and tapwright-netmon(1). {_NOTE}

{listings}{"".join(map(_zsh_function, known))}\
case $service in
tapwright-netmon) _tapwright_netmon_command ;;
*) _tapwright_command ;;
esac
"""


def _function(command: Command) -> str:
    """Not `_tapwright`, which is the whole script: zsh runs it anew for each line."""
    return "_" + re.sub(r"[ -]", "_", command.name) + "_command"


def _zsh_function(command: Command) -> str:
    arguments = [_zsh_option(option) for option in command.options]
    if not command.commands:
        for place, operand in enumerate(command.operands, 1):
            where = "*" if operand.count in ("*", "+") else str(place)
            kind = _zsh_action(_kind_of_operand(command, operand))
            arguments.append(shlex.quote(f"{where}:{operand.metavar.replace(':', ' ')}:{kind}"))
        lines = _lines(arguments)
        return f"{_function(command)}() {{\n    _arguments \\\n        {lines}\n}}\n\n"
    arguments += ["'1: :->command'", "'*:: :->rest'"]
    listed = "\n            ".join(
        shlex.quote(f"{below.words[-1]}:{below.summary}") for below in command.commands
    )
    cases = "".join(
        f"        {below.words[-1]}) {_function(below)} ;;\n" for below in command.commands
    )
    return f"""\
{_function(command)}() {{
    local curcontext=$curcontext state line
    local -a commands
    typeset -A opt_args
    _arguments -C \\
        {_lines(arguments)}
    case $state in
    command)
        commands=(
            {listed}
        )
        _describe command commands
        ;;
    rest)
        curcontext=${{curcontext%:*:*}}:tapwright-$line[1]:
        case $line[1] in
{cases}\
        esac
        ;;
    esac
}}

"""


def _lines(words: Iterable[str]) -> str:
    """One command, a word a line."""
    return " \\\n        ".join(words)


def _zsh_option(option: Option) -> str:
    text = re.sub(r"([\[\]:])", r"\\\1", option.help)
    value = ""
    if option.metavar:
        # A colon would end the message.
        value = f":{option.metavar.replace(':', ' ')}:{_zsh_action(_kind_of_value(option))}"
    several = "*" if option.repeatable else ""
    excluded = f"({' '.join(option.names)})" if len(option.names) > 1 and not several else several
    words = []
    for name in option.names:
        equals = ("=" if name.startswith("--") else "") if option.metavar else ""
        words.append(shlex.quote(f"{excluded}{name}{equals}[{text}]{value}"))
    return " ".join(words)


def _zsh_action(kind: str) -> str:
    known = {FILES: "_files", DIRECTORIES: "_files -/", "": " "}
    known |= {listed: f"_tapwright_{listed}" for listed in _LISTING}
    return known.get(kind, f"({kind.replace(',', ' ')})")


def _fish() -> str:
    known = _roots()
    valued = {name for command in known for o in command.options if o.metavar for name in o.names}
    names = {below.words[-1] for command in known[0].commands for below in command.commands}
    top = [command.words[1] for command in known if len(command.words) > 1]
    groups = [command.words[1] for command in known[0].commands if command.commands]
    lines = "".join(line + "\n" for command in known for line in _fish_command(command))
    monitor = "".join(
        f"{_fish_option(MONITOR, '', option)}\n" for option in commands.monitor().options
    )
    return f"""\
# fish completion for tapwright(1) and tapwright-netmon(1). {_NOTE}

function __tapwright_at --description 'Whether the command so far is that of the arguments'
    set -l words (commandline --tokenize --cut-at-cursor --current-process)[2..-1]
    set -l found
    set -l skip 0
    for word in $words
        if test $skip = 1
            set skip 0
            continue
        end
        switch $word
            case {" ".join(sorted(valued))}
                set skip 1
            case '-*'
            case '*'
                if test (count $found) = 0
                    contains -- $word {" ".join(dict.fromkeys(top))}; or return 1
                    set found $word
                else if test (count $found) = 1; and contains -- $found[1] {" ".join(groups)}
                    contains -- $word {" ".join(sorted(names))}; or return 1
                    set -a found $word
                end
        end
    end
    test "$found" = "$argv"
end

complete -c {COMMAND} -f
{lines}
complete -c {MONITOR} -f
{monitor}"""


def _fish_command(command: Command) -> Iterator[str]:
    condition = " ".join(("__tapwright_at", *command.words[1:]))
    at = f"-n {shlex.quote(condition)}"
    for below in command.commands:
        yield f"complete -c {COMMAND} {at} -a {below.words[-1]} -d {_fish_text(below.summary)}"
    for option in command.options:
        yield _fish_option(COMMAND, at, option)
    kinds = dict.fromkeys(_kind_of_operand(command, operand) for operand in command.operands)
    for kind in kinds:
        if kind == FILES:
            yield f"complete -c {COMMAND} {at} -F"
        elif kind:
            yield f"complete -c {COMMAND} {at} {_fish_values(kind)}"


def _fish_option(program: str, at: str, option: Option) -> str:
    flags = []
    for name in option.names:
        kind = "-l" if name.startswith("--") else "-s" if len(name) == 2 else "-o"
        flags.append(f"{kind} {name.lstrip('-')}")
    value = ""
    if option.metavar:
        kind = _kind_of_value(option)
        value = " -r -F" if kind == FILES else f" -x {_fish_values(kind)}".rstrip()
    return " ".join(
        word
        for word in (f"complete -c {program}", at, *flags, f"-d {_fish_text(option.help)}{value}")
        if word
    )


def _fish_values(kind: str) -> str:
    if kind == DIRECTORIES:
        return "-a '(__fish_complete_directories)'"
    if kind in _LISTING:
        return f"-a {_fish_text(f'({_LISTING[kind]})')}"
    return f"-a {_fish_text(kind.replace(',', ' '))}" if kind else ""


def _fish_text(text: str) -> str:
    """Fish quotes otherwise than sh: within single quotes, a backslash goes before them."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
