"""What only one sandbox may have, claimed by many at once."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import NetworkError
from tapwright.hypervisor.machine import Machine
from tapwright.oci import life
from tapwright.oci.log import Log
from tapwright.sandbox import lifecycle
from tapwright.state import ownership, record, registry
from tapwright.state.record import Journal, Record, Spec

pytestmark = pytest.mark.unit


def journal(root: Path, name: str) -> Journal:
    new = Record(name, Spec(Machine(Path(), Path())), time.time(), time.monotonic(), "")
    directory, alive = ownership.claim(registry.directory_of(root), new)
    os.close(alive)
    return Journal(directory, new)


def device(path: Path) -> dict[str, Any]:
    return {"device": "vhost0", "socket": str(path), "nic": "eth0"}


def aged(*journals: Journal) -> None:
    """As if they had been written a while ago."""
    for each in journals:
        os.utime(each.directory / record.FILE, (0, 0))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sandboxes whose records were read, one after the other."""
    found: list[str] = []
    original = record.held

    def held(directory: Path) -> list[dict[str, Any]]:
        found.append(directory.name)
        return original(directory)

    monkeypatch.setattr("tapwright.state.ownership.held", held)
    return found


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    def claims(each: Journal) -> str:
        try:
            ownership.claim_device(each, "vhost_user", device(tmp_path / "socket"))
        except NetworkError as error:
            return str(error)
        return ""

    journals = [journal(tmp_path, f"s{number}") for number in range(16)]
    with ThreadPoolExecutor(len(journals)) as threads:
        refusals = list(filter(None, threads.map(claims, journals)))
    assert len(refusals) == len(journals) - 1
    assert all("is in use by sandbox" in refusal for refusal in refusals)


def test_of_its_own_namespace_no_other_record_is_read(
    tmp_path: Path, reads: list[str], scratch_netns: str
) -> None:
    """It was made for this sandbox; what this one has itself, it can't take again."""
    own, *_ = (journal(tmp_path, name) for name in ("own", "other"))
    eth0: dict[str, Any] = {"device": "eth0", "netns": scratch_netns, "index": 2, "nic": "eth0"}
    ownership.claim_device(own, "tcfilter", eth0)
    assert sorted(set(reads)) == ["other", "own"]
    reads.clear()
    own.record.netns = scratch_netns
    ownership.claim_device(own, "tcfilter", eth0 | {"index": 3})
    with pytest.raises(NetworkError, match="in use by sandbox 'own' as eth0"):
        ownership.claim_device(own, "tcfilter", eth0)
    assert reads == []


def test_records_are_read_before_others_have_to_wait(tmp_path: Path, reads: list[str]) -> None:
    others = [journal(tmp_path, f"s{number}") for number in range(5)]
    own = journal(tmp_path, "own")
    aged(own, *others)
    with ownership._claiming(own.directory.parent) as entries:
        assert len(reads) == 6
        assert list(entries) == []
    assert len(reads) == 6


@pytest.mark.parametrize("is_old", [True, False])
def test_what_has_changed_meanwhile_is_seen(tmp_path: Path, reads: list[str], is_old: bool) -> None:
    """Also a file that was written so shortly before that its time is the same."""
    first, second = journal(tmp_path, "first"), journal(tmp_path, "second")
    if is_old:
        aged(first, second)
    with ownership._claiming(first.directory.parent) as entries:
        # While it waited for its turn.
        entry = second.hold("netns_used", path="/x")
        assert ("second", entry) in entries
    assert reads.count("first") == (1 if is_old else 2)
    assert reads.count("second") == 2


def test_one_that_has_gone_meanwhile(tmp_path: Path) -> None:
    first, second = journal(tmp_path, "first"), journal(tmp_path, "second")
    second.hold("netns_used", path="/x")
    aged(first, second)
    with ownership._claiming(first.directory.parent) as entries:
        ownership.discard(second.directory)
        assert list(entries) == []


def test_what_a_killed_deletion_left_goes_with_the_next(tmp_path: Path) -> None:
    """Also where there is nothing more to delete; that of a process that lives is let be."""
    dead, alive = 1 << 22, os.getpid()
    for root, delete in (
        (tmp_path / "a", lambda root: lifecycle.delete(root, "gone")),
        (tmp_path / "b", lambda root: life.delete(str(root), "gone", True, Log("", "text"))),
    ):
        sandboxes = registry.directory_of(root)
        for pid in (dead, alive):
            grave = sandboxes / f".deleted-gone-{pid}"
            grave.mkdir(parents=True)
            (grave / "alive").touch()
        delete(root)
        assert os.listdir(sandboxes) == [f".deleted-gone-{alive}"]


@pytest.mark.parametrize("path", [5, None, ["x"], "\0"])
def test_a_damaged_journal_keeps_no_other_from_claiming(tmp_path: Path, path: Any) -> None:
    damaged, other = journal(tmp_path, "damaged"), journal(tmp_path, "other")
    damaged.hold("netns_used", path=path)
    damaged.hold("netns_used")
    ownership.claim_netns(other, "/proc/self/ns/net")
    assert len(other.record.held) == 1
