"""What running a CNI network costs on top of its plugins. Run as root:

    .venv/bin/python bench/cni.py [ROUNDS]

ADD and DEL of bridge + host-local + tuning, in a network namespace of its own:

  bare      the same plugins, each executed with input that was made before
  library   tapwright.cni.Runtime, in one process
  command   tapwright cni add | del
  cnitool   where it is on the PATH

The variants take turns, in an order that changes, so that what disturbs the machine disturbs them
all. Then 100 attachments one after the other and 100 at once, by the library, and the CPU time.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from tapwright.cni import Attachment, Runtime, find_network
from tapwright.linux import libc, links
from tapwright.linux.netlink import Netlink

PLUGINS = "/usr/lib/cni"
ATTACHMENTS = 100
THREADS = 4
# The kernel is at work on an interface for a while, and takes longer to remove it after that.
SETTLE_SECONDS = 0.1
Timed = Callable[[], None]


class Bench:
    """One network, one namespace, and every way to run ADD and DEL."""

    def __init__(self, directory: Path) -> None:
        self.netns = make_netns("twbench")
        self.cache = directory / "cache"
        self.nets = directory / "net.d"
        self.nets.mkdir()
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": "10.86.0.0/16"}]],
            "dataDir": str(directory / "leases"),
        }
        bridge = {"type": "bridge", "bridge": "brbench", "isGateway": True, "ipam": ipam}
        content = {"cniVersion": "1.0.0", "name": "bench", "plugins": [bridge, {"type": "tuning"}]}
        (self.nets / "bench.conflist").write_text(json.dumps(content))
        self.network = find_network(self.nets, "bench")
        self.runtime = Runtime([PLUGINS], str(self.cache))
        self.environment = os.environ | {"NETCONFPATH": str(self.nets), "CNI_PATH": PLUGINS}

    def variants(self) -> dict[str, tuple[Timed, Timed]]:
        attachment = Attachment("bench", "eth0", self.netns)
        command = [str(Path(sys.executable).with_name("tapwright")), "cni"]
        found = {
            "bare": (lambda: self.bare("ADD"), lambda: self.bare("DEL")),
            "library": (
                lambda: discard(self.runtime.add(self.network, attachment)),
                lambda: self.runtime.delete(self.network, attachment),
            ),
            "command": self.commands(*command, cache=["--cache-dir", str(self.cache)]),
        }
        if shutil.which("cnitool"):
            found["cnitool"] = self.commands("cnitool", cache=[])
        self.record()
        return found

    def commands(self, *command: str, cache: list[str]) -> tuple[Timed, Timed]:
        def run(verb: str) -> None:
            argv = [*command, verb, "bench", self.netns, *cache]
            execute(argv, self.environment, b"")

        return lambda: run("add"), lambda: run("del")

    def record(self) -> None:
        """Keep what each plugin of ADD and DEL is given."""
        self.inputs: dict[str, list[tuple[list[str], dict[str, str], bytes]]] = {
            "ADD": [],
            "DEL": [],
        }

        def keep(run: Any) -> None:
            environment = os.environ | run.environment
            self.inputs[run.command].append(([run.path], environment, run.stdin.encode()))

        runtime = Runtime([PLUGINS], str(self.cache), trace=keep)
        attachment = Attachment("bench", "eth0", self.netns)
        runtime.add(self.network, attachment)
        runtime.delete(self.network, attachment)

    def bare(self, verb: str) -> None:
        for argv, environment, stdin in self.inputs[verb]:
            execute(argv, environment, stdin)


def execute(argv: list[str], environment: dict[str, str], stdin: bytes) -> None:
    subprocess.run(argv, env=environment, input=stdin, capture_output=True, check=True)


def discard(_: object) -> None:
    pass


def make_netns(name: str) -> str:
    subprocess.run(["ip", "netns", "add", name], check=True)
    return f"/run/netns/{name}"


def compare(bench: Bench, rounds: int) -> None:
    variants = bench.variants()
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            for verb, call in zip(("ADD", "DEL"), variants[name], strict=True):
                if verb == "DEL":
                    time.sleep(SETTLE_SECONDS)
                started = time.perf_counter()
                call()
                times.setdefault((name, verb), []).append(time.perf_counter() - started)
    print("| | ADD ms | to bare | DEL ms | to bare |")
    print("| --- | --- | --- | --- | --- |")
    bare = {verb: statistics.median(times["bare", verb]) for verb in ("ADD", "DEL")}
    for name in variants:
        cells = []
        for verb in ("ADD", "DEL"):
            median = statistics.median(times[name, verb])
            more = (median - bare[verb]) * 1000
            cells += [f"{median * 1000:.1f}", f"{median / bare[verb]:.2f} ({more:+.1f} ms)"]
        print(f"| {name} | {' | '.join(cells)} |")


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def together(bench: Bench) -> None:
    """Many containers, in turn and at once."""
    paths = [make_netns(f"twbench-{number}") for number in range(ATTACHMENTS)]
    attachments = [Attachment(f"c{n}", "eth0", path) for n, path in enumerate(paths)]

    def add(attachment: Attachment) -> None:
        bench.runtime.add(bench.network, attachment)

    def delete(attachment: Attachment) -> None:
        bench.runtime.delete(bench.network, attachment)

    rows: dict[str, list[tuple[float, float]]] = {}
    for _ in range(3):
        for name, threads in (("in turn", 1), ("at once", THREADS)):
            with ThreadPoolExecutor(threads) as pool:
                cpu, started = cpu_seconds(), time.perf_counter()
                list(pool.map(add, attachments))
                took = time.perf_counter() - started, cpu_seconds() - cpu
                rows.setdefault(name, []).append(took)
                list(pool.map(delete, attachments))
    print(f"\n| {ATTACHMENTS} ADDs | s | CPU s |")
    print("| --- | --- | --- |")
    for name, taken in rows.items():
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |")


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """A network namespace in the role of the host."""
    libc.unshare(libc.CLONE_NEWNET)
    with Netlink() as nl:
        links.set_up(nl, 1)
    try:
        yield
    finally:
        for name in os.listdir("/run/netns"):
            if name.startswith("twbench"):
                subprocess.run(["ip", "netns", "delete", name], check=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with own_network(), tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        compare(bench, rounds)
        together(bench)


if __name__ == "__main__":
    main()
