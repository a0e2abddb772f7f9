"""Errors and warnings for platforms: in the file that `--log` names, as they read it.

containerd takes the last error of it, podman expects nothing but one error in it: so warnings are
kept until the call has succeeded, and there are none beside an error.
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
        """Keep an error in the file until this call ends, for a platform that kills the call before
        that, as containerd does at its time limit."""
        if self._path:
            self._take_back()
            self._ahead = self._write("error", [shown(text)])

    def _take_back(self) -> None:
        """Remove the line again, unless another process has written since."""
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
        """Print the warnings; on stderr only without a log file, because it may be the
        container's."""
        self._take_back()
        if self._path:
            self._write("warning", self._warnings)
        else:
            for text in self._warnings:
                _to_stderr(f"warning: {text}")
        self._warnings = []

    def failed(self, text: str) -> None:
        """Tell the error, in the file and on stderr, as runc does."""
        self._take_back()
        text = shown(text)  # platforms print what is in the file
        if self._path:
            self._write("error", [text])
        _to_stderr(text)

    def _write(self, level: str, texts: "Iterable[str]") -> str:
        """Return what was written."""
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
