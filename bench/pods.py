#!/usr/bin/env python3
"""What a pod costs as a kubelet makes it, against runc on the same containerd.

    scripts/bench --only pods

By turns with runc, without a spare, and with one (and a second that stays), by calls of the CRI:
RunPodSandbox, until the sandbox runs; CreateContainer and StartContainer; ExecSync of `true`; and
StopPodSandbox with RemovePodSandbox, which end the container too.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

from bench.place import Place, new_host
from bench.platforms import SPARED
from bench.samples import Milliseconds, Samples, rounded
from bench.start import have_spares
from tapwright.sandbox import spares
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


class Pods(TypedDict):
    """Milliseconds of each call, from the request to the answer."""

    sandbox: Samples
    container: Samples
    exec: Samples
    removal: Samples


def measure(place: Place, rounds: int, is_warm: bool = False) -> dict[str, Pods]:
    """By runtime, the last with a spare. Before the rounds there is one for warming up, unless it
    `is_warm` enough."""
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


def _turns(
    containerd: Containerd, cri: Cri, place: Place, rounds: int, is_warm: bool
) -> dict[str, Pods]:
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
            times = _pod(cri, handler, f"{_NAME}-{kind}-{number}")
            if number >= 1:
                taken[kind].append(times)
    columns = {
        kind: [rounded(column) for column in zip(*taken[kind], strict=True)] for kind in taken
    }
    return {
        kind: {"sandbox": sandbox, "container": container, "exec": executed, "removal": removal}
        for kind, (sandbox, container, executed, removal) in columns.items()
    }


def _spec(containerd: Containerd, cri: Cri) -> Spec:
    """That of the sandbox of a pod, as the runtime makes it."""
    pod = cri.run_sandbox(_NAME)
    (sandbox,) = registry.listing(_root(containerd))
    cri.remove_sandbox(pod)
    assert sandbox.record is not None  # noqa: S101 - it ran
    return sandbox.record.spec


def _pod(cri: Cri, handler: str, name: str) -> list[Milliseconds]:
    moments = [time.monotonic()]
    pod = cri.run_sandbox(name, handler)
    moments.append(time.monotonic())
    container = cri.run(pod, "main", "sleep", "infinity")
    moments.append(time.monotonic())
    cri.exec(container, "true")
    moments.append(time.monotonic())
    cri.remove_sandbox(pod)
    moments.append(time.monotonic())
    return [(b - a) * 1e3 for a, b in pairwise(moments)]
