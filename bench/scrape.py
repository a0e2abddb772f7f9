#!/usr/bin/env python3
"""What a scrape of many sandboxes costs who scrapes.

    scripts/bench --only scrape

MANY sandboxes, of which nothing is real but what a scrape looks at: a record, a namespace with an
interface, its TAP and its other end, two processes, and a supervisor that answers with the numbers
of a guest. So it is the scraper's own processor time, in a process of its own that collects and
writes; guests add the time until the slowest has answered, in which it waits.
"""

import contextlib
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypedDict

from bench.place import Place, new_host, run
from bench.samples import Samples, rounded
from tapwright.agent import protocol
from tapwright.endpoint.companion import name_of
from tapwright.hypervisor.machine import Machine
from tapwright.linux import links, netns, process, unixsocket
from tapwright.linux.counted import Counters
from tapwright.linux.netlink import Netlink
from tapwright.metrics import collecting, exposition
from tapwright.sandbox.wire import SOCKET
from tapwright.state import ownership, registry, supervisors
from tapwright.state.record import RUNNING, Nic, Phase, Record, Spec

_TCP = ("established", "listen", "time_wait", "close_wait")


class Scrape(TypedDict):
    """Milliseconds of processor time for a scrape of `sandboxes`, which has so many `series`; `one`
    is for a single sandbox."""

    sandboxes: int
    series: int
    processor: Samples
    one: Samples


def measure(place: Place, many: int, rounds: int) -> Scrape:
    new_host()
    root = place.root("scrape")
    found: Scrape = {"sandboxes": many, "series": 0, "processor": [], "one": []}
    with _sandboxes(root, 0, 1):
        found["one"] = _scraped(root, rounds)[0]
        with _sandboxes(root, 1, many):
            found["processor"], found["series"] = _scraped(root, rounds)
    return found


def _scraped(root: str, rounds: int) -> tuple[Samples, int]:
    """Not the first one, which loads what it needs."""
    samples, text, records = [], "", registry.Remembered()
    for _ in range(rounds + 1):
        begun = time.process_time()
        text = exposition.openmetrics(collecting.collect(root, records=records))
        samples.append((time.process_time() - begun) * 1e3)
    return rounded(samples[1:]), sum(line[:1] != "#" for line in text.splitlines())


@contextlib.contextmanager
def _sandboxes(root: str, first: int, beyond: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for number in range(first, beyond):
            stack.enter_context(_sandbox(root, f"bench-s{number}"))
        yield


@contextlib.contextmanager
def _sandbox(root: str, name: str) -> Iterator[None]:
    run(f"ip netns add {name}")
    pid, caller = 0, os.getpid()
    try:
        run(f"ip link add h-{name} type veth peer name eth0 netns {name}")
        run(f"ip -n {name} tuntap add {name_of(_index(name))} mode tap")
        ready, said = os.pipe()
        pid = os.fork()
        if not pid:
            _become(root, name, caller, said)
        os.close(said)
        os.read(ready, 1)
        os.close(ready)
        yield
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        run(f"ip netns delete {name}")


def _become(root: str, name: str, caller: int, said: int) -> NoReturn:
    try:
        process.die_with(caller)
        _supervise(root, name, said)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _index(name: str) -> int:
    with netns.entered(netns.path_of(name)), Netlink() as nl:
        return links.named(nl, "eth0").index


def _supervise(root: str, name: str, said: int) -> None:
    """Be the supervisor of a sandbox: hold what shows that it lives, and answer."""
    path, index = netns.path_of(name), _index(name)
    nic = Nic("eth0", "eth0", "02:00:00:00:00:01", 1500, ["10.0.0.2/24"], index=index)
    entry = {"kind": "tcfilter", "netns": path, "index": index, "follows": index}
    spec = Spec(Machine(Path(), Path()))
    record = Record(name, spec, time.time(), 0.0, path, status=RUNNING)
    record.interfaces, record.held = [nic], [entry]
    record.phases = [Phase(step, 0.0, 1.0) for step in ("plan", "netns", "attach", "qemu", "plug")]
    directory, alive = ownership.claim(registry.directory_of(root), record)
    supervisors.note(alive)
    if not os.fork():  # in QEMU's place
        process.die_with(os.getppid())
        signal.pause()
    answer = protocol.message(protocol.REPLY, 0, 0, {"result": _totals()})
    with socket.socket(socket.AF_UNIX) as listener:
        with unixsocket.address(directory / SOCKET) as place:
            listener.bind(place)
        listener.listen(16)
        os.write(said, b"!")
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)


def _totals() -> dict[str, Any]:
    """What a guest says of itself."""
    sockets = {"listen": 3, "dropped": 0, "rx_queued": 0, "tx_queued": 0}
    guest = {
        "cpu": dict.fromkeys(("user", "nice", "system", "idle", "iowait", "irq", "steal"), 1000),
        "memory": dict.fromkeys(("size", "free", "available"), 1 << 28),
        "segments": dict.fromkeys(("sent", "received", "retransmitted"), 1000),
        **{f"tcp{six}": dict.fromkeys(_TCP, 1) for six in ("", "6")},
        **{f"udp{six}": sockets for six in ("", "6")},
        "interfaces": {"eth0": dict.fromkeys(Counters._fields, 1000)},
    }
    return {"guest": guest, "guest_failure": "", "monitor": {}}
