"""The options of the OCI verbs, and their parser. Options are as in runc, before the verb and after
it, in the forms that platforms use: `--opt value`, `--opt=value`, `-opt value`, `-o value`.

Without argparse, which takes longer than most of these calls.
"""

from tapwright.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Option:
    """`metavar` is empty for a flag. `words` is the help text."""

    def __init__(self, name: str, metavar: str, words: str, short: str = "") -> None:
        self.name = name
        self.metavar = metavar
        self.words = words
        self.short = short


class Verb:
    """A verb with the operands that its `usage` names: those in brackets may be missing. With
    `command`, all words after the first operand belong to a command, and are not parsed."""

    def __init__(self, words: str, usage: str, *options: Option, command: bool = False) -> None:
        self.words = words
        self.usage = usage
        self.options = options
        self.command = command

    def takes(self, operands: "Sequence[str]") -> bool:
        """Whether so many operands are right."""
        if self.command:
            return bool(operands)
        named = self.usage.split()
        needed = [word for word in named if word[0] != "["]
        return len(needed) <= len(operands) <= len(named)


class Options:
    """The given options by name, and the operands."""

    def __init__(self) -> None:
        self._given: dict[str, list[str]] = {}
        self.operands: list[str] = []

    def add(self, name: str, value: str) -> None:
        self._given.setdefault(name, []).append(value)

    def text(self, name: str, default: str = "") -> str:
        return self._given.get(name, [default])[-1]

    def texts(self, name: str) -> list[str]:
        return self._given.get(name, [])

    def flag(self, name: str) -> bool:
        return self.text(name, "false") == "true"

    def given(self) -> list[str]:
        return list(self._given)


CONFIG_HELP = (
    "read the configuration from this file (default: the first that exists of $TAPWRIGHT_CONFIG, "
    "/etc/tapwright/configuration.toml and those of Kata Containers)"
)

GLOBAL = (
    Option("config", "FILE", CONFIG_HELP),
    Option("kata-config", "FILE", "another name of --config, as kata-runtime has"),
    Option("root", "DIR", "keep the state of containers and sandboxes in this directory"),
    Option("log", "FILE", "append errors and warnings to this file"),
    Option("log-format", "FORMAT", "write the log as text (default) or json"),
    Option("log-level", "LEVEL", "choose what supervisors log: debug, info, warning or error"),
    Option("debug", "", "log everything, as with --log-level debug"),
    Option(
        "systemd-cgroup",
        "",
        "accepted without effect: the form of cgroupsPath shows whether it is systemd's",
    ),
    Option("rootless", "WORD", "accepted without effect: only root can run sandboxes"),
    Option("criu", "FILE", "accepted without effect: containers in a VM have no checkpoints"),
)

_BUNDLE = Option(
    "bundle", "DIR", "take the bundle from this directory (default: the current one)", "b"
)
_CONSOLE = Option(
    "console-socket", "FILE", "send the master of the container's terminal to this Unix socket"
)
_PID_FILE = Option(
    "pid-file", "FILE", "write the pid of the process that stands for the container on the host"
)
_PRESERVE = Option(
    "preserve-fds", "N", "accepted with a warning: a VM can't inherit file descriptors"
)
_FORMAT = Option("format", "FORMAT", "print a table (default) or json", "f")
_IGNORED = (
    Option("no-pivot", "", "accepted without effect: the guest mounts the root filesystem"),
    Option(
        "no-new-keyring", "", "accepted without effect: the guest's keyrings are never the host's"
    ),
    _PRESERVE,
)
_DETACH = Option("detach", "", "return as soon as the process runs", "d")

VERBS = {
    "create": Verb(
        "create a container from a bundle, without starting its program",
        "ID",
        _BUNDLE,
        _CONSOLE,
        _PID_FILE,
        *_IGNORED,
    ),
    "start": Verb("start the program of a container that was created", "ID"),
    "state": Verb("print the state of a container as JSON", "ID"),
    "kill": Verb(
        "send a signal to a container's process",
        "ID [SIGNAL]",
        Option("all", "", "send the signal to all processes of the container", "a"),
    ),
    "delete": Verb(
        "delete a container that has ended, with all resources on the host",
        "ID",
        Option("force", "", "kill a container that still runs; succeed where none exists", "f"),
    ),
    "exec": Verb(
        "run another process in a running container",
        "ID COMMAND [ARG ...] | --process FILE ID",
        _CONSOLE,
        _PID_FILE,
        _DETACH,
        Option(
            "process", "FILE", "read the process, in the form of config.json, from this file", "p"
        ),
        Option("tty", "", "give the process a terminal", "t"),
        Option("cwd", "DIR", "run the process in this directory of the container"),
        Option("env", "KEY=VALUE", "set an environment variable (repeatable)", "e"),
        Option("user", "UID[:GID]", "run the process as this user and group", "u"),
        Option(
            "additional-gids", "GID", "add a supplementary group to the process (repeatable)", "g"
        ),
        Option("cap", "CAP", "add a capability to the process (repeatable)", "c"),
        Option("no-new-privs", "", "keep the process from gaining privileges (no_new_privs)"),
        Option("ignore-paused", "", "accepted without effect: resume a paused container first"),
        Option("process-label", "LABEL", "accepted without effect: the guest has no SELinux"),
        Option("apparmor", "PROFILE", "accepted without effect: the guest has no AppArmor"),
        _PRESERVE,
        command=True,
    ),
    "run": Verb(
        "create, start and finally delete a container",
        "ID",
        _BUNDLE,
        _CONSOLE,
        _PID_FILE,
        _DETACH,
        Option("keep", "", "keep the container after its program has ended"),
        Option("no-subreaper", "", "accepted without effect: the command is never a subreaper"),
        *_IGNORED,
    ),
    "list": Verb(
        "list containers", "", _FORMAT, Option("quiet", "", "print nothing but the ids", "q")
    ),
    "ps": Verb("list the processes of a container", "ID [PS-OPTION ...]", _FORMAT, command=True),
    "pause": Verb("freeze all processes of a container", "ID"),
    "resume": Verb("thaw all processes of a paused container", "ID"),
    "events": Verb(
        "print statistics and events of a container, one JSON object a line",
        "ID",
        Option("interval", "DURATION", "print statistics this often (default: 5s)"),
        Option("stats", "", "print the statistics once and exit"),
    ),
    "update": Verb(
        "change the limits of a container",
        "ID",
        Option(
            "resources",
            "FILE|-",
            "read limits, in the form of linux.resources, from this file (- for stdin)",
            "r",
        ),
        Option("memory", "BYTES", "limit the memory of the container"),
        Option(
            "memory-reservation",
            "BYTES",
            "leave this much memory to the container when memory is short",
        ),
        Option("memory-swap", "BYTES", "limit memory and swap together"),
        Option("cpu-period", "US", "set the period of --cpu-quota in microseconds"),
        Option("cpu-quota", "US", "limit the processor time in a period, in microseconds"),
        Option("cpu-share", "N", "set the weight of the container among others in its VM"),
        Option("pids-limit", "N", "limit the number of processes"),
        Option("cpuset-cpus", "LIST", "bind the VM to these CPUs of the host"),
        Option("cpuset-mems", "LIST", "take the VM's memory from these nodes of the host"),
        *(
            Option(name, "VALUE", "refused: the VM has no such limit to set")
            for name in (
                *("blkio-weight", "cpu-rt-period", "cpu-rt-runtime"),
                *("l3-cache-schema", "mem-bw-schema"),
            )
        ),
        *(
            Option(name, "BYTES", "accepted without effect: kernels have dropped this limit")
            for name in ("kernel-memory", "kernel-memory-tcp")
        ),
    ),
    "features": Verb("print the features of this runtime as JSON", ""),
}


_OF_COMMANDS = frozenset(("-h", "--help", "-v", "--version"))


def verb_of(argv: "Sequence[str]") -> str:
    """The OCI verb in a command line, also behind an option that there is not, of which `read`
    tells then; empty for other commands."""
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            return word if word in VERBS else ""
        if word in _OF_COMMANDS:
            return ""
        option = _found(GLOBAL, word)
        if option and option.metavar and "=" not in word:
            next(words, None)
    return ""


def read(argv: "Sequence[str]") -> tuple[Options, str, Options]:
    """(global options, verb, its options). Raises UsageError."""
    before, words = _read(GLOBAL, argv, is_command=True)
    name = words[0] if words else ""
    verb = VERBS[name]
    options, operands = _read((*verb.options, *HELP), words[1:], verb.command)
    options.operands = operands
    if not options.flag("help") and not verb.takes(operands):
        raise UsageError(f"usage: tapwright {name} [OPTION ...] {verb.usage}".rstrip())
    return before, name, options


def help_of(name: str) -> str:
    """What `tapwright VERB --help` prints."""
    verb = VERBS[name]
    lines = [
        f"usage: tapwright [GLOBAL OPTION ...] {name} [OPTION ...] {verb.usage}".rstrip(),
        "",
        f"{verb.words[0].upper()}{verb.words[1:]}.",
    ]
    for title, options in (("options", (*verb.options, *HELP)), ("global options", GLOBAL)):
        lines += ["", f"{title}:", *map(_help_lines, options)]
    return "\n".join(lines)


HELP = (Option("help", "", "print this help and exit", "h"),)


def _help_lines(option: Option) -> str:
    import textwrap

    short = f"-{option.short}, " if option.short else ""
    named = f"  {short}--{option.name} {option.metavar}".rstrip()
    indent = " " * 34
    return textwrap.fill(
        option.words, 100, initial_indent=f"{named:<32}  ", subsequent_indent=indent
    )


def _read(
    options: "Sequence[Option]", argv: "Sequence[str]", is_command: bool
) -> tuple[Options, list[str]]:
    """(options, operands). With `is_command`, all words from the first operand on are operands."""
    found = Options()
    operands: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            operands += words
            break
        if word == "-" or not word.startswith("-"):
            operands.append(word)
            if is_command:
                operands += words[1:] if words[:1] == ["--"] else words
                break
            continue
        option = _found(options, word)
        if option is None:
            raise UsageError(f"{word} is not an option here; --help lists them")
        _, equals, value = word.partition("=")
        if not equals:
            if option.metavar and not words:
                raise UsageError(f"{word} needs a value: {option.metavar}")
            value = words.pop(0) if option.metavar else "true"
        found.add(option.name, value)
    return found, operands


def _found(options: "Sequence[Option]", word: str) -> Option | None:
    name = word.partition("=")[0].lstrip("-")
    return next(
        (option for option in options if name and name in (option.name, option.short)), None
    )
