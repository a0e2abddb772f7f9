"""The files of a guest, written and read by commands that run there."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tapwright.agent import protocol
from tapwright.errors import GuestFileError, UsageError
from tapwright.sandbox.execution import Process

# So that the file is complete, or as it was before.
_WRITE = 'cat >"$1.$$" && chmod "$2" "$1.$$" && mv "$1.$$" "$1" || { rm -f "$1.$$"; exit 1; }'

Start = Callable[..., Process]


class Files:
    """The files of a guest. Each method raises GuestFileError when the guest refuses,
    SandboxStateError, AgentError."""

    def __init__(self, start: Start) -> None:
        self._start = start

    def read(self, path: str) -> bytes:
        """The content of a file."""
        with self._reading(path) as process:
            return process.stdout.read()

    def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Replace the content of a file. After a failure the file is as it was."""
        data = content.encode() if isinstance(content, str) else content
        with self._writing(path, mode) as process:
            process.write(data)

    def get(self, path: str, to: str | Path | IO[bytes]) -> None:
        """Copy a file of the guest to the host, part by part; `to` is a path, or a file that is
        open for binary writing. Raises OSError."""
        if isinstance(to, str | Path):
            with open(to, "wb") as file:
                self.get(path, file)
            return
        with self._reading(path) as process:
            while data := process.stdout.read1():
                to.write(data)

    def put(self, source: str | Path | IO[bytes], path: str, *, mode: int | None = None) -> None:
        """Copy a file of the host to the guest, part by part; `source` is a path, or a file that is
        open for binary reading. Without a `mode`, a path keeps its mode, and an open file gets
        0o644. Raises OSError."""
        if isinstance(source, str | Path):
            with open(source, "rb") as file:
                self.put(
                    file,
                    path,
                    mode=os.fstat(file.fileno()).st_mode & 0o7777 if mode is None else mode,
                )
            return
        with self._writing(path, 0o644 if mode is None else mode) as process:
            while process.status is None and (data := source.read(protocol.MAX_PAYLOAD)):
                process.write(data)

    @contextmanager
    def _reading(self, path: str) -> Iterator[Process]:
        with self._start(["cat", "--", _checked(path)]) as process:
            yield process
            _ended_well(process, path)

    @contextmanager
    def _writing(self, path: str, mode: int) -> Iterator[Process]:
        words = ["sh", "-c", _WRITE, "sh", _checked(path), f"{mode:o}"]
        with self._start(words, stdin=True) as process:
            yield process
            process.close_stdin()
            _ended_well(process, path)


def _checked(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{path!r} is not an absolute path of the guest")
    return path


def _ended_well(process: Process, path: str) -> None:
    if process.wait():
        said = process.stderr.read().decode(errors="replace").strip()
        raise GuestFileError(path, said.rpartition(": ")[2] or f"status {process.status}")
