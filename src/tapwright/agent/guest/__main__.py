"""The agent's event loop: it reads frames from the virtio-serial port, does the requests, and
writes the answers."""

import contextlib
import errno
import os
import select
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tapwright import __version__
from tapwright.agent import protocol
from tapwright.agent.guest import (
    disk,
    leftovers,
    network,
    oom,
    requests,
    routing,
    share,
    sysctls,
    system,
)
from tapwright.agent.guest.commands import Command
from tapwright.agent.guest.events import Children, Watcher
from tapwright.agent.guest.refusal import (
    NotThereYetError,
    RefusedError,
    error_reply,
    start_error_reply,
)
from tapwright.agent.guest.requests import Request
from tapwright.agent.guest.streams import Answer, Process, hand_in
from tapwright.linux.links import RTMGRP_LINK
from tapwright.linux.netlink import Netlink

if TYPE_CHECKING:
    from tapwright.agent.guest.containers import Containers
    from tapwright.agent.guest.forwarding import Forwarding
    from tapwright.agent.guest.shared_files import SharedFiles
    from tapwright.agent.guest.sockets import Sockets

_PORTS = "/sys/class/virtio-ports"
_READ_BYTES = 64 * 1024
_NETLINK_KOBJECT_UEVENT, _OF_THE_KERNEL = 15, 1  # include/uapi/linux/netlink.h

Operation = Callable[[Netlink, Request], dict[str, Any]]
Opener = Callable[[Request, Answer], Process | None]
FAILURES = (Exception,)
"""A bug of the agent ends the request, but not the agent: all containers would end with it."""


def batch(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Do several requests in their order. The first one that fails ends the batch."""
    for item in request["requests"]:
        if item.get("op") not in OPERATIONS:
            raise RefusedError(f"unknown request {item.get('op')!r}")
    return {"replies": [OPERATIONS[item["op"]](nl, item) for item in request["requests"]]}


def totals(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    from tapwright.agent.guest import totals

    return totals.of_guest()


def set_rulesets(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    # Few guests need this module.
    from tapwright.agent.guest import rulesets

    return rulesets.set_rulesets(nl, request)


def look(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    from tapwright.agent.guest import looking

    return looking.look(nl, request)


def expect_memory(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    from tapwright.agent.guest import growth

    return growth.expect_memory(nl, request)


def take_room(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    from tapwright.agent.guest import growth

    return growth.take_room(nl, request)


OPERATIONS: dict[str, Operation] = {
    "batch": batch,
    "change_kernel_settings": sysctls.change_kernel_settings,
    "change_routes": routing.change_routes,
    "change_settings": sysctls.change_settings,
    "expect_memory": expect_memory,
    "list_network": network.list_network,
    "look": look,
    "mount_share": share.mount,
    "replay": routing.replay,
    "set_clock": system.set_clock,
    "set_dns": network.set_dns,
    "set_hostname": system.set_hostname,
    "set_interface": network.set_interface,
    "set_machine_id": system.set_machine_id,
    "set_rulesets": set_rulesets,
    "set_sysctls": sysctls.set_sysctls,
    "take_room": take_room,
    "tell_time": system.tell_time,
    "totals": totals,
}


_OF_CONTAINERS = frozenset(
    (
        *("create_container", "exec_container", "start_container", "signal_container"),
        *("pause_container", "resume_container", "update_container", "delete_container"),
        *("container_processes", "container_statistics", "cover_sockets"),
    )
)

_OF_FILES = frozenset(("mirror_files", "forget_files", "change_files", "forget_unused_files"))

_OF_FORWARDING = frozenset(("follow_listeners", "forward"))

_OF_SOCKETS = frozenset(("listen_socket", "accept_socket", "close_socket"))

_ANSWERED_LATER = frozenset(("exec", "probe", "resolve")).union(
    _OF_CONTAINERS, _OF_FILES, _OF_FORWARDING, _OF_SOCKETS
)

_OF_PROCESSES: dict[int, Callable[[Process, bytes], None]] = {
    protocol.STDIN: lambda process, payload: process.stdin(payload),
    protocol.SIGNAL: lambda process, payload: process.signal(payload[0] if payload else 0),
    protocol.RESIZE: lambda process, payload: process.resize(*protocol.read_size(payload)),
    protocol.CREDIT: lambda process, payload: process.credit(*protocol.read_credit(payload)),
}


class Agent:
    """Serves one supervisor at a time over the port `fd`."""

    def __init__(self, fd: int) -> None:
        self._port = fd
        self._session = 0
        self._decoder = protocol.Decoder()
        self._assembler = protocol.Assembler(protocol.MAX_REQUEST)
        self._out: deque[bytes] = deque()
        self._out_watched = False
        self._processes: dict[int, Process] = {}
        self._waiting: dict[int, tuple[Operation, Request, str]] = {}
        self._watch = Watcher()
        self._children = Children(self._watch)
        self._containers: Containers | None = None
        self._files: SharedFiles | None = None
        self._forwarding: Forwarding | None = None
        self._sockets: Sockets | None = None
        self._netlink = Netlink()
        self._events = Netlink(RTMGRP_LINK)
        self._devices = _device_events()

    def run(self) -> None:
        network.prepare(self._netlink)
        disk.make_devices()
        self._watch.add(self._port, select.EPOLLIN, self._ready)
        self._watch.add(self._events.fileno(), select.EPOLLIN, self._links_changed)
        self._watch.add(self._devices.fileno(), select.EPOLLIN, self._devices_changed)
        self._write(protocol.hello(0, {"agent": __version__}))
        while True:
            self._watch.run_once(None)

    def _receive(self) -> None:
        try:
            data = os.read(self._port, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            # No process has the host's end open; epoll would report that at once, again and again.
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
        # This comes first: nothing that a later request makes may come from an old seed.
        facts = {"agent": __version__, "reseeded": _is_reseeded(hello)}
        for process in self._processes.values():
            process.cancel()
        self._processes.clear()
        if self._containers:
            self._containers.discard_all()
        if self._sockets:
            self._sockets.close_all()
        self._waiting.clear()
        after_whole = not self._out
        self._out.clear()
        self._assembler = protocol.Assembler(protocol.MAX_REQUEST)
        self._session = hello.session
        self._write(protocol.hello(hello.session, facts, after_whole))

    def _serve(self, frame: protocol.Frame) -> None:
        process = self._processes.get(frame.stream)
        if frame.kind == protocol.REQUEST:
            content = self._assembler.add(frame)
            if content is not None:
                self._begin(frame.stream, protocol.read_json(content))
        elif frame.kind == protocol.CANCEL:
            self._assembler.forget(frame.stream)
            if waiting := self._waiting.pop(frame.stream, None):
                self._error(frame.stream, f"the guest has not found {waiting[-1]} in time")
            if process:
                del self._processes[frame.stream]
                process.cancel()
        elif not process:
            return  # the process has ended in the meantime
        elif frame.kind in (protocol.STDOUT, protocol.STDERR) and not frame.payload:
            process.unread(frame.kind)
        elif handle := _OF_PROCESSES.get(frame.kind):
            handle(process, frame.payload)

    def _begin(self, stream: int, request: dict[str, Any]) -> None:
        op = str(request.get("op"))
        if len(self._processes) + len(self._waiting) >= protocol.MAX_STREAMS:
            self._error(stream, f"more than {protocol.MAX_STREAMS} requests at once")
        elif mistake := requests.mistake(request):
            self._error(stream, mistake)
        elif op in _ANSWERED_LATER:
            self._open(stream, op, request)
        elif operation := OPERATIONS.get(op):
            self._try(stream, operation, request)
        else:
            self._error(stream, f"unknown request {op!r}")

    def _try(self, stream: int, operation: Operation, request: Request) -> None:
        """Do a request. If the kernel has not found its device yet, put the request off until the
        kernel finds a device, or the host cancels the request."""
        self._waiting.pop(stream, None)
        try:
            self._message(protocol.REPLY, stream, operation(self._netlink, request))
        except NotThereYetError as error:
            self._waiting[stream] = operation, request, str(error)
        except FAILURES as error:
            self._message(protocol.ERROR, stream, error_reply(error))

    def _links_changed(self) -> None:
        try:
            self._events.notifications()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        self._try_again()

    def _devices_changed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._devices.recv(_READ_BYTES)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
        self._try_again()

    def _try_again(self) -> None:
        for stream, (operation, request, _) in list(self._waiting.items()):
            self._try(stream, operation, request)

    def _open(self, stream: int, op: str, request: Request) -> None:
        """Begin a request that is answered later. A process lives as long as its stream."""
        try:
            process = self._opener(op)(request, self._answer(stream))
        except FAILURES as error:
            reply = start_error_reply(error) if op == "exec" else error_reply(error)
            self._message(protocol.ERROR, stream, reply)
        else:
            if process:
                self._processes[stream] = process

    def _opener(self, op: str) -> Opener:
        """Return what begins a request that is answered later. Few guests need all of these
        modules, and a guest without containers boots faster without them."""
        if op == "exec":
            return lambda request, answer: Command(request, self._watch, self._children, answer)
        if op == "probe":
            from tapwright.agent.guest.probe import Probe

            return lambda request, answer: Probe(self._watch, self._children, answer)
        if op == "resolve":
            from tapwright.agent.guest.resolver import Resolver

            return lambda request, answer: Resolver(request, self._watch, answer)
        if op in _OF_FILES:
            if self._files is None:
                from tapwright.agent.guest.shared_files import SharedFiles

                self._files = SharedFiles(self._children)
            return self._files.operations[op]
        if op in _OF_FORWARDING:
            if self._forwarding is None:
                from tapwright.agent.guest.forwarding import Forwarding

                self._forwarding = Forwarding(self._watch)
            return self._forwarding.operations[op]
        if op in _OF_SOCKETS:
            if self._sockets is None:
                from tapwright.agent.guest.sockets import Sockets

                self._sockets = Sockets(self._watch)
            return self._sockets.operations[op]
        if self._containers is None:
            from tapwright.agent.guest.containers import Containers

            self._containers = Containers(self._watch, self._children)
        return self._containers.operations[op]

    def _answer(self, stream: int) -> Answer:
        """Return the answer to the opener of a stream. It is valid as long as the stream's
        session."""
        session = self._session

        def send(kind: int, payload: bytes) -> None:
            if session == self._session:
                self._write(b"".join(protocol.frames(kind, session, stream, payload)))

        def end(kind: int, content: dict[str, Any]) -> None:
            if session == self._session:
                self._processes.pop(stream, None)
                self._message(kind, stream, content)

        return Answer(send, partial(end, protocol.REPLY), partial(end, protocol.ERROR))

    def _error(self, stream: int, text: str) -> None:
        self._message(protocol.ERROR, stream, {"message": text})

    def _message(self, kind: int, stream: int, content: dict[str, Any]) -> None:
        self._write(protocol.message(kind, self._session, stream, content))

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        if not self._out_watched:
            self._flush()

    def _flush(self) -> None:
        hand_in(self._out, partial(os.write, self._port))
        if bool(self._out) != self._out_watched:
            self._out_watched = bool(self._out)
            self._watch.remove(self._port)
            events = select.EPOLLIN | (select.EPOLLOUT if self._out else 0)
            self._watch.add(self._port, events, self._ready)

    def _ready(self) -> None:
        if self._out:
            self._flush()
        self._receive()


def _device_events() -> socket.socket:
    """Open the kernel's events of devices and drivers (lib/kobject_uevent.c), which udev reads
    too."""
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT
    )
    events.bind((0, _OF_THE_KERNEL))
    return events


def _is_reseeded(hello: protocol.Frame) -> bool:
    """Whether the kernel has taken the entropy of a HELLO. False if there is none in it."""
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
    fd = os.open(_find_port(), os.O_RDWR | os.O_NONBLOCK)
    # Only after the port was found: a machine that is no guest has no such port, and keeps its
    # processes.
    leftovers.clear()
    oom.spare()
    try:
        Agent(fd).run()
    except BaseException:
        _log_failure()
        raise


def _log_failure() -> None:
    """Write the agent's last error to the kernel's log. The guest's console may have no reader, and
    the end of the agent costs all containers."""
    with contextlib.suppress(OSError), open("/dev/kmsg", "w") as log:
        for line in traceback.format_exc().splitlines():
            log.write(f"tapwright: {line}\n")
            log.flush()


if __name__ == "__main__":
    main()
