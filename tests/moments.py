"""The moments at which processes write down what they know: each waits for the test's decision.

Such a moment is a system call that makes, renames, removes or syncs a file below a directory, by a
process that was started here or by one of those that it started (seccomp_unotify(2)). The test may
let it go on, make it fail, kill the process, or take the power from the disk.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

# x86-64 (arch/x86/entry/syscalls/syscall_64.tbl), and which argument is a descriptor of a directory
# and which a path: -1 for none.
_CALLS = {
    2: ("open", -1, 0),
    257: ("openat", 0, 1),
    85: ("creat", -1, 0),
    82: ("rename", -1, 1),
    264: ("renameat", 2, 3),
    316: ("renameat2", 2, 3),
    83: ("mkdir", -1, 0),
    258: ("mkdirat", 0, 1),
    84: ("rmdir", -1, 0),
    87: ("unlink", -1, 0),
    263: ("unlinkat", 0, 1),
    88: ("symlink", -1, 1),
    266: ("symlinkat", 1, 2),
    74: ("fsync", 0, -1),
    75: ("fdatasync", 0, -1),
}
_FLAGS = {2: 1, 257: 2}
"""Of calls that are looked at only if they make a file: which argument says so."""
_SECCOMP, _SET_FILTER, _NEW_LISTENER = 317, 1, 1 << 3
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_ARCH_X86_64 = 0xC000003E
# linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
_LOAD, _EQUAL, _ANY_OF, _RETURN = 0x20, 0x15, 0x45, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
# include/uapi/linux/seccomp.h: struct seccomp_notif, seccomp_notif_resp and their ioctls
_NOTICE, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_GO_ON = 1
_AT_FDCWD = 0xFFFFFF9C
_PATH_BYTES = 4096


class Moment(NamedTuple):
    """A call that waits. `number` counts those of all processes, from 0."""

    number: int
    pid: int
    call: str
    path: str


Decide = Callable[[Moment], int]
"""What a moment comes to: 0 to go on, or the number of an error. It may also kill the process."""


def go_on(moment: Moment) -> int:
    return 0


class Watched:
    """A command whose writing below a directory is decided on, and that of all that it starts,
    as long as the block lasts."""

    def __init__(
        self, argv: list[str], below: Path, decide: Decide = go_on, **options: Any
    ) -> None:
        self._below = f"{below}/"
        self._decide = decide
        self.moments: list[Moment] = []
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115 - no pipe, which others may keep
            options = {"stdout": self._output, "stderr": self._output} | options
            self.process = subprocess.Popen(
                [sys.executable, "-IS", __file__, str(theirs.fileno()), *argv],
                pass_fds=[theirs.fileno()],
                **options,
            )
            theirs.close()
            _, (self._listener,), _, _ = socket.recv_fds(ours, 1, 1)
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """What still runs of it, and writes from now on, gets ENOSYS."""
        os.close(self._ended)
        self._thread.join()
        for fd in (self._end, self._listener):
            os.close(fd)
        self._output.close()

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """Its exit status, and all that it said."""
        status = self.process.wait(seconds)
        return status, os.pread(self._output.fileno(), 1 << 20, 0).decode(errors="replace")

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while True:
            for fd, event in poll.poll():
                if fd == self._end or not event & select.POLLIN:
                    return
            notice = bytearray(_NOTICE.size)
            try:
                fcntl.ioctl(self._listener, _RECEIVE, notice)
            except OSError:
                continue  # it was killed meanwhile
            handle, pid, _, number, _, _, *arguments = _NOTICE.unpack(notice)
            error = 0
            with contextlib.suppress(OSError):  # of a process that has ended
                error = self._error_of(pid, number, arguments)
            answer = bytearray(_ANSWER.pack(handle, 0, -error, 0 if error else _GO_ON))
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._listener, _SEND, answer)

    def _error_of(self, pid: int, number: int, arguments: list[int]) -> int:
        call, directory, path = _CALLS[number]
        place = _path(pid, arguments, directory, path)
        if not place.startswith(self._below):
            return 0
        moment = Moment(len(self.moments), pid, call, place)
        self.moments.append(moment)
        return self._decide(moment)


def _path(pid: int, arguments: list[int], directory: int, path: int) -> str:
    if path < 0:
        return os.readlink(f"/proc/{pid}/fd/{arguments[directory]}")
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(arguments[path])
        text = os.fsdecode(memory.read(_PATH_BYTES).partition(b"\0")[0])
    if text.startswith("/"):
        return text
    start = arguments[directory] & 0xFFFFFFFF if directory >= 0 else _AT_FDCWD
    place = f"/proc/{pid}/cwd" if start == _AT_FDCWD else f"/proc/{pid}/fd/{start}"
    return os.path.join(os.readlink(place), text)


def _filter() -> bytes:
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCH_X86_64), (_RETURN, 0, 0, _ALLOW)]
    code += [(_LOAD, 0, 0, 0)]
    for number in _CALLS:
        if (flags := _FLAGS.get(number)) is None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
        else:
            code += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16 + 8 * flags)]
            code += [(_ANY_OF, 0, 1, os.O_CREAT), (_RETURN, 0, 0, _NOTIFY)]
            code += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(_INSTRUCTION.pack(*one) for one in [*code, (_RETURN, 0, 0, _ALLOW)])


def _become(fd: int, argv: list[str]) -> None:
    """Hand over the descriptor of the filter's decisions, and become the command."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(_filter())
    program = struct.pack("@HP", (len(code) - 1) // _INSTRUCTION.size, ctypes.addressof(code))
    listener = libc.syscall(
        *map(ctypes.c_long, (_SECCOMP, _SET_FILTER, _NEW_LISTENER)), ctypes.c_char_p(program)
    )
    if listener < 0:
        sys.exit(f"no filter: {errno.errorcode[ctypes.get_errno()]}")
    with socket.socket(fileno=fd) as connection:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))]
        connection.sendmsg([b"x"], rights)
    os.close(listener)
    os.execvp(argv[0], argv)  # noqa: S606 - which is the purpose


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
