"""Containers on disk: whose they are, and what they are in."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import (
    ContainerExistsError,
    ContainerNotFoundError,
    ContainerStateError,
    UsageError,
)
from tapwright.oci import state
from tapwright.oci.state import Container

pytestmark = pytest.mark.unit


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "1000"]) as running:
        yield running
        running.kill()


def container(name: str = "c1", **attributes: Any) -> Container:
    return Container(id=name, bundle="/b", sandbox=name, owns=True, **attributes)


def of(process: "subprocess.Popen[bytes]", **attributes: Any) -> Container:
    return container(
        pid=process.pid,
        pid_started=state.start_of(process.pid),
        **{"boot": state.boot(), **attributes},
    )


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = container(annotations={"a": "b"}, guest_pid=7, hooks={"poststop": [{"path": "/x"}]})
    state.claim(str(tmp_path), written).close()
    assert vars(state.load(str(tmp_path), "c1")) == vars(written)
    assert [found.id for found in state.listing(str(tmp_path))] == ["c1"]


def test_status(tmp_path: Path, process: "subprocess.Popen[bytes]") -> None:
    root = str(tmp_path)
    held = state.claim(root, container())
    assert state.status(root, container()) == "creating"
    held.close()
    assert state.status(root, container()) == "stopped", "its creation was killed"
    assert state.status(root, of(process)) == "created"
    assert state.status(root, of(process, started=True)) == "running"
    assert state.status(root, of(process, started=True, paused=True)) == "paused"
    running = of(process, started=True)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert state.status(root, running) == "stopped", "nobody has fetched its exit status so far"
    process.wait()
    assert state.status(root, running) == "stopped"


def test_one_that_had_ended_before_it_was_known(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    ended = of(process)
    assert ended.pid_started == -1
    assert not state.is_running(ended)


def test_another_process_of_its_pid(process: "subprocess.Popen[bytes]") -> None:
    assert not state.is_running(container(pid=process.pid, pid_started=1, boot=state.boot()))
    assert not state.is_running(of(process, boot="an earlier one"))
    assert state.is_running(of(process))


def test_an_id_belongs_to_one(tmp_path: Path) -> None:
    state.claim(str(tmp_path), container()).close()
    with pytest.raises(ContainerExistsError, match="container with given ID already exists"):
        state.claim(str(tmp_path), container())
    assert os.listdir(tmp_path / "containers") == ["c1"]


@pytest.mark.parametrize("name", ["..", "a/b", "a b", "", "x" * 129, "ä"])
def test_what_is_no_id(tmp_path: Path, name: str) -> None:
    with pytest.raises((UsageError, ContainerNotFoundError)):
        state.load(str(tmp_path), name)


def test_the_lock(tmp_path: Path) -> None:
    root = str(tmp_path)
    held = state.claim(root, container())
    with pytest.raises(ContainerStateError, match="another call works on container 'c1'"):
        state.hold(root, "c1", 0.05)
    held.close()
    held = state.hold(root, "c1", 0)
    held.discard()
    held.close()
    with pytest.raises(ContainerNotFoundError, match="container does not exist"):
        state.hold(root, "c1", 0)
    assert os.listdir(tmp_path / "containers") == []


def test_what_a_kill_leaves_is_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f".new-x-{ended.pid}", f".deleted-y-{ended.pid}"):
        (tmp_path / "containers" / name).mkdir(parents=True)
        (tmp_path / "containers" / name / "state.json").touch()
    assert state.listing(str(tmp_path)) == []
    state.claim(str(tmp_path), container()).close()
    assert os.listdir(tmp_path / "containers") == ["c1"]


def test_a_damaged_file(tmp_path: Path) -> None:
    state.claim(str(tmp_path), container()).close()
    (tmp_path / "containers/c1/state.json").write_text("{")
    with pytest.raises(ContainerStateError, match="damaged"):
        state.load(str(tmp_path), "c1")
