#!/usr/bin/env python3
"""What a pod costs as a kubelet makes it, against runc on the same containerd.

    scripts/bench --only pods

By turns with runc, without a spare, and with one (and a second that stays), by calls of the CRI:
RunPodSandbox, until the sandbox runs; CreateContainer and StartContainer; ExecSync of `true`; and
StopPodSandbox with RemovePodSandbox, which end the container too. Then further pods with a spare,
whose runtime notes each call that containerd makes: what the calls take. Beside them, the steps of
the supervisor, what of an exec is the guest's, and what a call takes that does little (`state`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

from bench.place import Place, new_host, output
from bench.platforms import SPARED, in_guest
from bench.samples import Milliseconds, Samples, rounded
from bench.start import have_spares
from tapwright.cli import oci_options
from tapwright.oci import state as containers
from tapwright.sandbox import client, spares
from tapwright.state import registry
from tapwright.state.record import Spec
from tests.platforms import images
from tests.platforms.containerd import Containerd
from tests.platforms.cri import Cri
from tests.platforms.remains import cgroups, sweep
from tests.platforms.runtime import executable

_NAME = "bench"
_NAMESPACE = "k8s.io"
"""containerd's, for what it gets by the CRI."""


Span = tuple[float, float]
"""When something began and ended, by the monotonic clock."""


class Pods(TypedDict):
    """Milliseconds of each call, from the request to the answer."""

    sandbox: Samples
    container: Samples
    exec: Samples
    removal: Samples


class Parts(TypedDict):
    """With a spare: the runtime's `verbs` in each part of `Pods`, in their order; milliseconds of
    these `calls` together; those of the supervisor's `steps`; of a process in a container, from the
    request to the supervisor to its end; and of the runtime's `state`."""

    verbs: dict[str, list[str]]
    calls: dict[str, Samples]
    steps: dict[str, Samples]
    guest: Samples
    state: Samples


class Measured(TypedDict):
    """By runtime, the last with a spare. Runs of before they were measured have no `parts`."""

    runc: Pods
    tapwright: Pods
    spare: Pods
    parts: NotRequired[Parts]


def measure(place: Place, rounds: int, is_warm: bool = False) -> Measured:
    """Before the rounds there is one for warming up, unless it `is_warm` enough."""
    new_host()
    with _containerd_in(place) as containerd:
        cri = Cri(containerd.socket, containerd.home)
        try:
            return _turns(containerd, cri, place, rounds, is_warm)
        finally:
            cri.remove_all()
            cri.close()
            spares.drop(_root(containerd))


@contextmanager
def _containerd_in(place: Place) -> Iterator[Containerd]:
    before = cgroups()
    home = place.directory / "containerd"
    home.mkdir()
    try:
        containerd = Containerd(home, place.directory / "pods", images.rootfs(home))
        try:
            yield containerd
        finally:
            containerd.stop()
    finally:
        sweep(home, before)


def _root(containerd: Containerd) -> Path:
    """Where the pods' sandboxes are."""
    return containerd.root / _NAMESPACE


def _turns(containerd: Containerd, cri: Cri, place: Place, rounds: int, is_warm: bool) -> Measured:
    # containerd gives its runtime the root, and starts the program by its path each time.
    use = partial(executable, containerd.runtime, root=containerd.root)
    use(config=place.monitored)
    have = partial(have_spares, str(_root(containerd)), _spec(containerd, cri))

    def spared() -> None:
        have()
        use(config=place.spared_monitored)

    ways: dict[str, tuple[str, Callable[[], object]]] = {
        "runc": ("runc", lambda: None),
        "tapwright": ("tapwright", lambda: use(config=place.monitored)),
        SPARED: ("tapwright", spared),
    }
    taken: dict[str, list[list[Milliseconds]]] = {kind: [] for kind in ways}
    for number in range(1 if is_warm else 0, rounds + 1):
        for kind, (handler, prepare) in ways.items():
            prepare()
            spans = _pod(cri, handler, f"{_NAME}-{kind}-{number}")
            if number >= 1:
                taken[kind].append([(ended - begun) * 1e3 for begun, ended in spans])
    spared()
    return {
        "runc": _columns(taken["runc"]),
        "tapwright": _columns(taken["tapwright"]),
        "spare": _columns(taken[SPARED]),
        "parts": _parts(containerd, cri, rounds, have),
    }


def _columns(rows: list[list[Milliseconds]]) -> Pods:
    sandbox, container, executed, removal = map(rounded, zip(*rows, strict=True))
    return {"sandbox": sandbox, "container": container, "exec": executed, "removal": removal}


def _parts(containerd: Containerd, cri: Cri, rounds: int, have_spares: Callable[[], None]) -> Parts:
    """Of further pods, because noting takes time too."""
    noted, root = containerd.home / "calls", str(_root(containerd))
    state = [str(containerd.runtime), "--root", root, "state"]
    _note_calls(containerd.runtime, noted)
    calls: dict[str, list[Milliseconds]] = {part: [] for part in Pods.__annotations__}
    found: Parts = {"verbs": {}, "calls": {}, "steps": {}, "guest": [], "state": []}

    def look() -> None:
        (sandbox,) = registry.listing(root)
        assert sandbox.record is not None  # noqa: S101 - it runs
        for step in sandbox.record.phases:
            found["steps"].setdefault(step.name, []).append(step.duration_ms)
        (container,) = (each for each in containers.listing(root) if not each.owns)
        begun = time.monotonic()
        in_guest(client.of(sandbox), container, "true")
        between = time.monotonic()
        output([*state, container.id])
        found["guest"].append((between - begun) * 1e3)
        found["state"].append((time.monotonic() - between) * 1e3)

    for number in range(rounds):
        have_spares()
        noted.write_text("")
        spans = _pod(cri, "tapwright", f"{_NAME}-parts-{number}", look)
        of_round = [_Call(line) for line in noted.read_text().splitlines()]
        for part, (begun, ended) in zip(calls, spans, strict=True):
            own = [call for call in of_round if begun <= call.begun < ended]
            found["verbs"][part] = [call.verb for call in own]
            calls[part].append(sum(call.took for call in own))
    found["calls"] = {part: rounded(values) for part, values in calls.items()}
    found["steps"] = {step: rounded(values) for step, values in found["steps"].items()}
    found["guest"], found["state"] = rounded(found["guest"]), rounded(found["state"])
    return found


class _Call:
    """A call of the runtime, of the line that it left: when it `begun` (monotonic clock), and how
    many milliseconds it `took`."""

    def __init__(self, line: str) -> None:
        begun, ended, *words = line.split()
        # The shell's clock is that of the day.
        self.begun = float(begun) - time.time() + time.monotonic()
        self.took: Milliseconds = (float(ended) - float(begun)) * 1e3
        self.verb = oci_options.verb_of(words) or ""


def _note_calls(runtime: Path, noted: Path) -> None:
    """Have the runtime's executable append a line for each call to a file (`_Call`)."""
    settings, _, command = runtime.read_text().partition("exec ")
    runtime.write_text(
        f"#!/bin/bash\n{settings}begun=$EPOCHREALTIME\n{command}status=$?\n"
        f'echo "$begun $EPOCHREALTIME $*" >>{noted}\nexit $status\n'
    )


def _spec(containerd: Containerd, cri: Cri) -> Spec:
    """That of the sandbox of a pod, as the runtime makes it."""
    pod = cri.run_sandbox(_NAME)
    (sandbox,) = registry.listing(_root(containerd))
    cri.remove_sandbox(pod)
    assert sandbox.record is not None  # noqa: S101 - it ran
    return sandbox.record.spec


def _pod(cri: Cri, handler: str, name: str, look: Callable[[], None] = lambda: None) -> list[Span]:
    """What each of the calls took. `look` is called before the removal."""
    spans = list[Span]()

    @contextmanager
    def timed() -> Iterator[None]:
        begun = time.monotonic()
        yield
        spans.append((begun, time.monotonic()))

    with timed():
        pod = cri.run_sandbox(name, handler)
    with timed():
        container = cri.run(pod, "main", "sleep", "infinity")
    with timed():
        cri.exec(container, "true")
    look()
    with timed():
        cri.remove_sandbox(pod)
    return spans
