"""Runs one plugin for one operation: takes parameters and configuration, returns the answer or
raises PluginError (section 2)."""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tapwright.cni import process, results, strictjson
from tapwright.cni.errors import NotRunError, PluginError
from tapwright.cni.network import member
from tapwright.cni.pluginpath import find_plugin

_PARAMETERS = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")
_ANSWERED = ("ADD", "VERSION")
_SHOWN = 500


class Run(NamedTuple):
    """One run of a plugin, for a trace. `environment` has only the CNI parameters; `status` is the
    exit status, or minus the signal, or None when the plugin did not start or had to be killed;
    `problem` is empty after a success; `remarks` are about oddities in the result."""

    network: str
    plugin: str
    command: str
    path: str
    environment: dict[str, str]
    stdin: str
    stdout: str
    stderr: str
    status: int | None
    seconds: float
    problem: str
    remarks: tuple[str, ...] = ()


Trace = Callable[[Run], None]


class Invocation(NamedTuple):
    """The plugin (`kind`), its command and network, and the directories of plugins."""

    network: str
    kind: str
    command: str
    directories: Sequence[str]
    timeout: float
    trace: Trace | None = None

    def error(self, message: str, **more: Any) -> PluginError:
        return PluginError(self.network, self.kind, self.command, message, **more)

    def find(self) -> str:
        """The executable. Raises PluginError."""
        path = find_plugin(self.kind, self.directories)
        if path is None:
            places = " or ".join(self.directories) or "the empty plugin path"
            unfit = [
                place
                for place in self.directories
                if os.path.exists(os.path.join(place, self.kind))
            ]
            what = "is not executable" if unfit else "does not exist"
            raise self.error(
                f"its executable {what} in {' or '.join(unfit) or places}; install it there or "
                "name its directory in the plugin path"
            )
        return path

    def run(
        self,
        config: dict[str, Any],
        variables: Mapping[str, str],
        keep_fds: Sequence[int] = (),
    ) -> dict[str, Any] | None:
        """Run the plugin to its end; return the JSON object that it printed, None for nothing.

        Only ADD and VERSION have an answer. As in libcni (pkg/invoke/exec.go, raw_exec.go), the
        stdout of other commands is ignored, and stderr goes to this process's stderr. `variables`
        are the parameters beside CNI_COMMAND and CNI_PATH. Raises PluginError.
        """
        path = self.find()
        # Always all of them, as in libcni (pkg/invoke/args.go): a script may run with set -u.
        parameters = {
            **dict.fromkeys(_PARAMETERS, ""),
            **variables,
            "CNI_COMMAND": self.command,
            "CNI_PATH": os.pathsep.join(self.directories),
        }
        stdin = json.dumps(config)
        started = time.monotonic()
        done = None
        try:
            done = process.run(
                path,
                _environment(parameters),
                stdin.encode(),
                self.timeout,
                keep_fds,
                answers=self.command in _ANSWERED,
            )
            answer = self._answer(done)
        except OSError as error:
            failure = NotRunError(
                self.network, self.kind, self.command, f"{path} can't be run: {_reason(error)}"
            )
            self._tell(path, parameters, stdin, done, started, failure.message)
            raise failure from None
        except PluginError as error:
            self._tell(path, parameters, stdin, done, started, error.message)
            raise
        remarks = tuple(results.remarks(answer)) if self.command == "ADD" and answer else ()
        self._tell(path, parameters, stdin, done, started, "", remarks)
        _relay(done.stderr)
        return answer

    def _answer(self, done: process.Finished) -> dict[str, Any] | None:
        stderr = done.stderr.decode(errors="replace")
        if done.failure:
            raise self.error(done.failure, stderr=stderr)
        if done.status != 0:
            raise self._failure(done, stderr)
        if self.command not in _ANSWERED or not done.stdout.strip():
            return None
        try:
            answer = strictjson.parse(done.stdout)
        except ValueError as error:
            raise self.error(
                f"its output is not JSON ({error}): {_excerpt(done.stdout)!r}", stderr=stderr
            ) from None
        if not isinstance(answer, dict | None):
            raise self.error(
                f"its output is not a JSON object: {_excerpt(done.stdout)!r}", stderr=stderr
            )
        return answer or {}  # null is an empty object in libcni

    def _failure(self, done: process.Finished, stderr: str) -> PluginError:
        """The error of a failed plugin, from its output in any form."""
        try:
            answer = strictjson.parse(done.stdout)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and (words := _error_object(answer)):
            message, code, details = words
            return self.error(
                message or f"{_end(done)}, with an empty error message",
                code=code,
                details=details,
                stderr=stderr,
            )
        said = _excerpt(done.stdout) or _excerpt(done.stderr) or "it said nothing"
        return self.error(f"{_end(done)}: {said}", stderr=stderr)

    def _tell(
        self,
        path: str,
        parameters: dict[str, str],
        stdin: str,
        done: process.Finished | None,
        started: float,
        problem: str,
        remarks: tuple[str, ...] = (),
    ) -> None:
        if self.trace is None:
            return
        self.trace(
            Run(
                self.network,
                self.kind,
                self.command,
                path,
                parameters,
                stdin,
                done.stdout.decode(errors="replace") if done else "",
                done.stderr.decode(errors="replace") if done else "",
                None if done is None or done.failure else done.status,
                time.monotonic() - started,
                problem,
                remarks,
            )
        )


def _error_object(answer: dict[str, Any]) -> tuple[str, int, str] | None:
    """(message, code, details) of an error (section 5, "Error"); None for an object that is none. A
    key may be missing, and a value of another type than the specification's counts as missing."""
    message, code = member(answer, "msg"), member(answer, "code")
    has_code = isinstance(code, int) and not isinstance(code, bool)
    if not isinstance(message, str) and not has_code:
        return None
    details = str(member(answer, "details") or "")
    return (message if isinstance(message, str) else ""), (code if has_code else 0), details


def _reason(error: OSError) -> str:
    """Why an executable that exists does not start, in words that lead to what is missing."""
    if error.errno == errno.ENOENT:
        return "the interpreter after its '#!', or its dynamic loader, does not exist"
    if error.errno == errno.ENOEXEC:
        return f"{error.strerror}: it is for another kind of machine, or a script without '#!'"
    return str(error.strerror)


def _end(done: process.Finished) -> str:
    if done.status < 0:
        return f"ended by signal {-done.status}"
    return f"exit status {done.status}"


def _relay(stderr: bytes) -> None:
    """Copy a plugin's stderr to this process's; a daemon may have closed its own."""
    if stderr and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(_printable(stderr.decode(errors="replace")))
            sys.stderr.flush()


def _printable(text: str) -> str:
    """The text without control characters for a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _environment(parameters: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with the parameters. Plugins need the rest, too: PATH to find
    iptables, and the trace that they belong to (TRACEPARENT, TRACESTATE, BAGGAGE: libcni,
    raw_exec.go)."""
    return {"PATH": os.defpath, **os.environ, **parameters}


def _excerpt(output: bytes) -> str:
    return output.decode(errors="replace").strip()[-_SHOWN:]
