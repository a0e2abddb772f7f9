"""`tapwright-netmon`: watches the network namespace in which it is started, and makes a runtime
carry changes into the VM. Its command line is that of `kata-netmon`."""

import os
import sys
import syslog
from collections.abc import Sequence
from typing import NamedTuple, NoReturn, Protocol

from tapwright import __version__, command
from tapwright.errors import NetworkError, TapwrightError
from tapwright.netmon.events import Events

USAGE = """\
usage: tapwright-netmon -s ID -r RUNTIME [-d] [-log LEVEL]

Watch the network namespace that this process is in, and carry interfaces and routes into the VM of
a sandbox as they come, go or change: by the control socket of Tapwright's supervisor, or, for any
other runtime, by calling RUNTIME kata-network add-iface|del-iface|update-routes ID FILE.

  -s ID          carry changes into the sandbox of this id (required)
  -r RUNTIME     call the program at this path as the sandbox's runtime (required)
  -d             log everything, as with -log debug
  -log LEVEL     log this much to stderr and syslog: debug, info, warn or warning, error, fatal,
                 panic (default: warn)
  -v, -version   print the version and exit
  -h, -help      print this help and exit

If Tapwright is the runtime, TAPWRIGHT_ROOT names the directory of the state of sandboxes.
"""

_LEVELS = {"debug": 0, "info": 1, "warn": 2, "warning": 2, "error": 3, "fatal": 4, "panic": 4}
_PRIORITIES = syslog.LOG_DEBUG, syslog.LOG_INFO, syslog.LOG_WARNING, syslog.LOG_ERR
_DEBUG, _INFO, _WARN, _ERROR = range(4)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class Options(NamedTuple):
    sandbox: str
    runtime: str
    level: int


class Driver(Protocol):
    """The interface of what carries changes into the VM."""

    def begin(self) -> None: ...

    def sync(self) -> float | None: ...


class _WrongUsageError(Exception):
    pass


def run() -> NoReturn:
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


def main(argv: Sequence[str]) -> int:
    """Watch until killed. Return an exit status if there is nothing to watch."""
    words = [word.replace("--", "-", 1) for word in argv]
    if "-h" in words or "-help" in words:
        print(USAGE, end="")
        return 0
    if "-v" in words or "-version" in words:
        print(f"tapwright-netmon version {__version__}")
        return 0
    try:
        options = _options(words)
    except _WrongUsageError as error:
        print(f"tapwright-netmon: {error}; see -help", file=sys.stderr)
        return 2
    syslog.openlog("tapwright-netmon", syslog.LOG_PID, syslog.LOG_USER)
    log = _Log(options)
    try:
        # From here on no change is missed, so the present state is read after this.
        events = Events()
        driver = _driver(options)
        driver.begin()
    except (TapwrightError, OSError) as error:
        log(_ERROR, f"it can't begin: {error}")
        return 1
    log(_INFO, f"watching for {options.runtime}")
    _follow(events, driver, log)
    return 0


def _follow(events: Events, driver: Driver, log: "_Log") -> NoReturn:
    pause = _FIRST_PAUSE
    while True:
        try:
            again = driver.sync()
            pause = _FIRST_PAUSE
        except (TapwrightError, OSError) as error:
            log(_WARN, str(error))
            again = pause
            pause = min(pause * 2, _LONGEST_PAUSE)
        changed = events.wait(again)
        log(_DEBUG, "something has changed" if changed else "it is tried again")


def _driver(options: Options) -> Driver:
    """Return the driver. Each one imports what the other does not need."""
    if "/" in options.runtime and not os.access(options.runtime, os.X_OK):
        raise NetworkError(f"the runtime {options.runtime} is missing or not executable (-r)")
    if command.is_ours(options.runtime):
        from tapwright.netmon.own import Own

        return Own(command.root(), options.sandbox)
    from tapwright.netmon.kata import Kata

    return Kata(options.runtime, options.sandbox)


def _options(words: Sequence[str]) -> Options:
    """Read flags as Go's `flag` package does: -s ID, -s=ID. Raises _WrongUsageError."""
    found = {"-s": "", "-r": "", "-log": "warn", "-d": ""}
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag not in found:
            raise _WrongUsageError(f"{word!r} is not known")
        if flag == "-d":
            found[flag] = "" if value == "false" else "yes"
            continue
        if not equals:
            value = next(rest, "")
        if not value:
            raise _WrongUsageError(f"{flag} needs a value")
        found[flag] = value
    for flag, meaning in (("-s", "the sandbox's id"), ("-r", "the runtime's path")):
        if not found[flag]:
            raise _WrongUsageError(f"{meaning} is missing ({flag})")
    if found["-log"] not in _LEVELS:
        raise _WrongUsageError(f"-log {found['-log']!r} is none of {', '.join(_LEVELS)}")
    return Options(found["-s"], found["-r"], _DEBUG if found["-d"] else _LEVELS[found["-log"]])


class _Log:
    """Writes lines to stderr and syslog. The `logging` package would take too much memory."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def __call__(self, level: int, text: str) -> None:
        if level >= self._options.level:
            print(f"tapwright-netmon: {text}", file=sys.stderr, flush=True)
            syslog.syslog(_PRIORITIES[level], f"sandbox {self._options.sandbox}: {text}")


if __name__ == "__main__":
    run()
