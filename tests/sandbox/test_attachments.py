"""CNI networks of a sandbox, attached and taken back, without a guest."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tapwright import cni
from tapwright.config import Config
from tapwright.config.sections import Cni
from tapwright.errors import SandboxStateError
from tapwright.hypervisor.machine import Machine
from tapwright.sandbox import planning
from tapwright.state import ownership, teardown
from tapwright.state.record import Journal, NetworkRequest, Record, Spec, load
from tapwright.supervisor.attachments import Attaching
from tapwright.supervisor.life import Life
from tests.cni.fakes import Fakes
from tests.host import eventually


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)


def journal_of(fakes: Fakes, requests: list[NetworkRequest], path: str) -> Journal:
    spec = Spec(
        Machine(Path(), Path()),
        networks=requests,
        plugin_path=[str(fakes.bin)],
        cni_cache=str(fakes.cache),
    )
    record = Record("web", spec, time.time(), time.monotonic(), path)
    directory = fakes.directory / "web"
    directory.mkdir()
    return Journal(directory, record)


def attached(fakes: Fakes, path: str) -> Journal:
    fakes.plugin("p")
    config = '{"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "p"}]}'
    journal = journal_of(fakes, [NetworkRequest("net", "eth0", config, "x")], path)
    assert len(Attaching(journal).results()) == 1
    # As another process finds it.
    return Journal(journal.directory, load(journal.directory))


def test_no_plugin_runs_before_the_first_step_is_done(fakes: Fakes, scratch_netns: str) -> None:
    def fail() -> None:
        raise SandboxStateError("the disk is full")

    fakes.plugin("p")
    config = '{"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "p"}]}'
    requests = [NetworkRequest("net", "eth0", config, "x")]
    journal = journal_of(fakes, requests, scratch_netns)
    with pytest.raises(SandboxStateError, match="disk is full"):
        Attaching(journal, fail).results()
    assert fakes.seen("ADD") == []
    assert journal.record.held == []


def replaced(path: str) -> None:
    name = os.path.basename(path)
    subprocess.run(["ip", "netns", "delete", name], check=True)
    subprocess.run(["ip", "netns", "add", name], check=True)


def told_at_delete(fakes: Fakes) -> list[str]:
    return [run.environment["CNI_NETNS"] for run in fakes.seen("DEL")]


def ended_by_request(journal: Journal, may_end: Callable[[], bool]) -> Life:
    """The end of a sandbox's life when its supervisor deletes it; its QEMU takes until then."""

    async def stop() -> None:
        assert await asyncio.to_thread(eventually, may_end)

    nothing: Any = SimpleNamespace()
    life = Life(journal, nothing, nothing)
    life.takes_down = True
    guest: Any = SimpleNamespace(stop=stop)
    asyncio.run(life._stop(guest))
    return life


def test_plugins_do_not_wait_for_the_end_of_qemu(fakes: Fakes, scratch_netns: str) -> None:
    journal = attached(fakes, scratch_netns)
    life = ended_by_request(journal, lambda: told_at_delete(fakes) == [scratch_netns])
    assert life.left == []
    left = load(journal.directory)
    assert left.held == []
    assert teardown.take_back(Journal(journal.directory, left)) == []
    assert len(told_at_delete(fakes)) == 1


def test_what_a_plugin_refuses_meanwhile_stays(fakes: Fakes, scratch_netns: str) -> None:
    """The process that deletes the sandbox reports it."""
    journal = attached(fakes, scratch_netns)
    fakes.failing("p", "DEL")
    life = ended_by_request(journal, lambda: told_at_delete(fakes) == [scratch_netns])
    assert "p fails" in life.left[0]
    assert load(journal.directory).held == journal.record.held


def test_only_networks_are_taken_back_meanwhile(fakes: Fakes, scratch_netns: str) -> None:
    """What was entered before something else waits for that to be undone."""
    journal = attached(fakes, scratch_netns)
    journal.hold("host_tap", device="tap-of-qemu", mark="x")
    assert teardown.take_back_networks(journal) == []
    assert told_at_delete(fakes) == []
    assert len(journal.record.held) == 2


def test_del_gets_its_namespace(fakes: Fakes, scratch_netns: str) -> None:
    journal = attached(fakes, scratch_netns)
    assert teardown.take_back(journal) == []
    assert told_at_delete(fakes) == [scratch_netns]
    assert journal.record.held == []


@pytest.mark.parametrize("is_remembered", [True, False])
def test_del_does_not_get_another_namespace(
    fakes: Fakes, scratch_netns: str, is_remembered: bool
) -> None:
    """Also when the cache is lost: the journal knows as well."""
    journal = attached(fakes, scratch_netns)
    if not is_remembered:
        (fakes.cache / "results" / "net-web-eth0").unlink()
    replaced(scratch_netns)
    assert teardown.take_back(journal) == []
    assert told_at_delete(fakes) == [""]


def test_a_journal_of_a_version_before(fakes: Fakes, scratch_netns: str) -> None:
    """It knows the path alone; nor does its cache know more."""
    journal = attached(fakes, scratch_netns)
    (entry,) = journal.record.held
    del entry["namespace"]
    file = fakes.cache / "results" / "net-web-eth0"
    content = json.loads(file.read_text())
    del content["tapwright"]
    file.write_text(json.dumps(content))
    assert teardown.take_back(journal) == []
    assert told_at_delete(fakes) == [scratch_netns]


def test_a_version_that_is_unknown_by_now(fakes: Fakes, scratch_netns: str) -> None:
    journal = attached(fakes, scratch_netns)
    (entry,) = journal.record.held
    entry["config"] = entry["config"].replace("1.0.0", "1.2.0")
    assert teardown.take_back(journal) == []
    (run,) = fakes.seen("DEL")
    assert run.config["cniVersion"] == "1.2.0"


def test_an_endpoint_in_another_namespace_is_left_alone(fakes: Fakes, scratch_netns: str) -> None:
    """Though the number of its inode and the index of its interface are used again."""
    journal = journal_of(fakes, [], scratch_netns)
    device: dict[str, Any] = {"device": "eth0", "netns": scratch_netns, "index": 2, "nic": "eth0"}
    entry = ownership.claim_device(journal, "tcfilter", device)
    assert ownership.is_still_there(entry)
    entry["namespace"]["cookie"] += 1
    assert not ownership.is_still_there(entry)
    del entry["namespace"]
    assert ownership.is_still_there(entry), "of a version before"


def test_what_is_remembered_of_plugins_from_a_folder(fakes: Fakes, scratch_netns: str) -> None:
    """What libcni would, the file; but all are taken down, though the folder has gone."""
    for kind in ("inlined", "folder"):
        fakes.plugin(kind)
    nets = fakes.directory / "net.d"
    (nets / "net").mkdir(parents=True)
    raw = b'{ "name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "inlined"}] }'
    (nets / "net.conflist").write_bytes(raw)
    (nets / "net" / "a.conf").write_text('{"type": "folder"}')
    config = Config(cni=Cni(conf_dir=str(nets), bin_dirs=(str(fakes.bin),)))
    requests = planning._networks(config, planning.Wish(networks=[("net", "")]), ["eth0"])
    (nets / "net" / "a.conf").unlink()
    journal = journal_of(fakes, requests, scratch_netns)
    Attaching(journal).results()
    (entry,), _ = cni.Runtime([str(fakes.bin)], str(fakes.cache)).attachments()
    assert entry.config == raw
    assert teardown.take_back(journal) == []
    assert [run.kind for run in fakes.seen("DEL")] == ["folder", "inlined"]
