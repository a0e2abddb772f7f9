"""The agent's event loop: frames in from the virtio-serial port, requests done, frames out."""

import errno
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tapwright import __version__
from tapwright.agent import protocol
from tapwright.agent.guest import network, routing, share, system
from tapwright.agent.guest.streams import Command, Watcher
from tapwright.linux.links import RTMGRP_LINK
from tapwright.linux.netlink import Netlink, NetlinkError

_PORTS = "/sys/class/virtio-ports"
_READ_BYTES = 64 * 1024
_LINK_TIMEOUT = 10.0

Request = dict[str, Any]
Operation = Callable[[Netlink, Request], dict[str, Any]]


def batch(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Do several requests in their order, as one; the first that fails ends it."""
    return {"replies": [OPERATIONS[item["op"]](nl, item) for item in request["requests"]]}


OPERATIONS: dict[str, Operation] = {
    "batch": batch,
    "change_neighbours": routing.change_neighbours,
    "change_routes": routing.change_routes,
    "list_network": network.list_network,
    "mount_share": share.mount,
    "set_clock": system.set_clock,
    "set_dns": network.set_dns,
    "set_hostname": system.set_hostname,
    "set_interface": network.set_interface,
    "shutdown": system.shutdown,
}


class Agent:
    """Serves one supervisor at a time over the port `fd`."""

    def __init__(self, fd: int) -> None:
        self._port = fd
        self._session = 0
        self._decoder = protocol.Decoder()
        self._assembler = protocol.Assembler()
        self._out: deque[bytes] = deque()
        self._out_watched = False
        self._commands: dict[int, Command] = {}
        self._waiting: dict[int, tuple[Operation, Request, float]] = {}
        self._watch = Watcher()
        self._netlink = Netlink()
        self._events = Netlink(RTMGRP_LINK)

    def run(self) -> None:
        network.prepare(self._netlink)
        self._watch.add(self._port, select.EPOLLIN, self._ready)
        self._watch.add(self._events.fileno(), select.EPOLLIN, self._links_changed)
        self._write(protocol.hello(0, {"agent": __version__}))
        while True:
            self._watch.run_once(1.0 if self._waiting else None)
            self._give_up_waiting()

    def _receive(self) -> None:
        try:
            data = os.read(self._port, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            # Nobody holds the host's end; the port tells of it at once and always.
            time.sleep(0.05)
            return
        for frame in self._decoder.feed(data):
            if frame.kind == protocol.HELLO:
                self._open_session(frame)
            elif frame.session == self._session:
                try:
                    self._serve(frame)
                except protocol.ProtocolError as error:
                    self._error(frame.stream, str(error))

    def _open_session(self, hello: protocol.Frame) -> None:
        # First of all: nothing that is asked for later is to be made of an old seed.
        facts = {"agent": __version__, "reseeded": _is_reseeded(hello)}
        for command in self._commands.values():
            command.cancel()
        self._commands.clear()
        self._waiting.clear()
        after_whole = not self._out
        self._out.clear()
        self._assembler = protocol.Assembler()
        self._session = hello.session
        self._write(protocol.hello(hello.session, facts, after_whole))

    def _serve(self, frame: protocol.Frame) -> None:
        command = self._commands.get(frame.stream)
        if frame.kind == protocol.REQUEST:
            content = self._assembler.add(frame)
            if content is not None:
                self._begin(frame.stream, protocol.read_json(content))
        elif frame.kind == protocol.CANCEL:
            self._assembler.forget(frame.stream)
            self._waiting.pop(frame.stream, None)
            if command:
                del self._commands[frame.stream]
                command.cancel()
        elif not command:
            return  # it has ended in the meantime
        elif frame.kind == protocol.STDIN:
            command.stdin(frame.payload)
        elif frame.kind == protocol.SIGNAL and frame.payload:
            command.signal(frame.payload[0])
        elif frame.kind == protocol.CREDIT:
            command.credit(*protocol.read_credit(frame.payload))

    def _begin(self, stream: int, request: dict[str, Any]) -> None:
        if len(self._commands) + len(self._waiting) >= protocol.MAX_STREAMS:
            self._error(stream, f"more than {protocol.MAX_STREAMS} requests at once")
        elif request.get("op") == "exec":
            self._execute(stream, request)
        elif operation := OPERATIONS.get(str(request.get("op"))):
            deadline = time.monotonic() + float(request.get("link_timeout", _LINK_TIMEOUT))
            self._try(stream, operation, request, deadline)
        else:
            self._error(stream, f"unknown request {request.get('op')!r}")

    def _try(self, stream: int, operation: Operation, request: Request, deadline: float) -> None:
        """Do a request, or put it by until the next change of an interface."""
        self._waiting.pop(stream, None)
        try:
            self._message(protocol.REPLY, stream, operation(self._netlink, request))
        except network.NotThereYetError:
            self._waiting[stream] = operation, request, deadline
        except (network.RefusedError, NetlinkError) as error:
            self._error(stream, error.args[-1])
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._error(stream, f"{type(error).__name__}: {error}")

    def _links_changed(self) -> None:
        try:
            self._events.notifications()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        for stream, (operation, request, deadline) in list(self._waiting.items()):
            self._try(stream, operation, request, deadline)

    def _give_up_waiting(self) -> None:
        now = time.monotonic()
        for stream, (_, _, deadline) in list(self._waiting.items()):
            if now > deadline:
                del self._waiting[stream]
                self._error(stream, "the guest has not found the NIC in time")

    def _execute(self, stream: int, request: dict[str, Any]) -> None:
        session = self._session

        def send(kind: int, payload: bytes) -> None:
            if session == self._session:
                self._write(protocol.encode(protocol.Frame(kind, session, stream, payload)))

        def finish(reply: dict[str, Any]) -> None:
            self._commands.pop(stream, None)
            self._message(protocol.REPLY, stream, reply)

        try:
            self._commands[stream] = Command(request, self._watch, send, finish)
        except (OSError, ValueError, KeyError, TypeError) as error:
            code = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(code) if code else str(error)
            self._message(protocol.ERROR, stream, {"message": reason, "errno": code})

    def _error(self, stream: int, text: str) -> None:
        self._message(protocol.ERROR, stream, {"message": text})

    def _message(self, kind: int, stream: int, content: dict[str, Any]) -> None:
        self._write(protocol.message(kind, self._session, stream, content))

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        if not self._out_watched:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                count = os.write(self._port, self._out[0])
                if count == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][count:]
        except BlockingIOError:
            pass
        if bool(self._out) != self._out_watched:
            self._out_watched = bool(self._out)
            self._watch.remove(self._port)
            events = select.EPOLLIN | (select.EPOLLOUT if self._out else 0)
            self._watch.add(self._port, events, self._ready)

    def _ready(self) -> None:
        if self._out:
            self._flush()
        self._receive()


def _is_reseeded(hello: protocol.Frame) -> bool:
    """Whether the entropy that comes with a HELLO, if any, is in use."""
    try:
        system.reseed(bytes.fromhex(protocol.read_json(hello.payload)["entropy"]))
    except (protocol.ProtocolError, KeyError, TypeError, ValueError, OSError):
        return False
    return True


def _find_port() -> str:
    for entry in os.listdir(_PORTS):
        with open(f"{_PORTS}/{entry}/name") as file:
            if file.read().strip() == protocol.PORT_NAME:
                return f"/dev/{entry}"
    raise SystemExit(f"no virtio-serial port called {protocol.PORT_NAME}")


def main() -> None:
    fd = os.open(sys.argv[1] if len(sys.argv) > 1 else _find_port(), os.O_RDWR | os.O_NONBLOCK)
    Agent(fd).run()


if __name__ == "__main__":
    main()
