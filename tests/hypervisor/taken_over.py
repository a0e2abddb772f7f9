"""A daemon that a guest has taken over: a program that is started as virtiofsd is, and then does
what it is told. The true one has confined itself further by then."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tapwright.hypervisor.machine import Daemon
from tapwright.hypervisor.share import Share

_PROGRAM = """#!/usr/bin/python3 -ISB
import ctypes, errno, os, socket, struct, sys

libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    words = [each if isinstance(each, bytes) else ctypes.c_long(each) for each in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

(listening,) = [int(word[5:]) for word in sys.argv if word.startswith("--fd=")]
connection = socket.socket(fileno=listening).accept()[0]
processes = os.open("/proc/self/fd", os.O_RDONLY)  # which virtiofsd keeps, too
while code := connection.recv(1 << 16):
    try:
        said = repr(eval(code))
    except OSError as error:
        said = errno.errorcode[error.errno]
    except Exception as error:
        said = repr(error)
    connection.sendall(said.encode() + b"\\n")
"""


class TakenOver:
    """It evaluates what it is told."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self._answers = share.connection.makefile("r")

    def does(self, code: str) -> str:
        """What comes of an expression: its `repr`, or the name of an errno. There are `os`,
        `call(NUMBER, ARGUMENT, …)` for system calls, and `processes`, a directory in its /proc."""
        self.share.connection.sendall(code.encode())
        return self._answers.readline().strip()

    def close(self) -> None:
        self._answers.close()


@contextmanager
def taken_over(uid: int, directory: Path) -> Iterator[TakenOver]:
    """One, in a share that is sealed, its program being written in a directory of the host."""
    program = directory / "virtiofsd"
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    share = Share.start(uid, Daemon(str(program)))
    daemon = TakenOver(share)
    try:
        share.connection.settimeout(60)
        assert daemon.does("1 + 1") == "2"
        share.seal()
        yield daemon
    finally:
        daemon.close()
        share.kill()
        os.close(share.stderr)
