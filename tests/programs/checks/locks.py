"""flock(2), fcntl(2)'s locks of both kinds, leases."""

import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

from tests.programs.checks.frame import (
    USER,
    Outcome,
    check,
    error,
    in_child,
    interval,
    value,
    write,
)

_SETLEASE, _GETLEASE = 1024, 1025
_OFD_GETLK, _OFD_SETLK, _OFD_SETLKW = 36, 37, 38
_TRY = fcntl.LOCK_NB


def _open(path: str = "file", flags: int = os.O_RDWR) -> int:
    return os.open(path, flags | os.O_CREAT, 0o644)


def _flock(fd: int, kind: int) -> str:
    return error(fcntl.flock, fd, kind | _TRY)


def _lock(fd: int, kind: int, start: int = 0, length: int = 0, command: int = -1) -> str:
    command = fcntl.F_SETLK if command < 0 else command
    return error(fcntl.fcntl, fd, command, interval(kind, start, length))


def _ofd(fd: int, kind: int, start: int = 0, length: int = 0) -> str:
    return _lock(fd, kind, start, length, _OFD_SETLK)


def _found(fd: int, kind: int, start: int = 0, length: int = 0, command: int = -1) -> Any:
    """What stands in the way: kind, from, length, and whose."""
    command = fcntl.F_GETLK if command < 0 else command
    asked = bytearray(interval(kind, start, length))
    said = value(fcntl.fcntl, fd, command, bytes(asked))
    if len(said) < 32:
        return said
    kind, _, start, length, pid = struct.unpack("hhqqi4x", said.encode("latin-1"))
    names = {fcntl.F_RDLCK: "read", fcntl.F_WRLCK: "write", fcntl.F_UNLCK: "none"}
    whose = {os.getpid(): "mine", os.getppid(): "the parent's", -1: "nobody's", 0: "unknown"}
    return [names[kind], start, length, whose.get(pid, "another's") if kind != 2 else ""]


class _Holder:
    """A child that does something, and ends, on command."""

    def __init__(self, action: Callable[[], Any]) -> None:
        said, saying = os.pipe()
        hearing, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.write(saying, str(action()).encode() or b" ")
            os.read(hearing, 1)
            os._exit(0)
        os.close(saying)
        os.close(hearing)
        self.said = os.read(said, 100).decode()
        os.close(said)

    def end(self, number: int = 0) -> None:
        if number:
            os.kill(self.pid, number)
        os.close(self._go)
        os.waitpid(self.pid, 0)


class _Waiter:
    """A child that does something which may have to wait; whether it has ended."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._said, saying = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.write(saying, str(action()).encode())
            os._exit(0)
        os.close(saying)

    def waits(self) -> bool:
        return not select.select([self._said], [], [], 0.4)[0]

    def says(self) -> str:
        """Within 20 s."""
        heard = bool(select.select([self._said], [], [], 20)[0])
        if not heard:
            os.kill(self.pid, signal.SIGKILL)
        said = os.read(self._said, 100).decode() if heard else "does not end"
        os.waitpid(self.pid, 0)
        os.close(self._said)
        return said


@check
def flock_between_descriptors() -> Outcome:
    one, two = _open(), _open()
    copy = os.dup(one)
    outcome: Outcome = {
        "shared": [_flock(one, fcntl.LOCK_SH), _flock(two, fcntl.LOCK_SH)],
        "upgrade beside a shared one": _flock(one, fcntl.LOCK_EX),
        "unlock": _flock(two, fcntl.LOCK_UN),
        "upgrade": _flock(one, fcntl.LOCK_EX),
        "other": [_flock(two, fcntl.LOCK_SH), _flock(two, fcntl.LOCK_EX)],
        "copy is the same": _flock(copy, fcntl.LOCK_EX),
        "downgrade": [_flock(copy, fcntl.LOCK_SH), _flock(two, fcntl.LOCK_SH)],
        "closing one of two": [error(os.close, one), _flock(two, fcntl.LOCK_EX)],
        "closing both": [error(os.close, copy), _flock(two, fcntl.LOCK_EX)],
    }
    reader = os.open("file", os.O_RDONLY)
    os.close(two)
    outcome["exclusive by a reader"] = _flock(reader, fcntl.LOCK_EX)
    directory, again = (os.open(".", os.O_RDONLY) for _ in range(2))
    outcome["a directory"] = [_flock(directory, fcntl.LOCK_EX), _flock(again, fcntl.LOCK_SH)]
    os.mkfifo("fifo")
    outcome["a fifo"] = _flock(os.open("fifo", os.O_RDWR), fcntl.LOCK_EX)
    outcome["a path"] = _flock(os.open("file", os.O_PATH), fcntl.LOCK_EX)
    outcome["nonsense"] = error(fcntl.flock, reader, 0)
    return outcome


@check
def flock_between_processes() -> Outcome:
    fd = _open()
    outcome: Outcome = {}
    holder = _Holder(lambda: _flock(_open(), fcntl.LOCK_EX))
    outcome["held"] = [holder.said, _flock(fd, fcntl.LOCK_SH), _flock(fd, fcntl.LOCK_EX)]
    holder.end()
    outcome["released"] = _flock(fd, fcntl.LOCK_EX)
    outcome["inherited"] = in_child(lambda: _flock(fd, fcntl.LOCK_EX))
    outcome["still held"] = in_child(lambda: _flock(_open(), fcntl.LOCK_SH))
    outcome["unlocked by a child"] = [
        in_child(lambda: _flock(fd, fcntl.LOCK_UN)),
        in_child(lambda: _flock(_open(), fcntl.LOCK_SH)),
    ]
    holder = _Holder(lambda: _flock(_open(), fcntl.LOCK_EX))
    waiter = _Waiter(lambda: error(fcntl.flock, _open(), fcntl.LOCK_EX))
    outcome["waits"] = waiter.waits()
    holder.end(signal.SIGKILL)
    outcome["gets it when the holder is killed"] = waiter.says()
    fcntl.flock(fd, fcntl.LOCK_EX)
    waiter = _Waiter(lambda: error(fcntl.flock, _open(), fcntl.LOCK_SH))
    outcome["waits again"] = waiter.waits()
    fcntl.flock(fd, fcntl.LOCK_UN)
    outcome["gets it by unlock"] = waiter.says()
    fcntl.flock(fd, fcntl.LOCK_EX)
    outcome["interrupted"] = in_child(_interrupted_flock)
    return outcome


class _InterruptedError(Exception):
    pass


def _interrupt(number: int, frame: object) -> None:
    raise _InterruptedError


def _interrupted_flock() -> str:
    signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        fcntl.flock(_open(), fcntl.LOCK_EX)
    except _InterruptedError:
        return "interrupted"
    return "locked"


@check
def flock_of_names() -> Outcome:
    """A lock belongs to the file, not to its name."""
    fd = _open()
    _flock(fd, fcntl.LOCK_EX)
    os.link("file", "linked")
    outcome: Outcome = {"another name": _flock(_open("linked"), fcntl.LOCK_EX)}
    os.rename("file", "renamed")
    outcome["renamed"] = _flock(_open("renamed"), fcntl.LOCK_EX)
    outcome["a new one of its name"] = _flock(_open("file"), fcntl.LOCK_EX)
    os.unlink("renamed")
    os.unlink("linked")
    outcome["removed"] = _flock(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), fcntl.LOCK_EX)
    return outcome


@check
def kinds_of_locks_are_independent() -> Outcome:
    one, two = _open(), _open()
    outcome: Outcome = {
        "flock": _flock(one, fcntl.LOCK_EX),
        "fcntl of the same process": _lock(two, fcntl.F_WRLCK),
        "fcntl of another": None,
        "flock of another": in_child(lambda: _flock(_open(), fcntl.LOCK_EX)),
    }
    _lock(two, fcntl.F_UNLCK)
    outcome["fcntl of another"] = in_child(lambda: _lock(_open(), fcntl.F_WRLCK))
    outcome["of a descriptor"] = in_child(lambda: _ofd(_open(), fcntl.F_WRLCK))
    outcome["waiting for it"] = in_child(lambda: error(fcntl.lockf, _open(), fcntl.LOCK_EX))
    return outcome


@check
def locks_of_processes() -> Outcome:
    write("file", b"x" * 100)
    fd = _open()
    outcome: Outcome = {"write lock": _lock(fd, fcntl.F_WRLCK, 10, 10)}

    def tried() -> list[Any]:
        other = _open()
        return [
            _lock(other, fcntl.F_WRLCK, 0, 10),
            _lock(other, fcntl.F_RDLCK, 15, 1),
            _lock(other, fcntl.F_WRLCK, 20, 0),
            _found(other, fcntl.F_WRLCK),
            _found(other, fcntl.F_WRLCK, 0, 10),
            _found(fd, fcntl.F_RDLCK, 19, 100),
        ]

    outcome["of others"] = in_child(tried)
    outcome["not inherited"] = in_child(lambda: _lock(fd, fcntl.F_WRLCK, 10, 10))
    outcome["own again"] = [_lock(_open(), fcntl.F_WRLCK, 0, 0), _found(fd, fcntl.F_WRLCK)]
    outcome["closing any drops all"] = [
        error(os.close, _open()),
        in_child(lambda: _lock(_open(), fcntl.F_WRLCK, 10, 10)),
    ]
    _lock(fd, fcntl.F_WRLCK, 0, 100)
    _lock(fd, fcntl.F_UNLCK, 40, 20)
    _lock(fd, fcntl.F_RDLCK, 0, 10)

    def splits() -> list[Any]:
        other = _open()
        return [
            _found(other, fcntl.F_WRLCK, 0, 5),
            _found(other, fcntl.F_RDLCK, 0, 40),
            _found(other, fcntl.F_WRLCK, 40, 20),
            _found(other, fcntl.F_WRLCK, 50, 50),
            _lock(other, fcntl.F_RDLCK, 5, 5),
            _lock(other, fcntl.F_WRLCK, 45, 10),
        ]

    outcome["split"] = in_child(splits)
    outcome["write lock by a reader"] = _lock(os.open("file", os.O_RDONLY), fcntl.F_WRLCK)
    outcome["read lock by a writer"] = _lock(os.open("file", os.O_WRONLY), fcntl.F_RDLCK)
    outcome["before the beginning"] = error(
        fcntl.fcntl, fd, fcntl.F_SETLK, interval(fcntl.F_WRLCK, -5, 3)
    )
    outcome["of negative length"] = [_lock(fd, fcntl.F_WRLCK, 50, -10)]
    outcome["far away"] = _lock(fd, fcntl.F_WRLCK, (1 << 62), 10)
    outcome["a directory"] = _lock(os.open(".", os.O_RDONLY), fcntl.F_RDLCK)
    outcome["lockf"] = [error(os.lockf, fd, os.F_TEST, 10), error(os.lockf, fd, os.F_TLOCK, 10)]
    return outcome


@check
def waiting_for_locks() -> Outcome:
    fd = _open()
    outcome: Outcome = {}
    _lock(fd, fcntl.F_WRLCK)
    waiter = _Waiter(lambda: _lock(_open(), fcntl.F_WRLCK, command=fcntl.F_SETLKW))
    outcome["waits"] = waiter.waits()
    _lock(fd, fcntl.F_UNLCK)
    outcome["gets it by unlock"] = waiter.says()
    holder = _Holder(lambda: _lock(_open(), fcntl.F_WRLCK))
    waiter = _Waiter(lambda: _lock(_open(), fcntl.F_WRLCK, command=fcntl.F_SETLKW))
    outcome["waits for the other"] = waiter.waits()
    holder.end(signal.SIGKILL)
    outcome["gets it when that is killed"] = waiter.says()
    _lock(fd, fcntl.F_WRLCK)
    outcome["interrupted"] = in_child(_interrupted_lock)
    _lock(fd, fcntl.F_UNLCK)
    outcome["deadlock"] = _deadlock()
    return outcome


def _interrupted_lock() -> str:
    signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        fcntl.lockf(_open(), fcntl.LOCK_EX)
    except _InterruptedError:
        return "interrupted"
    return "locked"


def _deadlock() -> str:
    """Two processes of which each waits for the other one's lock: one gets EDEADLK."""
    fd = _open()
    _lock(fd, fcntl.F_WRLCK, 0, 1)
    ready, told = os.pipe()

    def second() -> str:
        other = _open()
        _lock(other, fcntl.F_WRLCK, 1, 1)
        os.write(told, b"x")
        return _lock(other, fcntl.F_WRLCK, 0, 1, fcntl.F_SETLKW)

    waiter = _Waiter(second)
    os.read(ready, 1)
    waits = waiter.waits()
    signal.signal(signal.SIGALRM, _interrupt)
    signal.alarm(20)
    try:
        said = _lock(fd, fcntl.F_WRLCK, 1, 1, fcntl.F_SETLKW)
    except _InterruptedError:
        said = "does not end"
    signal.alarm(0)
    _lock(fd, fcntl.F_UNLCK)
    return f"{waits} {said}, the other: {waiter.says()}"


@check
def locks_of_descriptors() -> Outcome:
    """Open file description locks."""
    one, two = _open(), _open()
    copy = os.dup(one)
    outcome: Outcome = {
        "first": _ofd(one, fcntl.F_WRLCK, 0, 10),
        "second": _ofd(two, fcntl.F_WRLCK, 5, 10),
        "beside it": _ofd(two, fcntl.F_WRLCK, 10, 10),
        "copy": _ofd(copy, fcntl.F_WRLCK, 0, 5),
        "in the way": _found(two, fcntl.F_WRLCK, 0, 5, _OFD_GETLK),
        "of this process": _lock(one, fcntl.F_WRLCK, 0, 10),
        "seen by it": _found(one, fcntl.F_WRLCK, 0, 10),
        "inherited": in_child(lambda: _ofd(one, fcntl.F_WRLCK, 0, 3)),
        "closing one of two": [error(os.close, one), _ofd(two, fcntl.F_WRLCK, 0, 1)],
        "closing both": [error(os.close, copy), _ofd(two, fcntl.F_WRLCK, 0, 1)],
        "with a pid": error(
            fcntl.fcntl, two, _OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 1, 5)
        ),
        "closing another keeps it": [
            error(os.close, _open()),
            in_child(lambda: _ofd(_open(), fcntl.F_WRLCK, 0, 1)),
        ],
    }
    waiter = _Waiter(lambda: _lock(_open(), fcntl.F_WRLCK, 0, 1, _OFD_SETLKW))
    outcome["waits"] = waiter.waits()
    _ofd(two, fcntl.F_UNLCK)
    outcome["gets it"] = waiter.says()
    return outcome


@check
def leases() -> Outcome:
    write("file")
    fd = os.open("file", os.O_RDONLY)
    outcome: Outcome = {
        "none": fcntl.fcntl(fd, _GETLEASE) == fcntl.F_UNLCK,
        "read": error(fcntl.fcntl, fd, _SETLEASE, fcntl.F_RDLCK),
        "got": value(fcntl.fcntl, fd, _GETLEASE),
        "given up": error(fcntl.fcntl, fd, _SETLEASE, fcntl.F_UNLCK),
        "write, of a reader alone": error(fcntl.fcntl, fd, _SETLEASE, fcntl.F_WRLCK),
        "given up again": error(fcntl.fcntl, fd, _SETLEASE, fcntl.F_UNLCK),
    }
    writer = os.open("file", os.O_RDWR)
    outcome["read beside a writer"] = error(fcntl.fcntl, fd, _SETLEASE, fcntl.F_RDLCK)
    outcome["write beside a reader"] = error(fcntl.fcntl, writer, _SETLEASE, fcntl.F_WRLCK)
    os.close(writer)
    outcome["broken"] = _broken(fd)
    outcome["of a directory"] = error(
        fcntl.fcntl, os.open(".", os.O_RDONLY), _SETLEASE, fcntl.F_RDLCK
    )

    def of_a_user() -> str:
        return error(fcntl.fcntl, os.open("file", os.O_RDONLY), _SETLEASE, fcntl.F_RDLCK)

    outcome["of another's file"] = in_child(of_a_user, USER)
    return outcome


def _broken(fd: int) -> list[Any]:
    """Another one opens it to write: a signal comes, and that one waits until it is given up."""
    signals: list[int] = []
    signal.signal(signal.SIGIO, lambda number, frame: signals.append(number))
    said = error(fcntl.fcntl, fd, _SETLEASE, fcntl.F_RDLCK)
    if said != "ok":
        return [said]
    not_waiting = in_child(lambda: os.close(os.open("file", os.O_WRONLY | os.O_NONBLOCK)))
    waiter = _Waiter(lambda: error(os.open, "file", os.O_WRONLY))
    deadline = time.monotonic() + 10
    while not signals and time.monotonic() < deadline:
        time.sleep(0.05)
    waits = waiter.waits()
    given_up = error(fcntl.fcntl, fd, _SETLEASE, fcntl.F_UNLCK)
    return [not_waiting, bool(signals), waits, given_up, waiter.says()]
