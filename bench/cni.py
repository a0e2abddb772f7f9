#!/usr/bin/env python3
"""What running a CNI network costs on top of its plugins.

    scripts/bench --only cni

ADD and DEL of bridge + host-local + tuning:

  bare      the same plugins, each executed with input that was made before
  library   tapwright.cni.Runtime, in one process
  command   tapwright cni add | del
  cnitool   where it is on the PATH

The variants take turns, in an order that changes, so that what disturbs the machine disturbs them
all. Then many attachments one after the other and at once, by the library, and the CPU time.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from bench.place import COMMAND, PLUGINS, new_host
from bench.samples import Samples, rounded
from tapwright.cni import Attachment, Runtime, find_network
from tapwright.linux import netns

THREADS = 4
_NAME = "twbench"
# The kernel is at work on an interface for a while, and takes longer to remove it after that.
_SETTLE_SECONDS = 0.1
_BATCHES = 3

Timed = Callable[[], None]


class Verbs(TypedDict):
    """Milliseconds."""

    add: Samples
    delete: Samples


class Batch(TypedDict):
    """Seconds that all attachments take, and of the processor."""

    seconds: Samples
    cpu: Samples


class Cni(TypedDict):
    """The batches are of so many `attachments`, with one thread and with `threads`."""

    variants: dict[str, Verbs]
    attachments: int
    threads: int
    in_turn: Batch
    at_once: Batch


class Bench:
    """One network, one namespace, and every way to run ADD and DEL."""

    def __init__(self, directory: Path) -> None:
        self.netns = make_netns(_NAME)
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
        command = [COMMAND, "cni"]
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
    netns.create(netns.path_of(name))
    return netns.path_of(name)


def measure(rounds: int, attachments: int) -> Cni:
    new_host()
    with tempfile.TemporaryDirectory() as directory, _no_namespace_left():
        bench = Bench(Path(directory))
        variants = compare(bench, rounds)
        in_turn, at_once = together(bench, attachments)
    return {
        "variants": variants,
        "attachments": attachments,
        "threads": THREADS,
        "in_turn": in_turn,
        "at_once": at_once,
    }


def compare(bench: Bench, rounds: int) -> dict[str, Verbs]:
    variants = bench.variants()
    times: dict[str, Verbs] = {name: {"add": [], "delete": []} for name in variants}
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            add, delete = variants[name]
            times[name]["add"] += rounded([_timed(add)])
            time.sleep(_SETTLE_SECONDS)
            times[name]["delete"] += rounded([_timed(delete)])
    return times


def _timed(call: Timed) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def together(bench: Bench, count: int) -> tuple[Batch, Batch]:
    """Many containers, in turn and at once."""
    paths = [make_netns(f"{_NAME}-{number}") for number in range(count)]
    attachments = [Attachment(f"c{n}", "eth0", path) for n, path in enumerate(paths)]

    def add(attachment: Attachment) -> None:
        bench.runtime.add(bench.network, attachment)

    def delete(attachment: Attachment) -> None:
        bench.runtime.delete(bench.network, attachment)

    in_turn: Batch = {"seconds": [], "cpu": []}
    at_once: Batch = {"seconds": [], "cpu": []}
    for _ in range(_BATCHES):
        for batch, threads in ((in_turn, 1), (at_once, THREADS)):
            with ThreadPoolExecutor(threads) as pool:
                cpu, started = _cpu_seconds(), time.perf_counter()
                list(pool.map(add, attachments))
                batch["seconds"] += rounded([time.perf_counter() - started], 3)
                batch["cpu"] += rounded([_cpu_seconds() - cpu], 3)
                list(pool.map(delete, attachments))
    return in_turn, at_once


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def _no_namespace_left() -> Iterator[None]:
    try:
        yield
    finally:
        for name in os.listdir(netns.DIRECTORY):
            if name.startswith(_NAME):
                netns.remove(netns.path_of(name))
