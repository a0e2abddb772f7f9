"""A person's terminal: a program in a pty, typed to and read from."""

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

_CHUNK = 4096


class Terminal:
    """Runs a program with the size of rows and columns, with options of `Popen`. Used as a context,
    at whose end the program is killed if it still runs."""

    def __init__(self, argv: Sequence[str], rows: int, columns: int, **options: Any) -> None:
        self._master, slave = os.openpty()
        self._set_size(rows, columns)
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, **options)
        os.close(slave)
        self.seen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        self._set_size(rows, columns)
        # The kernel tells only those whose controlling terminal this is.
        self.process.send_signal(signal.SIGWINCH)

    def expect(self, text: str, seconds: float = 60.0) -> None:
        """Read on until the text has come, which is then no longer in `seen`."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen!r}"
            chunk = self._read()
            assert chunk, f"the end, and no {text!r} in {self.seen!r}"
            self.seen += chunk
        self.seen = self.seen.partition(text)[2]

    def wait(self, seconds: float = 60.0) -> int:
        """The program's exit status, with what it still writes in `seen`."""
        while chunk := self._read():
            self.seen += chunk
        return self.process.wait(seconds)

    def _read(self) -> str:
        try:
            return os.read(self._master, _CHUNK).decode(errors="replace")
        except OSError:  # EIO: nobody has the other end open any more
            return ""

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
