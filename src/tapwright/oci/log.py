"""Errors and warnings for platforms, in the file that `--log` names, in the form that they read.

containerd reads the last error in the file, and podman expects only one error. So a call writes its
warnings when it has succeeded, and none beside an error.
"""

import contextlib
import os
import sys
import time

from tapwright.errors import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Log:
    """`path` is empty for none; `form` is `json` or `text` (logrus, which runc writes with)."""

    def __init__(self, path: str, form: str) -> None:
        self._path = path
        self._form = form
        self._warnings: list[str] = []
        self._ahead = ""

    def warn(self, text: str) -> None:
        text = shown(text)
        if text not in self._warnings:
            self._warnings.append(text)

    def fails_unless(self, text: str) -> None:
        """Keep an error in the file until this call ends, for the case that the platform kills the
        call, as containerd does after its time limit."""
        if self._path:
            self._take_back()
            self._ahead = self._write("error", [shown(text)])

    def _take_back(self) -> None:
        """Remove that error, unless another process has written to the file since."""
        ahead = self._ahead.encode()
        self._ahead = ""
        if not ahead:
            return
        with contextlib.suppress(OSError), open(self._path, "rb+") as file:
            start = file.seek(0, os.SEEK_END) - len(ahead)
            file.seek(max(0, start))
            if file.read() == ahead:
                file.truncate(start)

    def succeeded(self) -> None:
        """Write the warnings to the file; without a file to stderr, which may otherwise be the
        container's."""
        self._take_back()
        if self._path:
            self._write("warning", self._warnings)
        else:
            for text in self._warnings:
                _to_stderr(f"warning: {text}")
        self._warnings = []

    def failed(self, text: str) -> None:
        """Write the error to the file and to stderr, as runc does."""
        self._take_back()
        text = shown(text)  # platforms print the file
        if self._path:
            self._write("error", [text])
        _to_stderr(text)

    def _write(self, level: str, texts: "Iterable[str]") -> str:
        """Append lines; return their text, empty after a failure."""
        lines = "".join(f"{self._line(level, text)}\n" for text in texts)
        if not lines:
            return ""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "w") as file:
                file.write(lines)
        except OSError as error:
            _to_stderr(f"{self._path} can't be written: {error.strerror}")
            return ""
        return lines

    def _line(self, level: str, text: str) -> str:
        import json

        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._form == "json":
            return json.dumps({"level": level, "msg": text, "time": now})
        return f'time="{now}" level={level} msg={json.dumps(text)}'


def _to_stderr(text: str) -> None:
    with contextlib.suppress(OSError):  # platforms may have opened it for reading
        print(f"tapwright: {text}", file=sys.stderr, flush=True)
