"""Section 3, "Lifecycle & Ordering": what may run at the same time, and what waits."""

import os
import threading
from typing import Any

import pytest

from tapwright.cni import Attachment, CniError
from tests.cni.fakes import Fakes, network
from tests.host import eventually

pytestmark = pytest.mark.unit

WEB = Attachment("web", "eth0", "/run/netns/web")


def blocking(fakes: Fakes, kind: str) -> None:
    """A plugin that says `start`, and ends when its FIFO is written to."""
    gate, log = fakes.directory / f"{kind}.gate", fakes.directory / "log"
    os.mkfifo(gate)
    fakes.plugin(
        kind,
        body=f'echo "$CNI_COMMAND-$CNI_CONTAINERID start" >>{log}; read x <{gate}\n'
        f'echo "$CNI_COMMAND-$CNI_CONTAINERID end" >>{log}',
    )


def release(fakes: Fakes, kind: str) -> None:
    (fakes.directory / f"{kind}.gate").write_text("\n")


def log_of(fakes: Fakes) -> list[str]:
    log = fakes.directory / "log"
    return log.read_text().splitlines() if log.exists() else []


def started(*calls: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=call[0], args=call[1:]) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def test_operations_on_one_container_do_not_overlap(fakes: Fakes) -> None:
    """Lifecycle & Ordering: nothing in parallel for one container, on any of its networks."""
    blocking(fakes, "slow")
    fakes.plugin("fast", body=f"echo fast >>{fakes.directory}/log")
    runtime = fakes.runtime()
    threads = started((runtime.add, network("slow"), WEB))
    assert eventually(lambda: log_of(fakes) == ["ADD-web start"])
    threads += started((fakes.runtime().add, network("fast"), WEB._replace(ifname="eth1")))
    release(fakes, "slow")
    for thread in threads:
        thread.join()
    assert log_of(fakes) == ["ADD-web start", "ADD-web end", "fast"]


def test_operations_on_different_containers_overlap(fakes: Fakes) -> None:
    """Lifecycle & Ordering: parallel operations for different containers."""
    blocking(fakes, "slow")
    blocking(fakes, "other")
    threads = started(
        (fakes.runtime().add, network("slow"), WEB),
        (fakes.runtime().add, network("other"), WEB._replace(container_id="db")),
    )
    both = {"ADD-web start", "ADD-db start"}
    assert eventually(lambda: set(log_of(fakes)) == both), "both must run at the same time"
    release(fakes, "slow")
    release(fakes, "other")
    for thread in threads:
        thread.join()


def test_gc_excludes_add_and_delete(fakes: Fakes) -> None:
    """Lifecycle & Ordering: GC waits for ADD and DEL in progress, and new ones wait for GC."""
    blocking(fakes, "slow")
    fakes.plugin("fast", body=f'echo "fast $CNI_COMMAND" >>{fakes.directory}/log')
    add, gc = network("slow"), network("fast")
    threads = started((fakes.runtime().add, add, WEB))
    assert eventually(lambda: log_of(fakes) == ["ADD-web start"])
    with pytest.raises(CniError, match="ADD, DEL or CHECK is still running"):
        fakes.runtime(timeout=0.05).gc(gc, [("web", "eth0")])
    threads += started((fakes.runtime().gc, gc, [("web", "eth0")]))
    release(fakes, "slow")
    for thread in threads:
        thread.join()
    assert log_of(fakes) == ["ADD-web start", "ADD-web end", "fast GC"]

    threads = started((fakes.runtime().gc, add, [("web", "eth0")]))
    assert eventually(lambda: log_of(fakes)[-1] == "GC- start")
    with pytest.raises(CniError, match="GC is still running"):
        fakes.runtime(timeout=0.05).add(gc, WEB._replace(container_id="db"))
    release(fakes, "slow")
    threads[0].join()
