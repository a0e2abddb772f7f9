#!/usr/bin/env python3
"""What a container costs in a sandbox, against runc on the same podman.

    scripts/bench --only platforms

By turns with runc, without a spare, and with one (and a second that stays): `podman run --rm` of
`true`; `podman run` of a web server, up to its first answer; `podman exec` of `true`. Beside it,
what of an `exec` is the guest's, what a call of the runtime takes that does little (`state`), and
what an empty interpreter. Then, in a container, a large file written (with fsync) and read, and
many small files made, and the same on the host. Last, the memory that a container takes on the
host, and one more in its pod: of every process the proportional share (proc(5), smaps_rollup).
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypedDict
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from bench.memory import MiB, kinds, smaps
from bench.place import Place, new_host
from bench.samples import Milliseconds, Samples, rounded
from bench.start import have_spares
from tapwright.oci import bundle
from tapwright.oci import state as containers
from tapwright.oci.state import Container
from tapwright.sandbox import client, spares
from tapwright.state import registry
from tapwright.state.record import Spec
from tests.platforms import images
from tests.platforms.podman import Podman
from tests.platforms.remains import cgroups, sweep
from tests.platforms.runtime import executable

RUNTIMES = "runc", "tapwright"
SPARED = "spare"
HOST = "host"
_NAME = "bench"
_SETTLE_SECONDS = 2.0
_ANSWER_SECONDS = 30.0
_SMALL = 500
"""How many small files."""

Kinds = dict[str, MiB]


class Calls(TypedDict):
    """Milliseconds from fork to exit, or to the first answer."""

    true: Samples
    answer: Samples
    exec: Samples


class Parts(TypedDict):
    """Milliseconds: of a process in a container, from the request to the supervisor to its end; of
    the runtime's `state`; of an interpreter that does nothing."""

    guest: Samples
    state: Samples
    interpreter: Samples


class Files(TypedDict):
    """MiB a second, and microseconds for a small file."""

    write: Samples
    read: Samples
    small: Samples


class Platforms(TypedDict):
    """By runtime; calls also with a `spare`, files also on the `host`. `container` is the memory of
    one, by kind of process, `more` what one more container in its pod takes."""

    calls: dict[str, Calls]
    parts: Parts
    mib: int
    files: dict[str, Files]
    container: dict[str, Kinds]
    more: Kinds


def measure(place: Place, rounds: int, mib: int, is_warm: bool = False) -> Platforms:
    """Before the rounds there is one for warming up, unless it `is_warm` enough."""
    new_host()
    with podman_in(place) as podman:
        return {
            "calls": _calls(podman, place, rounds, is_warm),
            "parts": _parts(podman, place, rounds),
            "mib": mib,
            "files": _files(podman, place, rounds, mib),
            "container": {kind: _container(podman, place, kind) for kind in RUNTIMES},
            "more": _more(podman, place),
        }


@contextmanager
def podman_in(place: Place) -> Iterator[Podman]:
    before = cgroups()
    home = place.directory / "podman"
    home.mkdir()
    runtime = executable(place.directory / "tapwright", place.monitored, Path(_root(place)))
    podman = Podman(home, runtime)
    try:
        podman.output("import", str(images.rootfs(home)), "busybox")
        yield podman
    finally:
        podman.remove_all()
        sweep(home, before)


def _root(place: Place) -> str:
    return place.root("podman")


def _calls(podman: Podman, place: Place, rounds: int, is_warm: bool) -> dict[str, Calls]:
    root = place.root("podman-spares")
    spared = executable(place.directory / "spared", place.spared_monitored, Path(root))
    ways = {kind: kind for kind in RUNTIMES} | {SPARED: str(spared)}
    taken: dict[str, list[tuple[Milliseconds, ...]]] = {kind: [] for kind in ways}
    have = partial(have_spares, root, _spec(podman, place))
    for number in range(1 if is_warm else 0, rounds + 1):
        for kind, runtime in ways.items():
            times = _call(podman, runtime, have)
            if number >= 1:
                taken[kind].append(times)
    spares.drop(root)
    columns = {
        kind: [rounded(column) for column in zip(*taken[kind], strict=True)] for kind in taken
    }
    return {
        kind: {"true": true, "answer": answer, "exec": executed}
        for kind, (true, answer, executed) in columns.items()
    }


def _spec(podman: Podman, place: Place) -> Spec:
    """That of the sandbox of a container, as the runtime makes it."""
    podman.output("run", "--detach", "--name", _NAME, "busybox", "sleep", "100")
    (sandbox,) = registry.listing(_root(place))
    _remove(podman, "tapwright")
    assert sandbox.record is not None  # noqa: S101 - it ran
    return sandbox.record.spec


def _call(
    podman: Podman, kind: str, have_spares: Callable[[], None]
) -> tuple[Milliseconds, Milliseconds, Milliseconds]:
    """`run --rm` of true, `run` of a server up to its answer, `exec` of true; all kinds beside the
    same spares."""
    have_spares()
    begun = time.monotonic()
    podman.output("run", "--rm", "--network", "web", "busybox", "true", runtime=kind)
    true = time.monotonic() - begun
    words = "run", "--detach", "--name", _NAME, "--network", "web", "busybox", *images.SERVE
    have_spares()
    begun = time.monotonic()
    podman.output(*words, runtime=kind)
    answer = _first_answer(podman.inspect(_NAME)) - begun
    begun = time.monotonic()
    podman.output("exec", _NAME, "true", runtime=kind)
    executed = time.monotonic() - begun
    _remove(podman, kind)
    return true * 1e3, answer * 1e3, executed * 1e3


def _parts(podman: Podman, place: Place, rounds: int) -> Parts:
    """By turns, of a container that runs."""
    podman.output("run", "--detach", "--name", _NAME, "busybox", "sleep", "infinity")
    (sandbox,) = registry.listing(_root(place))
    (container,) = containers.listing(_root(place))
    ways: dict[str, Callable[[], None]] = {
        "guest": lambda: in_guest(client.of(sandbox), container, "true"),
        "state": lambda: _run(place.command(_root(place), "state", container.id)),
        "interpreter": lambda: _run([sys.executable, "-I", "-c", "pass"]),
    }
    taken: dict[str, list[Milliseconds]] = {part: [] for part in ways}
    for _ in range(rounds):
        for part, way in ways.items():
            begun = time.monotonic()
            way()
            taken[part].append((time.monotonic() - begun) * 1e3)
    _remove(podman, "tapwright")
    guest, state, interpreter = (rounded(taken[part]) for part in ways)
    return {"guest": guest, "state": state, "interpreter": interpreter}


def in_guest(supervisor: client.Supervisor, container: Container, *argv: str) -> None:
    """Run a process in a container, without a command of ours and without a shim."""
    process = bundle.load(container.bundle).process | {"args": list(argv)}
    with open(os.devnull, "r+b") as null:
        connection, _ = supervisor.converse(
            "exec_container",
            [null.fileno()] * 3,
            id=container.id,
            exec=os.urandom(8).hex(),
            process=process,
            terminal=False,
        )
    with connection:
        while connection.recv(4096):  # the supervisor hangs up when it has told of the end
            pass


def _run(command: list[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _first_answer(inspected: Any) -> float:
    """When it came (monotonic clock). Raises TimeoutError."""
    address = inspected["NetworkSettings"]["Networks"]["web"]["IPAddress"]
    asking = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < deadline:
        try:
            with asking.open(f"http://{address}/", timeout=5):
                return time.monotonic()
        except URLError:  # nobody listens yet
            time.sleep(0.002)
    raise TimeoutError(f"{address} did not answer within {_ANSWER_SECONDS:g} s")


def _remove(podman: Podman, kind: str) -> None:
    podman.output("rm", "--force", "--time", "0", _NAME, runtime=kind)


def _files(podman: Podman, place: Place, rounds: int, mib: int) -> dict[str, Files]:
    taken: dict[str, list[list[float]]] = {kind: [] for kind in (*RUNTIMES, HOST)}
    for _ in range(rounds):
        for kind, found in taken.items():
            begun, written, read, made = _moments(podman, place, kind, mib)
            small = (made - read) * 1e6 / _SMALL
            found.append([mib / (written - begun), mib / (read - written), small])
    columns = {
        kind: [rounded(column) for column in zip(*taken[kind], strict=True)] for kind in taken
    }
    return {
        kind: {"write": write, "read": read, "small": small}
        for kind, (write, read, small) in columns.items()
    }


def _moments(podman: Podman, place: Place, kind: str, mib: int) -> Sequence[float]:
    """When the work began, the file was written, was read, and the small ones were made."""
    busybox = str(images.BUSYBOX)
    work = (
        "echo $EPOCHREALTIME",
        f"{busybox} dd if=/dev/zero of=large bs=1M count={mib} conv=fsync",
        "echo $EPOCHREALTIME",
        f"{busybox} dd if=large of=/dev/null bs=1M",
        f"{busybox} mkdir many",
        "echo $EPOCHREALTIME",
        f"i=0; while [ $i -lt {_SMALL} ]; do echo small >many/$i; i=$((i + 1)); done",
        "echo $EPOCHREALTIME",
        f"{busybox} rm -r large many",
    )
    script = "; ".join(("set -e", *work))
    if kind == HOST:
        command = [busybox, "sh", "-c", script]
        said = subprocess.run(
            command, cwd=place.directory, capture_output=True, text=True, check=True
        ).stdout
    else:
        words = "run", "--rm", "--network", "none", "--workdir", "/root", "busybox"
        said = podman.output(*words, "sh", "-c", script, runtime=kind)
    return [float(moment) for moment in said.split()]


def _container(podman: Podman, place: Place, kind: str) -> Kinds:
    """The memory of one container by itself."""
    words = "run", "--detach", "--name", _NAME, "--network", "web", "busybox", *images.SERVE
    podman.output(*words, runtime=kind)
    found = _settled(podman, place, [_NAME])
    _remove(podman, kind)
    return found


def _more(podman: Podman, place: Place) -> Kinds:
    """What one more container takes, beside another one in a pod."""
    podman.output("pod", "create", "--name", "bench-pod", "--network", "web")
    words = "run", "--detach", "--pod", "bench-pod", "--name"
    podman.output(*words, "first", "busybox", *images.SERVE)
    before = _settled(podman, place, ["first"])
    podman.output(*words, "second", "busybox", "sleep", "infinity")
    after = _settled(podman, place, ["first", "second"])
    podman.output("pod", "rm", "--force", "bench-pod")
    return {kind: round(after[kind] - before.get(kind, 0), 2) for kind in after}


def _settled(podman: Podman, place: Place, containers: Sequence[str]) -> Kinds:
    """The proportional shares by kind of process: of the containers, and of the sandbox that there
    is."""
    time.sleep(_SETTLE_SECONDS)  # what a process does after its start is over
    found: Kinds = {}

    def add(kind: str, pid: int) -> None:
        found[kind] = round(found.get(kind, 0) + smaps(pid)["Pss"], 2)

    sandboxes = registry.listing(_root(place))
    for name in containers:
        state = podman.inspect(name)["State"]
        add("conmon", state["ConmonPid"])
        add("shim" if sandboxes else "the process itself", state["Pid"])
    for sandbox in sandboxes:
        for pid, kind in kinds(sandbox).items():
            add(kind, pid)
    return found
