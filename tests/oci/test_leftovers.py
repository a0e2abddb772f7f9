"""`tapwright gc`: what the dead have left goes, what lives stays."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.hypervisor import template_store
from tapwright.hypervisor.machine import Machine
from tapwright.linux import boot, filelock
from tapwright.oci import leftovers, state
from tapwright.sandbox import spares
from tapwright.state import ownership, registry
from tapwright.state.record import Record, Spec
from tests.host import Host, eventually
from tests.sandboxes import Tapwright, ended, pids_of

EARLIER = "an earlier boot"


def add_sandbox(root: Path, name: str, run: str = "", held: Any = ()) -> int:
    """One that has begun; return the lock of its maker, with which it ends."""
    spec = Spec(Machine(Path(), Path()))
    record = Record(name, spec, time.time(), time.monotonic(), "", boot=run)
    record.held.extend(held)
    _, alive = ownership.claim(registry.directory_of(root), record)
    return alive


def add_container(root: Path, name: str, sandbox: str, **attributes: Any) -> None:
    container = state.Container(id=name, bundle="/b", sandbox=sandbox, **attributes)
    state.claim(str(root), container).close()


def names(root: Path) -> set[str]:
    return {sandbox.id for sandbox in registry.listing(root)}


@pytest.fixture
def living(tmp_path: Path) -> Iterator[str]:
    alive = add_sandbox(tmp_path, "living", boot.current())
    yield "living"
    os.close(alive)


@pytest.mark.unit
def test_the_dead_go_and_the_living_stay(tmp_path: Path, living: str) -> None:
    os.close(add_sandbox(tmp_path, "dead", boot.current()))
    found = leftovers.collect(str(tmp_path), "")
    assert (found.sandboxes, found.problems, names(tmp_path)) == (["dead"], [], {living})


@pytest.mark.unit
def test_containers_of_an_earlier_boot_go_with_their_sandbox(tmp_path: Path) -> None:
    os.close(add_sandbox(tmp_path, "pod", EARLIER))
    add_container(tmp_path, "pod", "pod", owns=True, boot=EARLIER, pid=1, pid_started=1)
    add_container(tmp_path, "member", "pod", owns=False, boot=EARLIER, pid=1, pid_started=1)
    found = leftovers.collect(str(tmp_path), "")
    assert (found.containers, found.sandboxes) == (["member", "pod"], ["pod"])
    assert (state.listing(str(tmp_path)), names(tmp_path)) == ([], set())
    assert (found.problems, found.given_up) == ([], [])


@pytest.mark.unit
def test_a_container_that_the_boot_kept_from_being_made(tmp_path: Path) -> None:
    """It has no process, and so no boot of its own; what its sandbox held is given back."""
    os.close(add_sandbox(tmp_path, "half", EARLIER))
    os.close(add_sandbox(tmp_path, "begun", boot.current()))
    for name in ("half", "begun"):
        add_container(tmp_path, name, name, owns=True)
    assert leftovers.collect(str(tmp_path), "").sandboxes == ["half"]
    assert names(tmp_path) == {"begun"}


@pytest.mark.unit
def test_a_platform_deletes_its_containers_itself(tmp_path: Path) -> None:
    """Those of this boot, though they are dead; it may still ask for their state."""
    os.close(add_sandbox(tmp_path, "c1", boot.current()))
    add_container(tmp_path, "c1", "c1", owns=True, boot=boot.current(), pid=1, pid_started=1)
    found = leftovers.collect(str(tmp_path), "")
    assert (found.containers, found.sandboxes, names(tmp_path)) == ([], [], {"c1"})


@pytest.mark.unit
def test_what_cannot_be_taken_back_stays_unless_by_force(tmp_path: Path) -> None:
    """And keeps no other from being taken back."""
    strange = [{"kind": "of another version"}]
    os.close(add_sandbox(tmp_path, "a", boot.current(), strange))
    os.close(add_sandbox(tmp_path, "b", boot.current()))
    found = leftovers.collect(str(tmp_path), "")
    assert (found.sandboxes, names(tmp_path)) == (["b"], {"a"})
    assert "of another version" in found.problems[0]
    found = leftovers.collect(str(tmp_path), "", force=True)
    assert (found.sandboxes, found.problems, names(tmp_path)) == (["a"], [], set())
    assert "of another version" in found.given_up[0]


@pytest.mark.unit
def test_spares_and_drafts_of_killed_makers_go(tmp_path: Path) -> None:
    for name in ("dead", "ready"):
        (spares.directory_of(tmp_path) / name).mkdir(parents=True)
        (spares.directory_of(tmp_path) / name / spares.ALIVE).touch()
    templates = tmp_path / "template"
    draft = f"{template_store._NEW}1"
    (templates / draft).mkdir(parents=True)
    (templates / "kept").mkdir()
    fd = os.open(spares.directory_of(tmp_path) / "ready" / spares.ALIVE, os.O_RDWR)
    try:
        assert filelock.locked_within(fd, 0)
        found = leftovers.collect(str(tmp_path), str(templates))
    finally:
        os.close(fd)
    assert (found.spares, found.drafts) == (["dead"], [draft])
    assert os.listdir(templates) == ["kept"]
    assert (spares.directory_of(tmp_path) / "ready").exists()


def test_a_killed_sandbox_gives_back_what_it_held(tapwright: Tapwright, host: Host) -> None:
    """Beside one that lives, and answers afterwards."""
    tapwright.json("sandbox", "run", "gc-living", "--network", "dual")
    before = host.snapshot()
    dead = tapwright.json("sandbox", "run", "gc-dead", "--network", "dual", "--publish", "8099:80")
    supervisor, qemu = pids_of(dead)
    os.kill(supervisor, signal.SIGKILL)
    assert ended(supervisor)
    assert ended(qemu)
    assert eventually(
        lambda: tapwright.json("sandbox", "inspect", "gc-dead")["status"] == registry.DEAD
    )
    done = tapwright.run("gc")
    assert done.stdout == "sandbox gc-dead\n"
    host.assert_same(before)
    assert tapwright.exec("gc-living", "echo", "here") == "here\n"
    assert json.loads(tapwright.run("gc", "--json").stdout)["sandboxes"] == []
    tapwright.delete("gc-living")
