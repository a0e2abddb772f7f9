"""Runs one plugin once: environment and standard input in, JSON or an error out
(specification, sections 2 and 4)."""

import contextlib
import errno
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tapwright.cni.errors import PluginError

DEFAULT_PATH = ("/opt/cni/bin", "/usr/lib/cni")

_OUTPUT_LIMIT = 4 * 1024 * 1024
_CHUNK = 64 * 1024
_BUSY_ATTEMPTS = 20
_BUSY_PAUSE = 0.05


def find_plugin(kind: str, directories: Sequence[str]) -> str | None:
    """The executable of a plugin, or None."""
    for directory in directories:
        path = Path(directory, kind)
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return None


class Invocation:
    """One run of the plugin `kind` for a network's `command` (ADD, DEL, …)."""

    def __init__(self, network: str, kind: str, command: str) -> None:
        self.network = network
        self.kind = kind
        self.command = command

    def error(self, message: str, **more: Any) -> PluginError:
        return PluginError(self.network, self.kind, self.command, message, **more)

    def run(
        self,
        directories: Sequence[str],
        variables: dict[str, str],
        config: dict[str, Any],
        timeout: float,
        keep_fds: Sequence[int] = (),
    ) -> dict[str, Any] | None:
        """Run the plugin to its end; return the JSON object it printed, None for nothing.

        `keep_fds` are inherited by the plugin and all that it starts. A plugin that takes
        longer than `timeout` seconds is ended with its process group. Raises PluginError.
        """
        path = find_plugin(self.kind, directories)
        if path is None:
            raise self.error(
                f"no executable of that name in {' or '.join(directories)}; install the package "
                "that has it (Debian: containernetworking-plugins)"
            )
        environment = {"PATH": os.defpath, **os.environ, **variables}
        environment |= {"CNI_COMMAND": self.command, "CNI_PATH": ":".join(directories)}
        process = self._start(path, environment, keep_fds)
        stdout, stderr = self._communicate(process, json.dumps(config).encode(), timeout)
        if process.returncode != 0:
            raise self._failure(process.returncode, stdout, stderr)
        if not stdout.strip():
            return None
        try:
            answer = json.loads(stdout)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            shown = stdout[:200].decode(errors="replace")
            raise self.error(f"its output is not a JSON object: {shown!r}", stderr=stderr)
        return answer

    def _start(
        self, path: str, environment: dict[str, str], keep_fds: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        for _ in range(_BUSY_ATTEMPTS):
            try:
                return subprocess.Popen(
                    [path],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=keep_fds,
                    process_group=0,
                )
            except OSError as error:
                if error.errno != errno.ETXTBSY:
                    raise self.error(f"{path} can't be run: {error.strerror}") from None
                time.sleep(_BUSY_PAUSE)  # an installer is writing it; nothing tells when it is done
        raise self.error(f"{path} can't be run: it is being written all the time")

    def _communicate(
        self, process: subprocess.Popen[bytes], data: bytes, timeout: float
    ) -> tuple[bytes, str]:
        """Feed and read the plugin within bounds of size and time; end it where it exceeds one."""
        assert process.stdin is not None  # noqa: S101 - all three were made as pipes
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        deadline = time.monotonic() + timeout
        output: dict[Any, bytes] = {process.stdout: b"", process.stderr: b""}
        try:
            with selectors.DefaultSelector() as selector:
                os.set_blocking(process.stdin.fileno(), False)
                selector.register(process.stdin, selectors.EVENT_WRITE)
                for pipe in output:
                    selector.register(pipe, selectors.EVENT_READ)
                while selector.get_map():
                    ready = selector.select(max(0.0, deadline - time.monotonic()))
                    if not ready:
                        raise self.error(f"it did not end within {timeout:g} s")
                    for key, _ in ready:
                        if key.fileobj is process.stdin:
                            rest = data = _feed(process.stdin, data)
                        else:
                            rest = os.read(key.fd, _CHUNK)
                            output[key.fileobj] += rest
                        if not rest:
                            selector.unregister(key.fileobj)
                            if key.fileobj is process.stdin:
                                process.stdin.close()
                        if max(map(len, output.values())) > _OUTPUT_LIMIT:
                            raise self.error(f"it printed more than {_OUTPUT_LIMIT} bytes")
                process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self.error(f"it did not end within {timeout:g} s") from None
        finally:
            _end(process)
        return output[process.stdout], output[process.stderr].decode(errors="replace")

    def _failure(self, status: int, stdout: bytes, stderr: str) -> PluginError:
        try:
            answer = json.loads(stdout)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict) and isinstance(answer.get("msg"), str):
            code = answer.get("code")
            return self.error(
                answer["msg"],
                code=code if isinstance(code, int) else 0,
                details=str(answer.get("details") or ""),
                stderr=stderr,
            )
        end = f"signal {-status}" if status < 0 else f"exit status {status}"
        said = stdout.decode(errors="replace").strip() or stderr.strip() or "no message"
        return self.error(f"{end}: {said[-500:]}", stderr=stderr)


def _feed(pipe: IO[bytes], data: bytes) -> bytes:
    """Write some of the data; return what is left."""
    try:
        return data[os.write(pipe.fileno(), data[:_CHUNK]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""  # a plugin may answer without reading; its exit status tells


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()
