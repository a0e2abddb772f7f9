"""The deletion of a sandbox by its own supervisor."""

import fcntl
import os

import pytest

from tapwright.sandbox import deletion
from tapwright.state import supervisors
from tests.sandboxes import Networks, Tapwright, ended, pids_of

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_supervisor_deletes_without_its_caller(tapwright: Tapwright, networks: Networks) -> None:
    """All goes, although the command that has asked was killed."""
    sandbox = tapwright.json("sandbox", "run", "alone", "--network", "dual")
    supervisor, qemu = pids_of(sandbox)
    deletion.ask(tapwright.root / "sandboxes/alone").close()
    assert ended(supervisor)
    assert ended(qemu)
    assert tapwright.names() == set()
    assert networks.leased("dual") == []


def test_one_that_another_deletes(tapwright: Tapwright, networks: Networks) -> None:
    """It is not asked, and if it is, it ends, and leaves all to the process with the lock."""
    sandbox = tapwright.json("sandbox", "run", "locked", "--network", "dual")
    supervisor, qemu = pids_of(sandbox)
    directory = tapwright.root / "sandboxes/locked"
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not deletion.is_by_supervisor(directory)
        assert supervisors.is_alive(directory)
        deletion.ask(directory).close()
        assert ended(supervisor)
        assert ended(qemu)
        assert networks.leased("dual") != []
    finally:
        os.close(lock)
    tapwright.delete("locked")
    assert networks.leased("dual") == []


def test_control_group_with_the_supervisor_in_it(
    tapwright: Tapwright, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor leaves it, and need not be evicted, for which the command would not wait."""
    tapwright.json("sandbox", "run", "grouped")
    directory = tapwright.root / "sandboxes/grouped"
    monkeypatch.setattr(deletion, "_ANSWER_SECONDS", 60.0)  # on a busy machine it takes longer
    assert deletion.is_by_supervisor(directory)
