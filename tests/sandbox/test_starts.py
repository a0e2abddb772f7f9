"""Sandboxes that wait until others have started."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.hypervisor.machine import Machine
from tapwright.state import registry, supervisors
from tapwright.state.record import Spec
from tapwright.supervisor import spare, starts
from tapwright.supervisor.turns import Turn
from tests.host import eventually
from tests.sandboxes import Networks, Tapwright, ended


@pytest.fixture(scope="module")
def config(tapwright: Tapwright) -> Path:
    """One start after the other."""
    return tapwright.configuration({"max_concurrent_starts": 1}, tapwright.templates)


@pytest.fixture
def turn() -> Iterator[Turn]:
    """That of a sandbox that starts."""
    found = starts.wanted(1)
    assert found
    yield found
    found.end()


def run(tapwright: Tapwright, config: Path, name: str) -> subprocess.Popen[str]:
    """A start that waits for its turn."""
    words = "sandbox", "run", name, "--network", "dual"
    process = tapwright.start(*words, config=config)
    assert process.stderr
    assert process.stderr.readline() == "wait until other sandboxes have started\n"
    return process


def ends(tapwright: Tapwright, name: str) -> dict[str, float]:
    """When each phase of a sandbox's start ended, in milliseconds of the monotonic clock."""
    record = registry.find(tapwright.root, name).record
    assert record
    begun = record.started * 1e3
    return {one.name: begun + one.start_ms + one.duration_ms for one in record.phases}


def test_in_the_order_in_which_they_came(
    tapwright: Tapwright, networks: Networks, config: Path, turn: Turn, nothing_left: None
) -> None:
    """Whoever is deleted, or left by the caller, goes at once, and is not waited for."""
    deleted, first, left, second = (
        run(tapwright, config, name) for name in ("deleted", "first", "left", "second")
    )
    supervisor = supervisors.pid_of(tapwright.root / "sandboxes/left")
    left.kill()
    left.communicate()
    assert supervisor
    assert ended(supervisor)
    tapwright.delete("deleted")
    assert "the sandbox was deleted" in deleted.communicate()[1]
    assert eventually(lambda: tapwright.names() == {"first", "second"})
    assert first.poll() is None
    turn.end()
    for process in (first, second):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    one, other = (ends(tapwright, name) for name in ("first", "second"))
    # Perhaps before the guest of the first is up: on a busy machine that outlasts a turn.
    assert other["turn"] > one["turn"]
    tapwright.delete_all()
    assert networks.leased("dual") == []


@pytest.mark.unit
def test_a_spare_waits_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec(Machine(Path(), Path()))
    monkeypatch.setattr(starts, "_FILE", tmp_path / "starts")
    monkeypatch.setattr(spare, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(spare, "_IDLE_PAUSE", 0.01)
    monkeypatch.setattr(spare, "_available_mib", lambda: 1 << 20)
    idle = iter(range(1 << 20))
    monkeypatch.setattr(spare, "_idle_seconds", lambda: next(idle))
    turn = starts.wanted(1)
    assert turn
    assert not spare._has_room(spec)
    turn.end()
    assert spare._has_room(spec)


@pytest.mark.unit
def test_where_the_file_can_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits."""
    (tmp_path / "no directory").touch()
    monkeypatch.setattr(starts, "_FILE", tmp_path / "no directory/starts")
    assert starts.wanted(1) is None
    assert not starts.are_on_their_way()
