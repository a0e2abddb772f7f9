"""The OCI runtime's verbs, a function each: parse, call, print.

Platforms call them often, so each imports only what it needs. The exit status is 0, or 1 for any
failure (255 for `exec`); after `run` and `exec` it is the status of the process.
"""

import os
import sys

from tapwright import command
from tapwright.cli.oci_options import Options, help_of, read
from tapwright.errors import TapwrightError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from tapwright.oci.log import Log

_FAILED, _INTERRUPTED = 1, 130
_EXEC_FAILED = 255  # as in runc, because 1 may be the status of the process


class Call:
    """One call of the runtime, by the process `caller`."""

    def __init__(self, before: Options, options: Options, log: "Log", caller: int) -> None:
        self.root = os.path.abspath(before.text("root") or command.root())
        self.configuration = before.text("config") or before.text("kata-config")
        self.options = options
        self.log = log
        self.caller = caller

    @property
    def id(self) -> str:
        return self.options.operands[0]


def main(argv: "Sequence[str]") -> int:
    """Run one verb; return the exit status."""
    caller = os.getppid()  # as early as possible, because the caller may die
    _open_stdio()
    from tapwright.oci.log import Log

    log, failed = Log("", "text"), _FAILED
    try:
        before, verb, options = read(argv)
        failed = _EXEC_FAILED if verb == "exec" else _FAILED
        if options.flag("help"):
            print(help_of(verb))
            return 0
        log = Log(before.text("log"), before.text("log-format", "text"))
        os.environ[command.LOG_LEVEL_VARIABLE] = before.text("log-level") or (
            "debug" if before.flag("debug") else "warning"
        )
        status = _VERBS[verb](Call(before, options, log, caller)) or 0
    except TapwrightError as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        log.failed(f"{error}{notes}")
        return failed
    except OSError as error:
        log.failed(f"{error}. Are you root?" if isinstance(error, PermissionError) else str(error))
        return failed
    except KeyboardInterrupt:
        log.failed("interrupted")
        return _INTERRUPTED
    except Exception as error:
        import traceback

        traceback.print_exc()
        log.failed(f"unexpected {type(error).__name__}: {error}")
        return failed
    log.succeeded()
    return status


def _open_stdio() -> None:
    """Open those of 0, 1 and 2 that a platform has closed, so that no later file gets their
    numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _create(call: Call) -> None:
    from tapwright.oci import creation

    _, stdio = creation.create(_wish(call, detached=True, caller=call.caller), call.log)
    stdio.close()


def _run(call: Call) -> int:
    from tapwright.oci import execution

    wish = _wish(call, call.options.flag("detach"))
    return execution.run(wish, call.options.flag("keep"), call.log)


def _wish(call: Call, detached: bool, caller: int = 0) -> "Any":
    from tapwright.oci.creation import Wish

    options = call.options
    _warn_of_descriptors(call)
    return Wish(
        call.root,
        call.id,
        options.text("bundle") or os.getcwd(),
        pid_file=options.text("pid-file"),
        console_socket=options.text("console-socket"),
        configuration=call.configuration,
        detached=detached,
        caller=caller,
    )


def _warn_of_descriptors(call: Call) -> None:
    if call.options.text("preserve-fds", "0") != "0" or os.environ.get("LISTEN_FDS"):
        call.log.warn("the container gets no more descriptors: a VM can't inherit them")


def _start(call: Call) -> None:
    from tapwright.oci import life

    life.start(call.root, call.id, call.log)


def _state(call: Call) -> None:
    from tapwright.oci import reports, state

    _print_json(reports.described(call.root, state.load(call.root, call.id)), indent=2)


def _kill(call: Call) -> None:
    from tapwright.oci import life, signals

    name = (call.options.operands[1:] or ["SIGTERM"])[0]
    life.kill(call.root, call.id, signals.number(name), call.options.flag("all"))


def _delete(call: Call) -> None:
    from tapwright.oci import life

    life.delete(call.root, call.id, call.options.flag("force"), call.log)


def _exec(call: Call) -> int:
    from tapwright.oci import bundle, execution

    options = call.options
    _warn_of_descriptors(call)
    if options.text("process"):
        process = bundle.load_process(options.text("process"))
        if options.flag("tty"):
            process["terminal"] = True
    elif not options.operands[1:]:
        raise UsageError("there is nothing to run: give a command, or --process FILE")
    else:
        process = execution.process_of(
            call.root,
            call.id,
            options.operands[1:],
            cwd=options.text("cwd"),
            env=options.texts("env"),
            user=options.text("user"),
            groups=options.texts("additional-gids"),
            capabilities=options.texts("cap"),
            no_new_privileges=options.flag("no-new-privs"),
            terminal=options.flag("tty"),
        )
    return execution.execute(
        call.root,
        call.id,
        process,
        call.log,
        console_socket=options.text("console-socket"),
        pid_file=options.text("pid-file"),
        detached=options.flag("detach"),
    )


def _list(call: Call) -> None:
    from tapwright.oci import reports

    found = reports.listing(call.root)
    if call.options.flag("quiet"):
        print("".join(f"{entry['id']}\n" for entry in found), end="")
    elif _is_json(call):
        _print_json(found)
    else:
        keys = ("id", "pid", "status", "bundle", "created", "owner")
        rows = [[str(entry[key]) for key in keys] for entry in found]
        _print_table([key.upper() for key in keys], rows)


def _ps(call: Call) -> None:
    from tapwright.oci import reports

    if _is_json(call):
        _print_json(reports.shims(call.root, call.id))
        return
    found = reports.processes(call.root, call.id)
    rows = [
        [str(entry["uid"]), str(entry["pid"]), str(entry["ppid"]), " ".join(entry["command"])]
        for entry in found
    ]
    _print_table(["UID", "PID", "PPID", "CMD"], rows)


def _pause(call: Call) -> None:
    from tapwright.oci import life

    life.pause(call.root, call.id)


def _resume(call: Call) -> None:
    from tapwright.oci import life

    life.resume(call.root, call.id)


def _events(call: Call) -> None:
    from tapwright.oci import limits, reports

    if call.options.flag("stats"):
        _print_json(reports.statistics(call.root, call.id))
        return
    interval = limits.seconds(call.options.text("interval", "5s"))
    for event in reports.events(call.root, call.id, interval):
        _print_json(event)
        sys.stdout.flush()


def _update(call: Call) -> None:
    from tapwright.oci import life, limits

    options = call.options
    path = options.text("resources")
    given = {name: options.text(name) for name in options.given()}
    resources = limits.read(path) if path else limits.of_options(given)
    life.update(call.root, call.id, resources, call.log)


def _features(call: Call) -> None:
    from tapwright.oci import reports

    _print_json(reports.features(), indent=4)


def _is_json(call: Call) -> bool:
    form = call.options.text("format", "table")
    if form not in ("table", "json"):
        raise UsageError("invalid format option: table or json")
    return form == "json"


def _print_json(content: "Any", indent: int | None = None) -> None:
    import json

    print(json.dumps(content, indent=indent))


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    from tapwright.cli import output

    output.print_table(head, rows)


_VERBS: "dict[str, Callable[[Call], int | None]]" = {
    "create": _create,
    "start": _start,
    "state": _state,
    "kill": _kill,
    "delete": _delete,
    "exec": _exec,
    "run": _run,
    "list": _list,
    "ps": _ps,
    "pause": _pause,
    "resume": _resume,
    "events": _events,
    "update": _update,
    "features": _features,
}
