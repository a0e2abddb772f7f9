"""For writing plugins: speaks the protocol for a plugin, as libcni's `skel` does.

A plugin is a function for ADD and one for DEL, and optionally others:

    from tapwright.cni import plugin

    def add(request):
        ...
        return {"interfaces": [...], "ips": [...]}  # or None: request.prev_result, unchanged

    def delete(request):
        ...

    plugin.main(add, delete)

Results in these functions have version 1.1.0; `main` converts them to the caller's version. For a
failure, raise `Error` with a code of section 5, "Error"; any other exception becomes code 999.

Plugins run often, and must start fast, so this module imports as little as possible.
`request` reads what the runtime asks for, `delegate` runs the plugin that another one delegates to
(IPAM), `error` is what a plugin raises.
"""

import json
import os
import sys

from tapwright.cni import errors, results, strictjson
from tapwright.cni.plugin.error import Error
from tapwright.cni.plugin.request import Request, check_environment
from tapwright.cni.versions import CURRENT, VERSIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from tapwright.cni.results import Result

    Handler = Callable[[Request], Any]

__all__ = ["Error", "Request", "main"]

_INPUT_SECONDS = 0.5
"""How long VERSION waits for input: a runtime has written it before the plugin has started, or
writes it at once."""


def main(
    add: "Handler",
    delete: "Handler",
    *,
    check: "Handler | None" = None,
    gc: "Handler | None" = None,
    status: "Handler | None" = None,
    versions: "Sequence[str]" = VERSIONS,
    about: str = "",
) -> None:
    """Run the plugin: read environment and stdin, call the handler, print, exit with 0 or 1.

    Without a handler for CHECK, GC or STATUS, only the IPAM plugin is called, if there is one. A
    person who runs the plugin by hand gets `about`.
    """
    handlers = {"ADD": add, "DEL": delete, "CHECK": check, "GC": gc, "STATUS": status}
    version = CURRENT
    try:
        command = os.environ.get("CNI_COMMAND", "")
        if not command and about:
            print(f"{about}\nCNI versions supported: {', '.join(versions)}", file=sys.stderr)
            return
        if command == "VERSION":
            version = _asked_version(versions)
            _print({"cniVersion": version, "supportedVersions": list(versions)})
            return
        check_environment(command, os.environ)
        request = Request(command, os.environ, _read_stdin())
        version = request.version
        request.check(versions)
        answer = _call(request, handlers[command] or _ask_ipam)
        if command == "ADD":
            _print(_result(answer, request))
    except Error as failure:
        _fail(version, failure)
    except Exception as error:
        import traceback

        traceback.print_exc()
        _fail(version, Error(f"{type(error).__name__}: {error}", errors.INTERNAL))


def _call(request: Request, handler: "Handler") -> "Any":
    try:
        return handler(request)
    except BaseException:
        request.undo_delegated()
        raise


def _ask_ipam(request: Request) -> None:
    if (request.config.get("ipam") or {}).get("type"):
        request.ipam()


def _result(answer: "Any", request: Request) -> "Result":
    """The result of ADD in the caller's version."""
    if answer is None:
        answer = request.prev_result or {}
    try:
        return results.convert(results.check(answer, CURRENT), request.version)
    except ValueError as error:
        request.undo_delegated()
        raise Error(f"the plugin's own result is wrong: {error}", errors.INTERNAL) from None


def _read_stdin() -> bytes:
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise Error(f"stdin can't be read: {error.strerror}", errors.IO_FAILURE) from None


def _asked_version(versions: "Sequence[str]") -> str:
    """The version on stdin; the newest one if stdin has none, as in a run by hand. No input makes
    VERSION fail: libcni's skel does not even read it."""
    try:
        asked = strictjson.parse(_available_stdin())
    except ValueError:
        asked = None
    version = asked.get("cniVersion") if isinstance(asked, dict) else None
    return version if isinstance(version, str) and version else versions[-1]


def _available_stdin() -> bytes:
    """What comes on stdin; not its end, because a script may have left it open."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    from select import select

    data = b""
    while select([sys.stdin], [], [], _INPUT_SECONDS)[0]:
        if not (chunk := os.read(sys.stdin.fileno(), 65536)):
            break
        data += chunk
    return data


def _print(answer: "Mapping[str, Any]") -> None:
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


def _fail(version: str, failure: Error) -> None:
    error = {"cniVersion": version, "code": failure.code, "msg": failure.message}
    if failure.details:
        error["details"] = failure.details
    _print(error)
    sys.exit(1)
