"""Runs the plugin to which a plugin delegates, with the same environment and input (section 4)."""

import os

from tapwright.cni import errors, strictjson
from tapwright.cni.plugin.error import Error
from tapwright.cni.pluginpath import find_plugin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tapwright.cni.results import Result


def run(kind: str, command: str, path: "Sequence[str]", stdin: bytes) -> "Result | None":
    """Run a plugin found in `path`, with this plugin's stderr; return its result, None for none. As
    in libcni (pkg/invoke/delegate.go), the output of commands other than ADD is ignored.

    The plugin stays in this process group, so a runtime that kills this one kills it, too. Raises
    Error.
    """
    executable = None if "/" in kind else find_plugin(kind, path)
    if executable is None:
        raise Error(f"no plugin {kind!r} in CNI_PATH", errors.INVALID_CONFIGURATION)
    status, stdout = _execute(executable, {**os.environ, "CNI_COMMAND": command}, stdin)
    return None if status == 0 and command != "ADD" else _finished(kind, status, stdout)


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
        raise Error(f"{path} can't be run: {error.strerror}", errors.IO_FAILURE) from None
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
            raise Error(f"{kind}: its output is not JSON: {error}", errors.INTERNAL) from None
    if status == 0 and (answer is None or isinstance(answer, dict)):
        return answer
    if isinstance(answer, dict) and isinstance(answer.get("msg"), str):
        code = answer.get("code")
        raise Error(
            f"{kind}: {answer['msg']}",
            code if isinstance(code, int) else errors.INTERNAL,
            str(answer.get("details") or ""),
        )
    raise Error(f"{kind}: failed with status {status} and no message", errors.INTERNAL)
