"""What is remembered of attachments, in libcni's format, and what a kill leaves."""

import base64
import concurrent.futures
import json
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from tapwright.cni import Attachment, CniError, Runtime, locks
from tests.cni.fakes import RESULT, Fakes, network
from tests.host import eventually

pytestmark = pytest.mark.unit

WEB = Attachment("web", "eth0", "/run/netns/web", (("A", "1"),), {"mac": "02:00:00:00:00:01"})


def test_format_is_that_of_libcni(fakes: Fakes) -> None:
    """libcni/api.go, `cachedInfo`: keys, place and mode."""
    fakes.plugin("p")
    net = network("p")
    fakes.runtime().add(net, WEB)
    path = fakes.cache / "results" / "net-web-eth0"
    content = json.loads(path.read_text())
    assert base64.b64decode(content.pop("config")) == net.raw
    assert content == {
        "kind": "cniCacheV1",
        "containerId": "web",
        "ifName": "eth0",
        "networkName": "net",
        "netns": "/run/netns/web",
        "cniArgs": [["A", "1"]],
        "capabilityArgs": {"mac": "02:00:00:00:00:01"},
        "result": RESULT,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name], "no temporary file is left"


def test_an_entry_of_older_libcni_is_read(fakes: Fakes) -> None:
    """It has no netns, and DEL takes what there is."""
    fakes.plugin("p")
    runtime = fakes.runtime()
    place(fakes, "net-old-eth0", networkName="net", containerId="old", ifName="eth0", result=RESULT)
    (entry,), problems = runtime.attachments()
    assert (entry.attachment, problems) == (Attachment("old", "eth0", ""), [])
    runtime.delete(network("p"), Attachment("old", "eth0", "/run/netns/old"))
    (run,) = fakes.seen("DEL")
    assert run.config["prevResult"] == RESULT
    assert runtime.attachments() == ([], [])


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", ""])
def test_a_result_alone_is_what_oldest_libcni_remembers(fakes: Fakes, version: str) -> None:
    """Before 0.8. CHECK and DEL pass it on, in the version of the network; a list shows it as a
    problem, because it does not say which attachment it belongs to."""
    fakes.plugin("p")
    runtime = fakes.runtime()
    ips = [{"address": "10.1.0.5/16", "version": "4"}]
    place(fakes, "net-web-eth0", json.dumps({"cniVersion": version, "ips": ips}).encode())
    assert len(runtime.attachments()[1]) == 1
    with pytest.raises(CniError, match="DEL of that attachment removes it"):
        runtime.add(network("p", version="0.4.0"), WEB)
    assert runtime.check(network("p", version="0.4.0"), WEB)
    runtime.delete(network("p", version="1.0.0"), WEB)
    check, delete = fakes.seen()
    assert check.config["prevResult"] == {"cniVersion": "0.4.0", "ips": ips}
    assert delete.config["prevResult"]["ips"][0]["address"] == "10.1.0.5/16"
    assert delete.config["prevResult"]["cniVersion"] == "1.0.0"
    assert runtime.attachments() == ([], [])


def test_gc_says_which_attachment_it_could_not_delete(fakes: Fakes) -> None:
    fakes.failing("p", "DEL")
    runtime = fakes.runtime()
    runtime.add(network("p"), WEB)
    with pytest.raises(ExceptionGroup) as caught:
        runtime.gc(network("p"), [])
    [failure] = caught.value.exceptions
    assert failure.__notes__ == ["in deleting interface 'eth0' of container 'web'"]


def test_a_result_alone_of_the_first_versions(fakes: Fakes) -> None:
    """It has no version; its keys tell."""
    fakes.plugin("p")
    place(fakes, "net-web-eth0", b'{"ip4": {"ip": "10.0.0.2/24"}}')
    fakes.runtime().delete(network("p", version="1.0.0"), WEB)
    [run] = fakes.seen("DEL")
    ips = [{"address": "10.0.0.2/24"}]
    assert run.config["prevResult"] == {"cniVersion": "1.0.0", "ips": ips}


def place(fakes: Fakes, name: str, raw: bytes | None = None, **content: Any) -> None:
    folder = fakes.cache / "results"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"kind": "cniCacheV1", "config": "", **content}
    (folder / name).write_bytes(json.dumps(content).encode() if raw is None else raw)


def test_torn_and_foreign_files_are_reported_and_skipped(fakes: Fakes) -> None:
    fakes.plugin("p")
    runtime = fakes.runtime()
    runtime.add(network("p"), WEB)
    place(fakes, "a-torn", b'{"kind": "cniCac')
    place(fakes, "b-empty", b"")
    place(fakes, "c-foreign", kind="other")
    place(fakes, "d-short", networkName="net")
    place(fakes, "e-config", networkName="net", containerId="x", ifName="y", config="%")
    place(fakes, "f-args", networkName="net", containerId="x", ifName="y", cniArgs=[["a"]])
    place(fakes, "g-path", networkName="g", containerId="a", ifName="/../path")
    entries, problems = runtime.attachments()
    assert [entry.attachment for entry in entries] == [WEB]
    assert len(problems) == 7
    assert all(str(fakes.cache) in problem for problem in problems)
    assert runtime.gc(network("p"), [("web", "eth0")]).problems == problems


def test_delete_of_a_torn_entry(fakes: Fakes) -> None:
    """DEL runs without a result, and takes the file with it."""
    fakes.plugin("p")
    place(fakes, "net-web-eth0", b"{")
    fakes.runtime().delete(network("p"), WEB)
    (run,) = fakes.seen("DEL")
    assert "prevResult" not in run.config
    assert not os.listdir(fakes.cache / "results")


@pytest.mark.parametrize("content", [b"", b'{"kind": "cniCac', b"\0" * 512])
def test_add_in_place_of_a_torn_entry(fakes: Fakes, content: bytes) -> None:
    """As a loss of power leaves one of libcni's, whose ADD does not read it."""
    fakes.plugin("p")
    place(fakes, "net-web-eth0", content)
    assert fakes.runtime().add(network("p"), WEB) == RESULT
    (entry,), problems = fakes.runtime().attachments()
    assert (entry.result, problems) == (RESULT, [])


def test_names_that_meet_in_one_file(fakes: Fakes) -> None:
    """net + a-b and net-a + b: the second ADD is refused, and its DEL leaves the first alone."""
    fakes.plugin("p")
    runtime = fakes.runtime()
    first, second = network("p"), network("p")._replace(name="net-a")
    runtime.add(first, WEB._replace(container_id="a-b"))
    with pytest.raises(CniError, match="file of another attachment"):
        runtime.add(second, WEB._replace(container_id="b"))
    runtime.delete(second, WEB._replace(container_id="b"))
    assert len(runtime.attachments()[0]) == 1


def test_what_cannot_be_remembered_is_not_begun(fakes: Fakes) -> None:
    fakes.plugin("p")
    runtime, net = fakes.runtime(), network("p")
    with pytest.raises(CniError, match="JSON"):
        runtime.add(net, WEB._replace(capability_args={"mac": object()}))
    with pytest.raises(CniError, match="File name too long"):
        runtime.add(net, WEB._replace(container_id="x" * 250))
    file = fakes.directory / "file"
    file.touch()
    with pytest.raises(CniError, match="Not a directory"):
        Runtime([str(fakes.bin)], str(file)).add(net, WEB)
    assert not fakes.seen()


def test_remembered_result_of_another_version(fakes: Fakes) -> None:
    """The network may have changed its version since: plugins get the result in today's."""
    fakes.plugin("p")
    runtime = fakes.runtime()
    runtime.add(network("p", version="0.4.0"), WEB)
    runtime.check(network("p", version="1.0.0"), WEB)
    runtime.delete(network("p", version="1.0.0"), WEB)
    for run in fakes.seen("CHECK", "DEL"):
        assert run.config["prevResult"]["cniVersion"] == "1.0.0"
        assert "version" not in run.config["prevResult"]["ips"][0]


def test_gc_uses_the_configuration_of_add(fakes: Fakes) -> None:
    for kind in ("old", "new"):
        fakes.plugin(kind)
    runtime = fakes.runtime()
    runtime.add(network("old", disableCheck=False), WEB)
    runtime.gc(network("new"), [])
    assert [(run.kind, run.command) for run in fakes.seen("DEL", "GC")] == [
        ("old", "DEL"),
        ("new", "GC"),
    ]


def killed_in_add(fakes: Fakes, gate: Path) -> None:
    """A runtime that is killed while its second plugin runs, and waits for the gate."""
    pid = os.fork()
    if pid == 0:
        try:
            fakes.runtime().add(network("a", "b"), WEB)
        finally:
            os._exit(1)
    assert eventually(lambda: [run.kind for run in seen_whole(fakes)] == ["a", "b"])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def seen_whole(fakes: Fakes) -> list[Any]:
    try:
        return fakes.seen()
    except (OSError, ValueError):
        return []


def test_kill_in_the_middle_of_add(fakes: Fakes) -> None:
    """The plugin outlives its runtime, and still holds the lock: DEL waits for it to end, and
    then cleans up. What was begun is remembered, so GC does as well."""
    gate = fakes.directory / "gate"
    os.mkfifo(gate)
    fakes.plugin("a")
    fakes.plugin("b", body=f"[ $CNI_COMMAND != ADD ] || timeout 60 cat {gate} >&2")
    runtime, net = fakes.runtime(), network("a", "b")
    killed_in_add(fakes, gate)
    (entry,), _ = runtime.attachments()
    assert (entry.attachment, entry.result) == (WEB, None)
    with pytest.raises(CniError, match="still running"):
        fakes.runtime(timeout=0.05).delete(net, WEB)
    with pytest.raises(CniError, match="still running"):
        fakes.runtime(timeout=0.05).gc(net, [])
    gate.write_text("\n")
    runtime.delete(net, WEB)
    assert [run.kind for run in fakes.seen("DEL")] == ["b", "a"]
    assert runtime.attachments() == ([], [])

    killed_in_add_again = fakes.directory / "runs" / "order"
    killed_in_add_again.unlink()
    killed_in_add(fakes, gate)
    gate.write_text("\n")
    runtime.gc(net, [])
    assert [run.kind for run in fakes.seen("DEL")] == ["b", "a"]
    assert runtime.attachments() == ([], [])


def test_a_kill_while_it_is_written(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of that goes with DEL, however long the name."""
    fakes.plugin("p")
    net, long = network("p"), Attachment("c" * 240, "eth0", "/run/netns/web")
    results = fakes.cache / "results"
    for attachment in (WEB, long):
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", killed)
            with pytest.raises(SystemExit):
                fakes.runtime().add(net, attachment)
        (left,) = os.listdir(results)
        assert left.startswith(".net-")
        fakes.runtime().delete(net, attachment)
        assert os.listdir(results) == []


def killed(*_: object) -> None:
    raise SystemExit


def test_a_plugin_that_nobody_watches_and_never_ends(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runtime was killed; DEL kills it when its time is over, with what it has started."""
    gate = fakes.directory / "gate"
    os.mkfifo(gate)
    fakes.plugin("a")
    fakes.plugin("b", body=f"[ $CNI_COMMAND != ADD ] || cat {gate} >&2")
    net = network("a", "b")
    killed_in_add(fakes, gate)
    with pytest.raises(CniError, match="still running"):
        fakes.runtime(timeout=0.05).delete(net, WEB)
    monkeypatch.setattr(locks, "PLUGIN_SECONDS", 0.1)
    fakes.runtime(timeout=60).delete(net, WEB)
    assert [run.kind for run in fakes.seen("DEL")] == ["b", "a"]
    assert fakes.runtime().attachments() == ([], [])


def test_a_plugin_that_is_watched_is_let_be(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, and whatever else waits for the lock."""
    gate = fakes.directory / "gate"
    os.mkfifo(gate)
    fakes.plugin("a", body=f"[ $CNI_COMMAND != ADD ] || cat {gate} >&2")
    net = network("a")
    monkeypatch.setattr(locks, "PLUGIN_SECONDS", 0.1)
    with concurrent.futures.ThreadPoolExecutor() as beside:
        adding = beside.submit(fakes.runtime().add, net, WEB)
        assert eventually(lambda: len(seen_whole(fakes)) == 1)
        with pytest.raises(CniError, match="still running"):
            fakes.runtime(timeout=1).delete(net, WEB)
        gate.write_text("\n")
        assert adding.result(60)
    fakes.runtime().delete(net, WEB)


def test_writers_never_show_half_a_file(fakes: Fakes) -> None:
    """While one process adds and deletes, another one that lists never meets a broken file."""
    fakes.plugin("p")
    pid = os.fork()
    if pid == 0:
        try:
            runtime, net = fakes.runtime(), network("p")
            for _ in range(20):
                runtime.add(net, WEB)
                runtime.delete(net, WEB)
            os._exit(0)
        finally:
            os._exit(1)
    ended, looks = 0, 0
    deadline = time.monotonic() + 60
    while not ended and time.monotonic() < deadline:
        assert fakes.runtime().attachments()[1] == []
        looks += 1
        ended, status = os.waitpid(pid, os.WNOHANG)
    assert (ended, status) == (pid, 0)
    assert looks > 20
