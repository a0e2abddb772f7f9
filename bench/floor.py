"""The floor under a start: QEMU and a template, and by hand only what must be done.

One process, no checks, no confinement, no journal, no CNI: a TAP in a bridge, the template's
memory filled already, QEMU started on it, its NIC plugged and configured, a ping.
"""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from bench.ping import first_ping
from bench.samples import Milliseconds
from tapwright.agent import protocol
from tapwright.agent.protocol import Frame
from tapwright.hypervisor.machine import Machine, SavedMemory
from tapwright.hypervisor.template_store import Template
from tapwright.linux import links, tuntap
from tapwright.linux.netlink import Netlink

_TAP, _NAME, _MAC = "tap-floor", "eth0", "02:42:20:6f:a3:69"
_SECONDS = 20.0
_CAPABILITIES = [{"capability": "x-ignore-shared", "state": True}]


class Step(NamedTuple):
    """What was done, and when it was over, in milliseconds from the beginning."""

    name: str
    over: Milliseconds


def start(
    machine: Machine, template: Template, memory: SavedMemory, bridge: str, address: str
) -> list[Step]:
    """Start a guest, wait for its first ping, end it; the last step is the ping."""
    begun = time.monotonic()
    steps: list[Step] = []

    def over(name: str, when: float | None = None) -> None:
        steps.append(Step(name, ((when or time.monotonic()) - begun) * 1e3))

    with _qemu(machine, memory) as (monitor, port), _tap(bridge) as tap:
        qmp, agent = _Qmp(monitor), _Agent(port)
        agent.greet()
        qmp.restore(template)
        over("qemu")
        agent.wait(protocol.HELLO)
        over("agent")
        qmp.plug(tap, machine.ports.place(0))
        over("plug")
        agent.configure(address)
        over("guest")
        over("ping", first_ping(address))
    return steps


@contextmanager
def _qemu(machine: Machine, memory: SavedMemory) -> Iterator[tuple[socket.socket, socket.socket]]:
    pairs = [socket.socketpair() for _ in range(3)]
    theirs = [their_end.fileno() for _, their_end in pairs]
    process = subprocess.Popen(
        machine.command(*theirs, saved=memory),
        pass_fds=[*theirs, memory.fd],
        stdin=subprocess.DEVNULL,
    )
    try:
        for ours, their_end in pairs:
            their_end.close()
            ours.settimeout(_SECONDS)
        yield pairs[0][0], pairs[1][0]
    finally:
        process.kill()
        process.wait()
        for ours, _ in pairs:
            ours.close()


@contextmanager
def _tap(bridge: str) -> Iterator[int]:
    fd = tuntap.create(_TAP)
    try:
        with Netlink() as nl:
            index = links.named(nl, _TAP).index
            links.set_master(nl, index, links.named(nl, bridge).index)
            links.set_up(nl, index)
        yield fd
    finally:
        os.close(fd)


class _Qmp:
    """Commands are written all at once, and their answers waited for."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def restore(self, template: Template) -> None:
        state = template.stream()
        self._lines.readline()  # the greeting
        self._send("qmp_capabilities", {})
        self._send("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
        self._send("getfd", {"fdname": "state"}, state)
        os.close(state)
        self._send("migrate-incoming", {"uri": "fd:state"})
        self._answers(4)

    def plug(self, tap: int, place: dict[str, str]) -> None:
        self._send("getfd", {"fdname": "tap"}, tap)
        self._send("netdev_add", {"type": "tap", "id": "net", "fd": "tap"})
        nic = {"driver": "virtio-net-pci", "id": "nic", "netdev": "net", "mac": _MAC, "romfile": ""}
        self._send("device_add", nic | place)
        self._answers(3)

    def _send(self, command: str, arguments: dict[str, Any], fd: int | None = None) -> None:
        data = json.dumps({"execute": command, "arguments": arguments}).encode()
        socket.send_fds(self._connection, [data], [] if fd is None else [fd])

    def _answers(self, count: int) -> None:
        while count:
            answer = json.loads(self._lines.readline() or '{"error": "QEMU has ended"}')
            if "error" in answer:
                raise RuntimeError(f"QEMU: {answer['error']}")
            count -= "return" in answer


class _Agent:
    """One session, one request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = self._received()
        self._session = secrets.randbits(31) + 1

    def greet(self) -> None:
        facts = {"entropy": secrets.token_hex(64)}
        self._connection.sendall(protocol.hello(self._session, facts, after_whole=True))

    def configure(self, address: str) -> None:
        request = {
            "op": "set_interface",
            "mac": _MAC,
            "name": _NAME,
            "addresses": [{"address": address, "prefix_length": 16}],
        }
        self._connection.sendall(protocol.message(protocol.REQUEST, self._session, 1, request))
        self.wait(protocol.REPLY)

    def wait(self, kind: int) -> None:
        for frame in self._frames:
            if frame.kind == protocol.ERROR:
                raise RuntimeError(f"the agent: {frame.payload!r}")
            if (frame.kind, frame.session) == (kind, self._session):
                return
        raise RuntimeError("the agent's port was closed")

    def _received(self) -> Iterator[Frame]:
        decoder = protocol.Decoder()
        while data := self._connection.recv(1 << 16):
            yield from decoder.feed(data)
