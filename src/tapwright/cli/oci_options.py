"""The options of the OCI verbs, and reading them: as runc takes them, in the forms that platforms
use, before the verb and after it: `--opt value`, `--opt=value`, `-opt value`, `-o value`.

By hand, for argparse takes longer than most of these calls.
"""

from tapwright.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Option:
    """`metavar` is empty for a flag. `words` is for help: what it does."""

    def __init__(self, name: str, metavar: str, words: str, short: str = "") -> None:
        self.name = name
        self.metavar = metavar
        self.words = words
        self.short = short


class Verb:
    """`least` and `most` operands; where the last is a command, its words are not looked at."""

    def __init__(
        self, words: str, usage: str, least: int, most: int, *options: Option, command: bool = False
    ) -> None:
        self.words = words
        self.usage = usage
        self.least = least
        self.most = most
        self.options = options
        self.command = command


class Options:
    """What was given: `text` and `flag` by the option's name, and the operands."""

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


GLOBAL = (
    Option("config", "FILE", "configuration.toml to use"),
    Option("kata-config", "FILE", "the same"),
    Option("root", "DIR", "where the state of containers and sandboxes is kept"),
    Option("log", "FILE", "append errors and warnings to it"),
    Option("log-format", "FORMAT", "of the log: text or json"),
    Option("log-level", "LEVEL", "what supervisors write: debug, info, warning, error"),
    Option("debug", "", "the same as --log-level debug"),
    Option("systemd-cgroup", "", "accepted: the guest has no systemd"),
    Option("rootless", "WORD", "accepted: only root can run sandboxes"),
    Option("criu", "FILE", "accepted: there is no checkpoint"),
)

_BUNDLE = Option("bundle", "DIR", "the bundle (default: the current directory)", "b")
_CONSOLE = Option("console-socket", "FILE", "a socket to send the terminal's master to")
_PID_FILE = Option("pid-file", "FILE", "where to write the pid of the process on this host")
_PRESERVE = Option("preserve-fds", "N", "accepted with a warning: a VM can't have descriptors")
_FORMAT = Option("format", "FORMAT", "table or json", "f")
_IGNORED = (
    Option("no-pivot", "", "accepted: the root filesystem is mounted in the guest"),
    Option("no-new-keyring", "", "accepted: the guest's keys are not the host's"),
    _PRESERVE,
)
_DETACH = Option("detach", "", "return when it runs", "d")

VERBS = {
    "create": Verb(
        "make a container from a bundle", "ID", 1, 1, _BUNDLE, _CONSOLE, _PID_FILE, *_IGNORED
    ),
    "start": Verb("have a container run its program", "ID", 1, 1),
    "state": Verb("print the state of a container as JSON", "ID", 1, 1),
    "kill": Verb(
        "send a signal to a container's process",
        "ID [SIGNAL]",
        1,
        2,
        Option("all", "", "to all processes of the container", "a"),
    ),
    "delete": Verb(
        "take back all that a container holds",
        "ID",
        1,
        1,
        Option("force", "", "also of one that runs; no failure when there is none", "f"),
    ),
    "exec": Verb(
        "run another process in a container",
        "ID COMMAND [ARG ...] | --process FILE ID",
        1,
        1 << 20,
        _CONSOLE,
        _PID_FILE,
        _DETACH,
        Option("process", "FILE", "the process, as in config.json", "p"),
        Option("tty", "", "with a terminal", "t"),
        Option("cwd", "DIR", "where to run it"),
        Option("env", "KEY=VALUE", "set an environment variable (repeatable)", "e"),
        Option("user", "UID[:GID]", "as whom to run it", "u"),
        Option("additional-gids", "GID", "a further group (repeatable)", "g"),
        Option("cap", "CAP", "a further capability (repeatable)", "c"),
        Option("no-new-privs", "", "with no way to new privileges"),
        Option("ignore-paused", "", "accepted: a container that is paused is to be resumed first"),
        Option("process-label", "LABEL", "accepted: the guest has no SELinux"),
        Option("apparmor", "PROFILE", "accepted: the guest has no AppArmor"),
        _PRESERVE,
        command=True,
    ),
    "run": Verb(
        "create and start a container, wait for its end, delete it",
        "ID",
        1,
        1,
        _BUNDLE,
        _CONSOLE,
        _PID_FILE,
        _DETACH,
        Option("keep", "", "do not delete it"),
        Option("no-subreaper", "", "accepted: it is none"),
        *_IGNORED,
    ),
    "list": Verb("list containers", "", 0, 0, _FORMAT, Option("quiet", "", "their ids alone", "q")),
    "ps": Verb(
        "list the processes of a container", "ID [PS-OPTION ...]", 1, 1 << 20, _FORMAT, command=True
    ),
    "pause": Verb("stop all processes of a container for a while", "ID", 1, 1),
    "resume": Verb("have them go on", "ID", 1, 1),
    "events": Verb(
        "print what a container uses, again and again",
        "ID",
        1,
        1,
        Option("interval", "DURATION", "between two times (default: 5s)"),
        Option("stats", "", "once"),
    ),
    "update": Verb(
        "change the limits of a container",
        "ID",
        1,
        1,
        Option("resources", "FILE|-", "linux.resources as in config.json", "r"),
        Option("memory", "BYTES", "the most memory"),
        Option("memory-reservation", "BYTES", "memory that is left to it in need"),
        Option("memory-swap", "BYTES", "the most memory and swap"),
        Option("cpu-period", "US", "the period of the quota"),
        Option("cpu-quota", "US", "processor time in a period"),
        Option("cpu-share", "N", "relative weight"),
        Option("pids-limit", "N", "the most processes"),
        Option("cpuset-cpus", "LIST", "the host's CPUs that its VM runs on"),
        Option("cpuset-mems", "LIST", "the host's memory nodes that its VM takes from"),
        *(
            Option(name, "VALUE", "refused: the VM has nothing to set by it")
            for name in (
                *("blkio-weight", "cpu-rt-period", "cpu-rt-runtime"),
                *("l3-cache-schema", "mem-bw-schema"),
            )
        ),
        Option("kernel-memory", "BYTES", "accepted: obsolete"),
        Option("kernel-memory-tcp", "BYTES", "accepted: obsolete"),
    ),
    "features": Verb("print what this runtime supports as JSON", "", 0, 0),
}


def verb_of(argv: "Sequence[str]") -> str:
    """The OCI verb that is called, empty when it is something else."""
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            return word if word in VERBS else ""
        option = _found(GLOBAL, word)
        if option is None:
            return ""
        if option.metavar and "=" not in word:
            next(words, None)
    return ""


def read(argv: "Sequence[str]") -> tuple[Options, str, Options]:
    """(global options, verb, its options). Raises UsageError."""
    before, words = _read(GLOBAL, argv, is_command=True)
    name = words[0] if words else ""
    verb = VERBS[name]
    options, operands = _read((*verb.options, *_HELP), words[1:], verb.command)
    options.operands = operands
    if not options.flag("help") and not verb.least <= len(operands) <= verb.most:
        raise UsageError(f"usage: tapwright {name} [OPTION ...] {verb.usage}".rstrip())
    return before, name, options


def help_of(name: str) -> str:
    verb = VERBS[name]
    lines = [
        f"usage: tapwright [GLOBAL OPTION ...] {name} [OPTION ...] {verb.usage}".rstrip(),
        "",
        f"{verb.words[0].upper()}{verb.words[1:]}.",
    ]
    for title, options in (("options", verb.options), ("global options", GLOBAL)):
        if options:
            lines += ["", f"{title}:", *map(_help_line, options)]
    return "\n".join(lines)


_HELP = (Option("help", "", "", "h"),)


def _help_line(option: Option) -> str:
    short = f"-{option.short}, " if option.short else ""
    named = f"  {short}--{option.name} {option.metavar}".rstrip()
    return f"{named:<32}  {option.words}"


def _read(
    options: "Sequence[Option]", argv: "Sequence[str]", is_command: bool
) -> tuple[Options, list[str]]:
    """The options, and the operands; with `is_command` all is operands from the first one on."""
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
