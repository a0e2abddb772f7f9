"""A disk that is full, can't be written to, or fails: a sentence says so, and `delete` works."""

import asyncio
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.cni import Attachment
from tapwright.errors import NetworkError, SandboxStateError
from tapwright.hypervisor import accelerator
from tapwright.hypervisor.machine import Machine
from tapwright.linux import claims, files, netns
from tapwright.sandbox import lifecycle
from tapwright.state import ownership, record, registry
from tapwright.state.record import RUNNING, Journal, NetworkRequest, Record, Spec
from tapwright.supervisor.attachments import Attaching
from tests import disks
from tests.cni.fakes import Fakes, network
from tests.disks import Disk
from tests.sandboxes import COMMAND, Networks, Tapwright

CONFIG = '{"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "p"}]}'


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with disks.small(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def fakes(tmp_path: Path, disk: Disk) -> Fakes:
    """Plugins, whose cache is on the disk."""
    fakes = Fakes(tmp_path)
    fakes.cache = disk.path / "cache"
    fakes.plugin("p")
    return fakes


def claimed(disk: Disk, fakes: Fakes | None = None, path: str = "/run/netns/x") -> Journal:
    spec = Spec(Machine(Path(), Path()))
    if fakes:
        spec.networks = [NetworkRequest("net", "eth0", CONFIG, "x")]
        spec.plugin_path, spec.cni_cache = [str(fakes.bin)], str(fakes.cache)
    new = Record("web", spec, time.time(), time.monotonic(), path)
    directory, alive = ownership.claim(registry.directory_of(disk.path), new)
    os.close(alive)
    return Journal(directory, new)


@pytest.fixture
def dead(disk: Disk, fakes: Fakes) -> Iterator[Journal]:
    """A sandbox with a namespace of its own and a network, whose supervisor is gone."""
    path = netns.path_of(f"twtest-full-{os.getpid()}")
    journal = claimed(disk, fakes, path)
    journal.hold("netns", path=path)
    netns.create(path)
    Attaching(journal).results()
    journal.record.status = RUNNING
    journal.save()
    yield journal
    netns.remove(path)


@pytest.mark.parametrize("state", ["full", "out_of_inodes"])
@pytest.mark.parametrize("force", [False, True])
def test_delete(disk: Disk, fakes: Fakes, dead: Journal, state: str, force: bool) -> None:
    with getattr(disk, state)():
        assert lifecycle.delete(disk.path, "web", force) == []
        assert not dead.directory.exists()
    assert not netns.exists(dead.record.netns)
    assert len(fakes.seen("DEL")) == 1
    assert not list((fakes.cache / "results").iterdir())
    assert os.listdir(dead.directory.parent) == []


def test_delete_that_makes_no_room(disk: Disk) -> None:
    journal = claimed(disk)
    for number in range(3):
        journal.hold("netns_used", path=f"/run/netns/{number}")
    with disk.full():
        assert lifecycle.delete(disk.path, "web") == []
        assert os.listdir(journal.directory.parent) == []


def test_delete_as_a_command(disk: Disk, dead: Journal) -> None:
    with disk.full():
        done = subprocess.run(
            [COMMAND, "--root", str(disk.path), "sandbox", "delete", "web"],
            check=False,
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "web\n", "")
    assert not netns.exists(dead.record.netns)


def test_delete_where_nothing_can_be_removed(disk: Disk, dead: Journal) -> None:
    """What is on the host goes; the rest does when that can be."""
    with disk.read_only():
        with pytest.raises((NetworkError, SandboxStateError), match="Read-only file system"):
            lifecycle.delete(disk.path, "web", force=True)
        assert not netns.exists(dead.record.netns)
        assert registry.find(disk.path, "web").status == "dead"
    assert lifecycle.delete(disk.path, "web") == []


def test_one_that_runs(disk: Disk, networks: Networks) -> None:
    """Its supervisor ends, with its NICs, when it can write nothing down."""
    tapwright = Tapwright(disk.path, networks)
    tapwright.config = tapwright.configuration()
    tapwright.json("sandbox", "run", "web", "--network", "small")
    with disk.full():
        tapwright.delete("web")
        assert tapwright.names() == set()
    assert networks.leased("small") == []


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_delete_where_every_write_fails(
    disk: Disk, dead: Journal, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: object, text: str, **how: bool) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "replace", failing)
    assert lifecycle.delete(disk.path, "web") == []
    assert not netns.exists(dead.record.netns)


def test_what_is_not_written_down_is_not_made(disk: Disk, fakes: Fakes) -> None:
    journal = claimed(disk, fakes)
    with disk.full():
        with pytest.raises(SandboxStateError, match="No space left on device; make room"):
            Attaching(journal).results()
        assert journal.record.held == []
    assert fakes.seen("ADD") == []
    assert record.load(journal.directory).held == []
    assert sorted(os.listdir(journal.directory)) == ["alive", "record.json"]


@pytest.mark.parametrize("state", ["full", "out_of_inodes"])
def test_a_sandbox_is_refused(disk: Disk, state: str) -> None:
    with getattr(disk, state)():
        with pytest.raises(SandboxStateError, match=r"No space left on device; (make|choose)"):
            claimed(disk)
        assert not list(disk.path.glob("sandboxes/[!.]*"))


def test_a_network_is_refused(disk: Disk, fakes: Fakes) -> None:
    """ADD, for which there must be a trace in the cache; DEL goes all the same."""
    net, attachment = network("p"), Attachment("c", "eth0", "/proc/self/ns/net")
    (fakes.cache / "results").mkdir(parents=True)
    (fakes.cache / "locks").mkdir()
    with disk.out_of_inodes():
        with pytest.raises(Exception, match="No space left on device"):
            fakes.runtime().add(net, attachment)
        fakes.runtime().delete(net, attachment)
    assert fakes.seen("ADD") == []
    assert len(fakes.seen("DEL")) == 1


def test_no_room_for_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "record.json").touch()
    monkeypatch.setattr(os, "rename", full)
    claims.discard(tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_a_verdict_that_can_not_be_kept(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether KVM boots a guest is found out each time then."""

    async def probe(machine: Machine, progress: object) -> tuple[str, str]:
        return "tcg", "it is a test"

    wanted = Machine(tmp_path / "kernel", tmp_path / "initrd", "auto")
    monkeypatch.setattr(accelerator, "_probe", probe)
    monkeypatch.setattr(accelerator, "known", lambda machine: None)
    for name in ("there", "missing/directory"):
        (disk.path / "there").mkdir(exist_ok=True)
        monkeypatch.setattr(accelerator, "_VERDICT", disk.path / name / "accelerator.json")
        for state in (disk.full, disk.out_of_inodes):
            with state():
                assert asyncio.run(accelerator.choose(wanted, print)) == ("tcg", "it is a test")


def test_a_record_that_can_not_be_read(disk: Disk, dead: Journal) -> None:
    (dead.directory / record.FILE).unlink()
    (dead.directory / record.FILE).mkdir()
    with pytest.raises(SandboxStateError, match="can't be read: Is a directory"):
        record.load(dead.directory)
    (dead.directory / record.FILE).rmdir()
