"""Part 8: the power fails at any write. After the next boot `delete` gives back all that lasts, and
touches nothing that others have by the same names."""

import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tapwright.hypervisor.machine import Machine
from tapwright.linux import boot, netns
from tapwright.state import ownership, record, registry
from tapwright.state.record import Journal, Record, Spec
from tests.disks import Powered
from tests.host import Host, eventually
from tests.moments import Decide, Moment
from tests.oci.runtime import Runtime
from tests.sandboxes import Networks, Tapwright
from tests.torture import scenes
from tests.torture.bound import Bound
from tests.torture.scenes import NAME, Fault
from tests.torture.test_kills import processes

NETWORK = "witnessed"
NAMESPACE = f"/run/netns/tapwright-{NAME}"
# Notes what it does on a disk that keeps its power.
WITNESS = """#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
*) echo "$CNI_COMMAND $CNI_CONTAINERID" >>$0.log; echo '{"cniVersion": "1.0.0"}' ;;
esac
"""


class Witness:
    """A network of a plugin that remembers which attachments there are."""

    def __init__(self, directory: Path, networks: Networks) -> None:
        self.directory = directory
        plugin = directory / "witness"
        plugin.write_text(WITNESS)
        plugin.chmod(0o755)
        self._log = directory / "witness.log"
        networks.write(NETWORK, [{"type": "witness"}])

    def attached(self) -> set[str]:
        there: set[str] = set()
        for line in self._log.read_text().splitlines() if self._log.exists() else []:
            command, name = line.split()
            (there.add if command == "ADD" else there.discard)(name)
        return there


@pytest.fixture
def witness(networks: Networks, tmp_path: Path) -> Iterator[Witness]:
    yield Witness(tmp_path, networks)
    (networks.directory / f"{NETWORK}.conflist").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Powered]:
    try:
        disk = Powered(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no filesystem in a file can be had here: {error}")
    yield disk
    disk.close()


@pytest.fixture
def on_disk(tapwright: Tapwright, networks: Networks, disk: Powered, witness: Witness) -> Tapwright:
    """The command, with all that it keeps on that disk; but for templates, which take long."""
    found = Tapwright(disk.path, networks)
    found._directory = witness.directory  # what is read alone need not be there
    found.config = found.configuration(template=tapwright.templates, plugins=witness.directory)
    os.sync()
    return found


def test_what_is_entered_outlasts_it(disk: Powered) -> None:
    """Just now, and with all that had happened to the directory before."""
    sandboxes = registry.directory_of(disk.path)
    sandboxes.mkdir()
    os.sync()
    new = Record("web", Spec(Machine(Path(), Path())), time.time(), time.monotonic(), "")
    directory, alive = ownership.claim(sandboxes, new)
    os.close(alive)
    for number in range(3):
        entry = Journal(directory, new).hold("netns_used", path=f"/{number}")
        disk.lose()
        disk.restart()
        new = record.load(directory)
        assert new.held[-1] == entry


def test_a_claim_outlasts_it(disk: Powered) -> None:
    os.sync()
    new = Record("web", Spec(Machine(Path(), Path())), time.time(), time.monotonic(), "")
    directory, alive = ownership.claim(registry.directory_of(disk.path), new)
    os.close(alive)
    disk.lose()
    disk.restart()
    assert record.load(directory).id == "web"


def test_power_fails(
    bound: Bound,
    on_disk: Tapwright,
    runtime: Runtime,
    disk: Powered,
    witness: Witness,
    host: Host,
) -> None:
    verbs = [
        verb
        for verb in scenes.chosen(runtime, bound, NETWORK)
        if verb.name in ("sandbox run", "sandbox delete", "create", "delete", "start")
    ]
    came = 0
    for number in bound.goes_on(short=2):
        verb = verbs[number % len(verbs)]
        before = host.snapshot()
        fault = Fault()
        with scenes.staged(on_disk, disk.path, fault) as stage:
            verb.prepare(stage, runtime)
            at = bound.random.randrange(max(1, verb.moments))
            fault.begin(at, losing(disk, on_disk))
            watched = verb.start(stage)
            status, said = watched.wait()
            verb.learn(fault)
            where = f"{verb.name}, no power at moment {at}: {fault.came}, status {status}: {said}"
            came += fault.came is not None
            stage.close()
            end(disk)
            fault.over()
            disk.restart()
            with another_boot():
                assert scenes.delete_all(on_disk) == [], where
                check_stranger(where)
            assert witness.attached() == set(), where
            assert on_disk.names() == set(), where
        print(where)
        host.assert_same(before)
    bound.tell(
        8,
        "loss of power (ext4) at a write of run, delete, create, start; then another boot",
        "{lost} lost it: every ADD had its DEL, a stranger's namespace was left alone",
        counts={"lost": came},
    )


def losing(disk: Powered, tapwright: Tapwright) -> Decide:
    def decide(moment: Moment) -> int:
        there = processes(tapwright)
        disk.lose()
        for pid in {*there.values(), moment.pid}:
            scenes.kill(pid)
        return 0

    return decide


def end(disk: Powered) -> None:
    """All that lived, with the machine: whoever has something of the disk open."""

    def users() -> list[int]:
        found = [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if uses(pid)]
        return [pid for pid in found if pid != os.getpid()]

    def uses(pid: int) -> bool:
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(entry.path).startswith(f"{disk.path}/"):
                        return True
        return False

    def are_gone() -> bool:
        for pid in (there := users()):
            scenes.kill(pid)
        return not there

    assert eventually(are_gone)


@contextmanager
def another_boot() -> Iterator[None]:
    """Nothing of the kernel's is there any more, and a stranger has a namespace of the old name."""
    netns.remove(NAMESPACE)
    name = Path(NAMESPACE).name
    for words in (f"netns add {name}", f"-n {name} link add eth0 type veth peer name eth1"):
        subprocess.run(["ip", *words.split()], check=True)
    with tempfile.NamedTemporaryFile("w") as another:
        print(uuid.uuid4(), file=another, flush=True)
        subprocess.run(["mount", "--bind", another.name, boot._ID], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", boot._ID], check=True)
            netns.remove(NAMESPACE)


def check_stranger(where: str) -> None:
    shown = subprocess.run(
        ["ip", "-n", Path(NAMESPACE).name, "link", "show", "eth0"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, f"{where}: {shown.stderr}"
