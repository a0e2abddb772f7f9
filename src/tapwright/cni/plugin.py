"""For writing plugins: the protocol's side of one, in the role of libcni's `skel`.

A plugin is a function for ADD and one for DEL, and others as it needs them:

    from tapwright.cni import plugin

    def add(request):
        ...
        return {"interfaces": [...], "ips": [...]}  # or None: request.prev_result, unchanged

    def delete(request):
        ...

    plugin.main(add, delete)

Results are of version 1.1.0 on this side of `main`, whatever version the caller speaks. A failure
is raised: `Failure` with a code of section 5, "Error", or anything else, which becomes code 999.

Plugins run often, and must start fast: this module imports nothing that it can do without.
"""

import json
import os
import sys

from tapwright.cni import errors, results, strictjson
from tapwright.cni.versions import CHECK, CURRENT, GC, STATUS, VERSIONS, at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from tapwright.cni.results import Result

    Handler = Callable[["Request"], Any]

_ATTACHMENT = ("CNI_CONTAINERID", "CNI_IFNAME")
_REQUIRED = {
    "ADD": (*_ATTACHMENT, "CNI_NETNS"),
    "CHECK": (*_ATTACHMENT, "CNI_NETNS"),
    "DEL": _ATTACHMENT,
    "GC": ("CNI_PATH",),
    "STATUS": (),
}
_SINCE = {"CHECK": CHECK, "GC": GC, "STATUS": STATUS}
_OWN_NETNS = "/proc/self/ns/net"


class Failure(Exception):
    """A plugin's failure; `code` is one of section 5, or 100 and above for the plugin's own."""

    def __init__(self, message: str, code: int = 100, details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details


class Request:
    """What the runtime asks for.

    `config` is the request as it came, with `version` its version; `args` has CNI_ARGS by key;
    `runtime_config` the capability arguments; `valid_attachments` (for GC) pairs of container id
    and interface name; `prev_result` the result so far, as version 1.1.0 has it, or None. What is
    missing is empty.
    """

    def __init__(self, command: str, environment: "Mapping[str, str]", stdin: bytes) -> None:
        self.command = command
        self.container_id = environment.get("CNI_CONTAINERID", "")
        self.netns = environment.get("CNI_NETNS", "")
        self.ifname = environment.get("CNI_IFNAME", "")
        pairs = environment.get("CNI_ARGS", "").split(";")
        self.args = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        self.path = [entry for entry in environment.get("CNI_PATH", "").split(os.pathsep) if entry]
        self.stdin = stdin
        self.config: dict[str, Any] = _config(stdin)
        self.version: str = self.config.get("cniVersion") or VERSIONS[0]
        self.runtime_config: dict[str, Any] = self.config.get("runtimeConfig") or {}
        self.valid_attachments = [
            (entry["containerID"], entry["ifname"])
            for entry in self.config.get("cni.dev/valid-attachments") or ()
        ]
        self.prev_result: Result | None = None
        self._delegated: list[str] = []

    def ipam(self) -> "Result":
        """Run the IPAM plugin that the configuration names, for the same command.

        Returns its result, empty for other commands than ADD. When ADD fails, here or later in
        the plugin, DEL of the IPAM plugin runs before the failure is reported (section 4). Raises
        Failure with the IPAM plugin's own words.
        """
        kind = (self.config.get("ipam") or {}).get("type")
        if not kind:
            raise Failure("key 'ipam.type' names no plugin", errors.INVALID_CONFIGURATION)
        if self.command == "ADD":
            self._delegated.append(kind)
        answer = _delegate(kind, self.command, self)
        return results.as_version(answer, CURRENT) if answer else {}

    def undo_delegated(self) -> None:
        """DEL of the delegates of a failed ADD; they say on stderr what they fail at."""
        for kind in reversed(self._delegated):
            try:
                _delegate(kind, "DEL", self)
            except Failure as failure:
                print(f"DEL of {kind} after the failure: {failure}", file=sys.stderr)


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
    """Be the plugin: read environment and stdin, call the handler, print, exit with 0 or 1.

    Where there is no handler for CHECK, GC or STATUS, the IPAM plugin is asked, if there is one,
    and nothing else. `about` is told to a person who runs the plugin by hand.
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
        _check_environment(command, os.environ)
        request = Request(command, os.environ, _read_stdin())
        version = request.version
        _check_version(request, versions)
        _check_netns(request)
        _prepare(request)
        answer = _call(request, handlers[command] or _ask_ipam)
        if command == "ADD":
            _print(_result(answer, request))
    except Failure as failure:
        _fail(version, failure)
    except Exception as error:
        import traceback

        traceback.print_exc()
        _fail(version, Failure(f"{type(error).__name__}: {error}", errors.INTERNAL))


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
    """What ADD returned, as the caller's version has it."""
    if answer is None:
        answer = request.prev_result or {}
    try:
        current = results.check(answer, CURRENT)
        return results.convert(current, request.version)
    except ValueError as error:
        request.undo_delegated()
        raise Failure(f"the plugin's own result is wrong: {error}", errors.INTERNAL) from None


def _check_environment(command: str, environment: "Mapping[str, str]") -> None:
    if command not in _REQUIRED:
        raise Failure(
            f"CNI_COMMAND: {command!r} is none of {', '.join(_REQUIRED)} and VERSION",
            errors.INVALID_ENVIRONMENT,
        )
    required = _REQUIRED[command]
    missing = [name for name in required if not environment.get(name)]
    if missing:
        raise Failure(f"{command} needs {', '.join(missing)}", errors.INVALID_ENVIRONMENT)
    if command in ("GC", "STATUS"):
        return
    container_id = environment["CNI_CONTAINERID"]
    if not _is_name(container_id):
        raise Failure(
            f"CNI_CONTAINERID: {container_id!r} is not a container id", errors.INVALID_ENVIRONMENT
        )
    ifname = environment["CNI_IFNAME"]
    if (
        len(ifname.encode()) > 15
        or ifname in (".", "..")
        or any(c in "/:" or c.isspace() for c in ifname)
    ):
        raise Failure(
            f"CNI_IFNAME: {ifname!r} is not an interface name", errors.INVALID_ENVIRONMENT
        )


def _is_name(text: str) -> bool:
    """A container id or network name; without `re`, which would be imported for this alone."""
    return text.isascii() and text[:1].isalnum() and all(c.isalnum() or c in "_.-" for c in text)


def _read_stdin() -> bytes:
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise Failure(f"stdin can't be read: {error.strerror}", errors.IO_FAILURE) from None


def _config(stdin: bytes) -> "dict[str, Any]":
    try:
        config = strictjson.parse(stdin)
    except ValueError as error:
        raise Failure(f"stdin is not JSON: {error}", errors.DECODING_FAILURE) from None
    if not isinstance(config, dict):
        raise Failure("stdin is not a JSON object", errors.DECODING_FAILURE)
    if not isinstance(config.get("cniVersion", ""), str):
        raise Failure("key 'cniVersion' is not a string", errors.DECODING_FAILURE)
    name = config.get("name")
    if not isinstance(name, str) or not _is_name(name):
        raise Failure(f"key 'name': {name!r} is not a network name", errors.INVALID_CONFIGURATION)
    for key in ("ipam", "runtimeConfig", "prevResult"):
        if not isinstance(config.get(key) or {}, dict):
            raise Failure(f"key '{key}' is not an object", errors.INVALID_CONFIGURATION)
    return config


def _asked_version(versions: "Sequence[str]") -> str:
    """The version on stdin, where the caller gives one: by hand, there may be nothing."""
    if sys.stdin is None or sys.stdin.isatty():
        return versions[-1]
    try:
        asked = strictjson.parse(_read_stdin() or b"{}")
    except ValueError as error:
        raise Failure(f"stdin is not JSON: {error}", errors.DECODING_FAILURE) from None
    version = asked.get("cniVersion") if isinstance(asked, dict) else None
    return version if isinstance(version, str) and version else versions[-1]


def _check_version(request: Request, versions: "Sequence[str]") -> None:
    version, command = request.version, request.command
    since = _SINCE.get(command, VERSIONS[0])
    if version not in versions or version not in VERSIONS:
        raise Failure(
            f"version {version} is not supported",
            errors.INCOMPATIBLE_VERSION,
            f"supported: {', '.join(versions)}",
        )
    if not at_least(version, since):
        raise Failure(
            f"version {version} has no {command}, which came with {since}",
            errors.INCOMPATIBLE_VERSION,
        )


def _check_netns(request: Request) -> None:
    """A container in our own namespace would have the host's network changed (libcni, pkg/skel)."""
    override = os.environ.get("CNI_NETNS_OVERRIDE", "").upper() in ("1", "TRUE")
    if request.command not in ("ADD", "DEL") or not request.netns or override:
        return
    try:
        theirs, ours = os.stat(request.netns), os.stat(_OWN_NETNS)
    except OSError:
        return  # the plugin sees whether it needs a namespace: DEL often does not
    if os.path.samestat(theirs, ours):
        raise Failure(
            f"CNI_NETNS: {request.netns} is the plugin's own namespace", errors.INVALID_NETNS
        )


def _prepare(request: Request) -> None:
    previous = request.config.get("prevResult")
    if previous:
        try:
            checked = results.check(previous, request.version)
            request.prev_result = results.convert(checked, CURRENT)
        except ValueError as error:
            raise Failure(f"key 'prevResult': {error}", errors.DECODING_FAILURE) from None


def _delegate(kind: str, command: str, request: Request) -> "Result | None":
    """Run another plugin with our environment and input; its stderr is ours (section 4)."""
    from tapwright.cni.invoke import find_plugin

    path = None if "/" in kind else find_plugin(kind, request.path)
    if path is None:
        raise Failure(f"no plugin {kind!r} in CNI_PATH", errors.INVALID_CONFIGURATION)
    return _finished(kind, *_execute(path, {**os.environ, "CNI_COMMAND": command}, request.stdin))


def _execute(path: str, environment: "Mapping[str, str]", stdin: bytes) -> tuple[int, bytes]:
    source = os.memfd_create("stdin")
    reader, writer = os.pipe()
    try:
        with open(source, "wb", closefd=False) as file:
            file.write(stdin)
        os.lseek(source, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, writer, 1)]
        pid = os.posix_spawn(path, [path], environment, file_actions=actions)
    except OSError as error:
        os.close(reader)
        raise Failure(f"{path} can't be run: {error.strerror}", errors.IO_FAILURE) from None
    finally:
        os.close(source)
        os.close(writer)
    with open(reader, "rb") as pipe:
        stdout = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stdout


def _finished(kind: str, status: int, stdout: bytes) -> "Result | None":
    answer = None
    if stdout.strip():
        try:
            answer = strictjson.parse(stdout)
        except ValueError as error:
            raise Failure(f"{kind}: its output is not JSON: {error}", errors.INTERNAL) from None
    if status == 0 and (answer is None or isinstance(answer, dict)):
        return answer
    if isinstance(answer, dict) and isinstance(answer.get("msg"), str):
        code = answer.get("code")
        raise Failure(
            f"{kind}: {answer['msg']}",
            code if isinstance(code, int) else errors.INTERNAL,
            str(answer.get("details") or ""),
        )
    raise Failure(f"{kind}: failed with status {status} and no message", errors.INTERNAL)


def _print(answer: "Mapping[str, Any]") -> None:
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


def _fail(version: str, failure: Failure) -> None:
    error = {"cniVersion": version, "code": failure.code, "msg": failure.message}
    if failure.details:
        error["details"] = failure.details
    _print(error)
    sys.exit(1)
