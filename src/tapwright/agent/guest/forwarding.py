"""Reports to the host what listens on the guest's loopback interface, and connects to it.

A program of the host that is in the sandbox's network namespace connects to 127.0.0.1 or ::1 there,
as it does for a container of runc. The supervisor listens on the ports that this module reports.
For each connection that the supervisor accepts, this module makes a connection in the guest.
"""

import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tapwright.agent import protocol
from tapwright.agent.guest.connections import Connection
from tapwright.agent.guest.events import Watcher
from tapwright.agent.guest.refusal import RefusedError
from tapwright.agent.guest.streams import Answer, Process
from tapwright.linux import libc
from tapwright.linux.files import closing

_LOOPBACK = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)
# The addresses of listeners that the loopback interface can reach, with the IP versions that reach
# them.
_REACHED = {
    bytes(4): (4,),  # 0.0.0.0
    socket.inet_pton(socket.AF_INET, "127.0.0.1"): (4,),
    bytes(16): (4, 6),  # ::
    socket.inet_pton(socket.AF_INET6, "::1"): (6,),
    socket.inet_pton(socket.AF_INET6, "::ffff:0.0.0.0"): (4,),
    socket.inet_pton(socket.AF_INET6, "::ffff:127.0.0.1"): (4,),
}

# The kernel reports a socket as listening shortly before it listens
# (net/ipv4/inet_connection_sock.c: inet_csk_listen_start), so there is a second look.
_SECOND_LOOK_SECONDS, _POLL_SECONDS = 0.02, 1.0
_TRACE_BYTES, _MOST_READS = 64 * 1024, 16
_RESET = struct.pack("ii", 1, 0)  # struct linger: close(2) then resets the connection (socket(7))


class Forwarding:
    """Starts what the requests ask for: a follower, or a connection."""

    def __init__(self, watch: Watcher) -> None:
        self._watch = watch
        self._followers: set[_Follower] = set()
        self.operations: dict[str, Callable[[dict[str, Any], Answer], Process]] = {
            "follow_listeners": self._follow,
            "forward": self._forward,
        }
        try:
            self._trace = _trace()
        except OSError:  # the kernel has no tracing
            self._trace = -1
            watch.later(_POLL_SECONDS, self._poll)
        else:
            watch.add(self._trace, select.EPOLLIN, self._changed)

    def _follow(self, request: dict[str, Any], answer: Answer) -> Process:
        follower = _Follower(self._watch, answer, self._followers.discard)
        self._followers.add(follower)
        follower.tell(_listeners())
        return follower

    def _forward(self, request: dict[str, Any], answer: Answer) -> Process:
        return _Connection(request, self._watch, answer)

    def _changed(self) -> None:
        # No further events before the second look: a program may do nothing but listen.
        self._watch.remove(self._trace)
        self._look()
        self._watch.later(_SECOND_LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MOST_READS):
                os.read(self._trace, _TRACE_BYTES)
        self._look()
        self._watch.add(self._trace, select.EPOLLIN, self._changed)

    def _poll(self) -> None:
        self._look()
        self._watch.later(_POLL_SECONDS, self._poll)

    def _look(self) -> None:
        if self._followers:
            found = _listeners()
            for follower in self._followers:
                follower.tell(found)


class _Follower(Process):
    """Reports what listens, after each change: a JSON object in one STDOUT frame."""

    def __init__(self, watch: Watcher, answer: Answer, over: Callable[["_Follower"], None]) -> None:
        super().__init__(watch, answer)
        self._over = over
        self._reported: list[tuple[int, int]] | None = None
        self._found: list[tuple[int, int]] = []

    def tell(self, found: list[tuple[int, int]]) -> None:
        self._found = found
        if found == self._reported:
            return
        listeners = found[: protocol.MAX_LISTENERS]
        content = {"listeners": listeners, "left_out": len(found) - len(listeners)}
        payload = json.dumps(content).encode()
        if len(payload) <= self._window[protocol.STDOUT]:
            self._window[protocol.STDOUT] -= len(payload)
            self._reported = found
            self._answer.send(protocol.STDOUT, payload)

    def credit(self, channel: int, count: int) -> None:
        super().credit(channel, count)
        self.tell(self._found)

    def cancel(self) -> None:
        super().cancel()
        self._over(self)


class _Connection(Connection):
    """A connection to a program that listens on loopback. Raises RefusedError."""

    def __init__(self, request: dict[str, Any], watch: Watcher, answer: Answer) -> None:
        super().__init__(watch, answer)
        if request["family"] not in _LOOPBACK:
            raise RefusedError(f"family is {request['family']}, and must be 4 or 6")
        family, address = _LOOPBACK[request["family"]]
        connecting = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                connecting.connect((address, request["port"]))
        except (OSError, OverflowError) as error:
            connecting.close()
            raise RefusedError(f"no connection to port {request['port']}: {error}") from None
        self._carry(connecting)

    def _ready(self) -> None:
        super()._ready()
        if self._is_reset():
            self._reset()

    def _is_reset(self) -> bool:
        """A read does not show that while the window is closed."""
        return not self._is_over and bool(
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        )

    def _not_read(self, error: OSError) -> None:
        self._reset(error)

    def _not_written(self, error: OSError) -> None:
        self._reset(error)

    def _reset(self, error: OSError | None = None) -> None:
        if self._is_over:
            return
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._end()
        self._answer.fail({"message": f"the connection has ended: {error or 'reset'}"})


def _listeners() -> list[tuple[int, int]]:
    """Return (IP version, port) of all listeners that the loopback interface can reach, in order,
    without those of the agent itself."""
    own = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            own.add(os.fstat(int(fd)).st_ino)
    return sorted(
        {
            (version, port)
            for address, port, inode in _listening()
            if inode not in own
            for version in _REACHED.get(address, ())
        }
    )


def _listening() -> Iterator[tuple[bytes, int, int]]:
    """Yield (address, port, inode) of sockets that listen (net/ipv4/tcp_ipv4.c: get_tcp4_sock)."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{table}") as file:
            next(file)
            for line in file:
                words = line.split()
                if words[3] != _LISTEN:
                    break  # listening sockets come first
                address, _, port = words[1].partition(":")
                words_of_it = struct.unpack(f"!{len(address) // 8}I", bytes.fromhex(address))
                yield (
                    struct.pack(f"={len(words_of_it)}I", *words_of_it),
                    int(port, 16),
                    int(words[9]),
                )


def _trace() -> int:
    """Return a descriptor that is readable when a socket starts or stops listening, anywhere in the
    guest (Documentation/trace/events.rst). Raises OSError."""
    with closing(libc.detached_mount("tracefs")) as tracing:
        instance = f"/proc/self/fd/{tracing}/instances/tapwright"
        with contextlib.suppress(FileExistsError):  # an agent that died has left it
            os.mkdir(instance)
        event = f"{instance}/events/sock/inet_sock_set_state"
        for path, text in (
            (f"{instance}/buffer_size_kb", "4"),
            (f"{event}/filter", "protocol == 6 && (newstate == 10 || oldstate == 10)"),
            (f"{event}/enable", "1"),
        ):
            with open(path, "w") as file:
                file.write(text)
        return os.open(f"{instance}/trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
