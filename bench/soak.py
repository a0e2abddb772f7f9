#!/usr/bin/env python3
"""Transfers over all models and endpoints, with a watchdog: does one ever stand still?

    scripts/soak

So many TCP transfers to and from the guests, some of them at once, each of a random length, while
one core is busy besides. Where nothing comes for a while, all that could tell why is written into
a directory: both ends' sockets, both sides of the join, the queues of the TAP and of QEMU, the
counters of tc, and the guest's interrupts. Then the soak waits whether the transfer goes on by
itself.

By environment: TRANSFERS (1000), SANDBOXES (9), SEED (the time), GAP (seconds without a byte: 5),
SECONDS (the longest transfer: 2), BUSY (processes that do nothing but compute: 1), OUTPUT
(build/soak). Exit status 1 when a transfer stood still. A soak of a thousand or more goes into
docs/performance.md.
"""

import dataclasses
import datetime
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from bench.endpoints import BRIDGE, HOST, ROWS, STRAIGHT, Shell, in_guest, prepared, sandbox
from bench.place import Place, make_bridge, new_host, private, say
from tapwright.errors import TapwrightError
from tapwright.sandbox import client
from tapwright.sandbox.taps import TapWish, requested
from tapwright.state import registry, supervisors
from tapwright.state.record import LOG

RESULT = "soak.json"
_RESULTS = Path(__file__).parents[1] / "docs/performance"
_FULL = 1000
_CHUNK = bytes(1 << 16)
_PORT = 5100
_CONNECT_SECONDS, _HEAL_SECONDS, _ASK_SECONDS = 20.0, 60.0, 15.0

# What runs in the guest; it has no more than this image has.
_OF_GUEST = """
for file in /proc/net/tcp /proc/interrupts /proc/softirqs /proc/net/softnet_stat /proc/net/dev
do echo "== $file"; cat $file; done
for words in "ip -s -s link" "ip -d address" "ip neigh" "ip route" "tc -s qdisc show" "ps"
do echo "== $words"; $words 2>&1; done
"""
_OF_NAMESPACE = (
    *("ip -s -s -d link", "ip address", "ip neigh", "ip route", "tc -s qdisc show"),
    "ss --tcp --numeric --info --memory --options",
)


@dataclass(frozen=True)
class End:
    """A guest: its address, and the words before a script that make it run there."""

    name: str
    root: str
    sandbox: str
    address: str
    port: int

    @property
    def shell(self) -> Shell:
        return in_guest(self.root, self.sandbox)


@dataclass
class Transfer:
    """One; `gaps` are how long nothing came, in seconds, where that was too long; the last of one
    that `failed` has not ended."""

    number: int
    end: str
    direction: str
    seconds: float
    bytes: int = 0
    gaps: list[float] = field(default_factory=list)
    failed: str = ""
    captured: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.gaps and not self.failed


class Soaked(TypedDict):
    """What came of a soak. `ends` are the kinds of joins, and how many transfers went each way: to
    the guest, and from it."""

    date: str
    transfers: int
    sandboxes: int
    busy: int
    longest: float
    gap: float
    seconds: int
    megabytes: int
    stood_still: int
    failed: int
    ends: dict[str, tuple[int, int]]


Capture = Callable[[End, Path], None]


class Watchdog:
    """What is done when a transfer stands still for `gap` seconds: `capture` writes down what there
    is to see, into a directory of its own below `output`."""

    def __init__(self, gap: float, output: Path, capture: Capture | None = None) -> None:
        self.gap = gap
        self._output = output
        self._capture = capture or captured

    def waits(self, transfer: Transfer, end: End, event: int, file: Any) -> None:
        """Until `event` (select.POLLIN, POLLOUT) comes of the file. Raises TimeoutError when it has
        not come long after the gap."""
        poll = select.poll()
        poll.register(file, event)
        begun = time.monotonic()
        if poll.poll(self.gap * 1000):
            return
        place = self._output / f"{transfer.number:04}-{len(transfer.gaps)}"
        place.mkdir(parents=True)
        (place / "transfer.json").write_text(json.dumps(dataclasses.asdict(transfer)))
        self._capture(end, place)
        transfer.captured.append(str(place))
        came = poll.poll(_HEAL_SECONDS * 1000)
        transfer.gaps.append(round(time.monotonic() - begun, 2))
        if not came:
            raise TimeoutError(f"nothing for {transfer.gaps[-1]:.0f} s")


def run(watchdog: Watchdog, end: End, transfer: Transfer) -> None:
    """Make one transfer; what came of it is in it."""
    try:
        way = _to_guest if transfer.direction == "to" else _from_guest
        way(watchdog, end, transfer)
    except (OSError, subprocess.SubprocessError) as error:
        transfer.failed = f"{type(error).__name__}: {error}"


def _to_guest(watchdog: Watchdog, end: End, transfer: Transfer) -> None:
    serving = subprocess.Popen([*end.shell, f"nc -l -p {end.port} >/dev/null"])
    with _ended(serving), _connected(end) as connection:
        connection.setblocking(False)
        deadline = time.monotonic() + transfer.seconds
        while time.monotonic() < deadline:
            watchdog.waits(transfer, end, select.POLLOUT, connection)
            with suppress(BlockingIOError):
                transfer.bytes += connection.send(_CHUNK)
        connection.shutdown(socket.SHUT_WR)
        # It ends when it has read everything.
        ended = os.pidfd_open(serving.pid)
        try:
            watchdog.waits(transfer, end, select.POLLIN, ended)
        finally:
            os.close(ended)


def _from_guest(watchdog: Watchdog, end: End, transfer: Transfer) -> None:
    with socket.create_server((HOST, end.port)) as listener:
        listener.settimeout(_CONNECT_SECONDS)
        command = f"nc {HOST} {end.port} </dev/zero 2>/dev/null"
        with _ended(subprocess.Popen([*end.shell, command])):
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)
                deadline = time.monotonic() + transfer.seconds
                while time.monotonic() < deadline:
                    watchdog.waits(transfer, end, select.POLLIN, connection)
                    with suppress(BlockingIOError):
                        transfer.bytes += len(connection.recv(len(_CHUNK)))


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A command in the guest, which ends when its connection does."""
    try:
        yield
        process.wait(_HEAL_SECONDS)
    finally:
        process.kill()
        process.wait()


def _connected(end: End) -> socket.socket:
    """Once the guest listens, of which nobody tells."""
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return socket.create_connection((end.address, end.port), timeout=_CONNECT_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def captured(end: End, place: Path) -> None:
    """Write down what there is to see of a transfer that stands still. What can't be had is said in
    the place of it."""
    found = registry.find(end.root, end.sandbox)
    looks: dict[str, Callable[[], str]] = {
        "queues.json": lambda: json.dumps(client.of(found).call("queues"), indent=1),
        "look.json": lambda: json.dumps(client.of(found).call("look"), indent=1),
        "host": lambda: _namespace(()),
        "log": lambda: (found.directory / LOG).read_text(errors="replace"),
        "guest": lambda: _said([*end.shell, _OF_GUEST]),
    }
    if found.record and found.record.netns:
        inside = "nsenter", f"--net={found.record.netns}"
        looks["namespace"] = lambda: _namespace(inside)
    supervisor = supervisors.pid_of(found.directory)
    for pid in _children(supervisor) if supervisor else ():
        looks[f"process-{pid}"] = partial(_process, pid)
    # All at once: what hangs is waited for.
    with ThreadPoolExecutor(len(looks)) as pool:
        list(pool.map(lambda name: _write(place / name, looks[name]), looks))


def _write(path: Path, look: Callable[[], str]) -> None:
    try:
        text = look()
    except (OSError, subprocess.SubprocessError, TapwrightError) as error:
        text = f"{type(error).__name__}: {error}\n"
    path.write_text(text)


def _namespace(words: Sequence[str]) -> str:
    """Both sides of the join, where `words` lead into its namespace."""
    text = "".join(_told([*words, *command.split()]) for command in _OF_NAMESPACE)
    listed = json.loads(_said([*words, "ip", "-json", "link"]))
    for name in (link["ifname"] for link in listed):
        text += _told([*words, *f"tc -s filter show dev {name} ingress".split()])
    return text


def _process(pid: int) -> str:
    """Its threads, and the queues of its TAPs (Documentation/networking/tuntap.rst: fdinfo)."""
    text = f"== {Path(f'/proc/{pid}/comm').read_text()}"
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        with suppress(FileNotFoundError):  # it has ended
            for name in ("comm", "stat", "wchan"):
                text += f"{name}: {(task / name).read_text().strip()}\n"
    for descriptor in sorted(Path(f"/proc/{pid}/fd").iterdir()):
        with suppress(FileNotFoundError):
            target = os.readlink(descriptor)
            if any(word in target for word in ("tun", "tap", "vhost")):
                told = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
                text += f"== {descriptor.name} {target}\n{told}"
    return text


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _told(command: Sequence[str]) -> str:
    return f"== {' '.join(command)}\n{_said(command)}"


def _said(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
    )
    return done.stdout + done.stderr


@contextmanager
def ends(place: Place, count: int) -> Iterator[list[End]]:
    """So many sandboxes, of all kinds by turns."""
    root, spec = place.root("soak"), place.spec()
    found = []
    with ExitStack() as undo:
        for number in range(1, count + 1):
            name, address = f"bench-s{number}", f"10.78.{number}.1"
            kind = (number - 1) % (len(ROWS) + 1)
            if kind == 0:
                wish = TapWish(f"tap-s{number}", bridge=BRIDGE, addresses=[f"{address}/16"])
                taps = dataclasses.replace(spec, taps=[requested(wish, "eth0")])
                undo.enter_context(sandbox(root, name, taps))
            else:
                undo.enter_context(prepared(root, name, address, spec, ROWS[kind - 1]))
            kinds = (STRAIGHT, *(row.name for row in ROWS))
            found.append(End(kinds[kind], root, name, address, _PORT + number))
        yield found


@contextmanager
def busy(count: int) -> Iterator[None]:
    """With so many processes that only compute."""
    processes = [
        subprocess.Popen([sys.executable, "-ISc", "while True: pass"]) for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def soak(
    place: Place, watchdog: Watchdog, transfers: int, sandboxes: int, seed: int, seconds: float
) -> Iterator[Transfer]:
    """Gives each transfer when it has ended. The same seed draws the same."""
    drawn = random.Random(seed)  # noqa: S311 - no secret
    new_host()
    make_bridge(BRIDGE, f"{HOST}/16")
    with ends(place, sandboxes) as all_ends, ThreadPoolExecutor(sandboxes) as pool:
        for first in range(0, transfers, sandboxes):
            # From one alone to all at once.
            at_once = min(drawn.randint(1, sandboxes), transfers - first)
            batch = [
                (
                    end,
                    Transfer(
                        first + number,
                        end.name,
                        drawn.choice(("to", "from")),
                        round(drawn.uniform(seconds / 10, seconds), 2),
                    ),
                )
                for number, end in enumerate(
                    drawn.sample(all_ends, min(sandboxes, transfers - first))
                )
            ]
            for start in range(0, len(batch), at_once):
                part = batch[start : start + at_once]
                list(pool.map(lambda one: run(watchdog, *one), part))
                yield from (transfer for _, transfer in part)


def ways(done: Sequence[Transfer]) -> dict[str, tuple[int, int]]:
    """By kinds of joins how many went to the guest, and from it."""
    found = {}
    for name in sorted({one.end for one in done}):
        own = [one.direction for one in done if one.end == name]
        found[name] = own.count("to"), own.count("from")
    return found


def summary(done: Sequence[Transfer]) -> str:
    still = [one for one in done if one.gaps]
    failed = [one for one in done if one.failed]
    lines = [
        f"{len(done)} transfers, {sum(one.bytes for one in done) / 1e6:.0f} MB; "
        f"{len(still)} stood still, {len(failed)} failed"
    ]
    for name, (to, back) in ways(done).items():
        lines.append(f"  {name}: {to} to the guest, {back} from it")
    for one in done:
        if not one.is_sound:
            lines.append(
                f"  {one.number}: {one.end}, {one.direction} the guest, after {one.bytes} bytes: "
                f"{one.failed or 'it went on'}; gaps of {one.gaps} s; {', '.join(one.captured)}"
            )
    return "\n".join(lines)


def _number(name: str, value: int) -> int:
    return int(os.environ.get(name, value))


def main() -> int:
    seed, seconds = _number("SEED", int(time.time())), float(os.environ.get("SECONDS", "2"))
    output = Path(os.environ.get("OUTPUT", f"build/soak/{seed}"))
    watchdog = Watchdog(float(os.environ.get("GAP", "5")), output)
    transfers, sandboxes = _number("TRANSFERS", _FULL), _number("SANDBOXES", 9)
    others = _number("BUSY", 1)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    done: list[Transfer] = []
    begun = time.monotonic()
    with private() as place, busy(others):
        for transfer in soak(place, watchdog, transfers, sandboxes, seed, seconds):
            done.append(transfer)
            if not transfer.is_sound or len(done) % 50 == 0:
                say(f"{len(done)} done in {time.monotonic() - begun:.0f} s; SEED={seed}")
    took = round(time.monotonic() - begun)
    print(f"{summary(done)}\nin {took} s; again by SEED={seed}")
    if transfers >= _FULL:
        result: Soaked = {
            "date": datetime.date.today().isoformat(),
            "transfers": len(done),
            "sandboxes": sandboxes,
            "busy": others,
            "longest": seconds,
            "gap": watchdog.gap,
            "seconds": took,
            "megabytes": round(sum(one.bytes for one in done) / 1e6),
            "stood_still": sum(bool(one.gaps) for one in done),
            "failed": sum(bool(one.failed) for one in done),
            "ends": ways(done),
        }
        (_RESULTS / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(one.is_sound for one in done) else 1


if __name__ == "__main__":
    sys.exit(main())
