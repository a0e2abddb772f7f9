"""The events for which the agent waits: descriptors that are ready, and children that end."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

OnExit = Callable[[int], None]


class Watcher:
    """An epoll set whose members are (descriptor, callback), and callbacks for later."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        self._later: list[tuple[float, Callable[[], None]]] = []

    def add(self, fd: int, events: int, call: Callable[[], None]) -> None:
        self._epoll.register(fd, events)
        self._calls[fd] = call

    def remove(self, fd: int) -> None:
        if self._calls.pop(fd, None):
            self._epoll.unregister(fd)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, call))

    def run_once(self, timeout: float | None) -> None:
        if self._later:
            due = max(0.0, min(when for when, _ in self._later) - time.monotonic())
            timeout = due if timeout is None else min(due, timeout)
        for fd, _ in self._epoll.poll(timeout):
            if call := self._calls.get(fd):
                call()
        now = time.monotonic()
        for item in [item for item in self._later if item[0] <= now]:
            self._later.remove(item)
            item[1]()


class Children:
    """Collects the exit status of every child, and of every process that another process left to
    this one (PR_SET_CHILD_SUBREAPER), and passes it to the callback that expects it.

    No other code may wait for a child. An expected pid is not used again before its callback.
    """

    def __init__(self, watch: Watcher) -> None:
        self._calls: dict[int, OnExit] = {}
        self._unclaimed: dict[int, int] = {}
        self._adopting = 0
        self._wakeup, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        watch.add(self._wakeup, select.EPOLLIN, self._reap)

    def expect(self, pid: int, call: OnExit) -> None:
        """Call `call` with the wait status of a child, at once if it was already collected."""
        if pid in self._unclaimed:
            call(self._unclaimed.pop(pid))
        else:
            self._calls[pid] = call

    def adopt(self) -> Callable[[], None]:
        """Keep the statuses of children that no callback expects yet, until the caller calls the
        result. The caller needs that while another process makes a child and only then reports its
        pid."""
        self._adopting += 1

        def over() -> None:
            self._adopting -= 1
            if not self._adopting:
                self._unclaimed.clear()

        return over

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wakeup, 4096):
                pass
        for pid, status in _ended():
            if call := self._calls.pop(pid, None):
                call(status)
            elif self._adopting:
                self._unclaimed[pid] = status


def _ended() -> Iterator[tuple[int, int]]:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found
