"""Sections 2 and 3: how a runtime executes plugins for a network."""

import json
import os
from typing import Any

import pytest

from tapwright.cni import Attachment, CniError, PluginError
from tests.cni.fakes import RESULT, Fakes, network

pytestmark = pytest.mark.unit

WEB = Attachment("web", "eth0", "/run/netns/web", (("FOO", "BAR"), ("ABC", "123")))
COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS")


def run_all(fakes: Fakes, net: Any, attachment: Attachment = WEB) -> None:
    """Every operation once."""
    runtime = fakes.runtime()
    runtime.status(net)
    runtime.add(net, attachment)
    runtime.check(net, attachment)
    runtime.gc(net, [("web", "eth0")])
    runtime.delete(net, attachment)


def test_parameters(fakes: Fakes) -> None:
    """Parameters: every CNI_ variable, and empty for the operations that have no use for it."""
    fakes.plugin("p")
    run_all(fakes, network("p"))
    runs = {run.command: run.environment for run in fakes.seen()}
    for command in ("ADD", "CHECK", "DEL"):
        told = {key: value for key, value in runs[command].items() if key.startswith("CNI_")}
        assert told == {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "web",
            "CNI_NETNS": "/run/netns/web",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "FOO=BAR;ABC=123",
            "CNI_PATH": str(fakes.bin),
        }
    for command in ("GC", "STATUS"):
        told = {key: value for key, value in runs[command].items() if key.startswith("CNI_")}
        empty = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"), "")
        assert told == {"CNI_COMMAND": command, "CNI_PATH": str(fakes.bin), **empty}


def test_inherited_parameters_do_not_leak(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that is run by a plugin has parameters in its environment that are not its own."""
    monkeypatch.setenv("CNI_ARGS", "STRAY=1")
    monkeypatch.setenv("CNI_CONTAINERID", "stray")
    fakes.plugin("p")
    net = network("p")
    fakes.runtime().add(net, WEB._replace(args=()))
    fakes.runtime().gc(net, [("web", "eth0")])
    added, collected = fakes.seen()
    assert added.environment["CNI_ARGS"] == ""
    assert collected.environment["CNI_CONTAINERID"] == ""


@pytest.mark.parametrize("container_id", ["", "-a", "a/b", "a b", "../x", "ü"])
def test_container_id_rules(fakes: Fakes, container_id: str) -> None:
    """Parameters: a bad CNI_CONTAINERID is refused, and nothing is run or written."""
    fakes.plugin("p")
    with pytest.raises(CniError, match="container id"):
        fakes.runtime().add(network("p"), WEB._replace(container_id=container_id))
    assert not fakes.seen()
    assert not fakes.cache.exists()


@pytest.mark.parametrize("ifname", ["", ".", "..", "a/b", "a:b", "a b", "sixteen-letters-"])
def test_interface_name_rules(fakes: Fakes, ifname: str) -> None:
    fakes.plugin("p")
    for operation in ("add", "check", "delete"):
        with pytest.raises(CniError, match="interface name"):
            getattr(fakes.runtime(), operation)(network("p"), WEB._replace(ifname=ifname))
    assert not fakes.seen()


def test_plugins_run_in_the_domain_of_the_runtime(fakes: Fakes) -> None:
    """Overview of section 2: plugins are executed in the runtime's networking domain."""
    fakes.plugin("p", body=f"readlink /proc/self/ns/net >{fakes.directory}/ns")
    fakes.runtime().add(network("p"), WEB)
    assert (fakes.directory / "ns").read_text().strip() == os.readlink("/proc/self/ns/net")


def test_add_runs_the_chain_in_order(fakes: Fakes) -> None:
    """Adding an attachment: the first gets no `prevResult`, each other one its predecessor's."""
    second = {**RESULT, "ips": [{"address": "10.1.0.6/16"}]}
    fakes.plugin("a")
    fakes.plugin("b", add=second)
    fakes.plugin("c", add=second)
    result = fakes.runtime().add(network("a", "b", "c"), WEB)
    runs = fakes.seen()
    assert [run.kind for run in runs] == ["a", "b", "c"]
    assert [run.config.get("prevResult") for run in runs] == [None, RESULT, second]
    assert result == second


def test_missing_executable_is_an_error(fakes: Fakes) -> None:
    """Adding an attachment, step 1; nothing is run then, not even what is there."""
    fakes.plugin("a")
    with pytest.raises(PluginError) as caught:
        fakes.runtime().add(network("a", "nowhere"), WEB)
    assert caught.value.plugin == "nowhere"
    assert str(fakes.bin) in str(caught.value)
    assert not fakes.seen()


@pytest.mark.parametrize("operation", ["delete", "check", "gc", "status"])
def test_missing_executable_is_an_error_later_too(fakes: Fakes, operation: str) -> None:
    """Step 1 of the other operations."""
    fakes.plugin("a")
    runtime, net = fakes.runtime(), network("a")
    runtime.add(net, WEB)
    (fakes.bin / "a").unlink()
    last: Any = {"gc": [("web", "eth0")], "status": None}.get(operation, WEB)
    with pytest.raises((PluginError, ExceptionGroup)):
        getattr(runtime, operation)(*((net,) if last is None else (net, last)))


def test_add_halts_at_an_error_and_is_undone(fakes: Fakes) -> None:
    """Adding an attachment, step 4, and "Lifecycle": a delete follows even a failed add."""
    fakes.plugin("a")
    fakes.failing("b", "ADD", code=11, details="later")
    fakes.plugin("c")
    runtime, net = fakes.runtime(), network("a", "b", "c")
    with pytest.raises(PluginError) as caught:
        runtime.add(net, WEB)
    assert (caught.value.code, caught.value.message, caught.value.details) == (
        11,
        "b fails",
        "later",
    )
    commands = [(run.kind, run.command) for run in fakes.seen()]
    assert commands == [("a", "ADD"), ("b", "ADD"), ("c", "DEL"), ("b", "DEL"), ("a", "DEL")]
    assert runtime.attachments() == ([], [])


def test_what_a_failed_add_leaves_is_reported_and_remembered(fakes: Fakes) -> None:
    fakes.plugin("a", body="[ $CNI_COMMAND = STATUS ] || { echo broken >&2; exit 3; }")
    runtime, net = fakes.runtime(), network("a")
    with pytest.raises(PluginError, match="broken") as caught:
        runtime.add(net, WEB)
    assert any("failed to DEL" in note for note in caught.value.__notes__)
    (entry,), _ = runtime.attachments()
    assert entry.result is None


def test_result_is_stored(fakes: Fakes) -> None:
    """Adding an attachment: the final result is kept, for CHECK and DEL of another process."""
    fakes.plugin("a")
    fakes.runtime().add(network("a"), WEB)
    (entry,), _ = fakes.runtime().attachments()
    assert entry.result == RESULT
    assert entry.attachment == WEB


def test_add_twice_is_refused(fakes: Fakes) -> None:
    """ADD: not twice for one (container, interface) without DEL; other interfaces are fine."""
    fakes.plugin("a")
    runtime, net = fakes.runtime(), network("a")
    runtime.add(net, WEB)
    with pytest.raises(CniError, match="run DEL before"):
        runtime.add(net, WEB)
    runtime.add(net, WEB._replace(ifname="eth1"))
    assert len(fakes.seen()) == 2, "the refused ADD must not touch what is there"
    runtime.delete(net, WEB)
    runtime.add(net, WEB)


def test_delete_runs_in_reverse_with_the_final_result(fakes: Fakes) -> None:
    """Deleting an attachment."""
    final = {**RESULT, "ips": []}
    fakes.plugin("a")
    fakes.plugin("b", add=final)
    runtime, net = fakes.runtime(), network("a", "b")
    runtime.add(net, WEB)
    runtime.delete(net, WEB)
    runs = fakes.seen("DEL")
    assert [run.kind for run in runs] == ["b", "a"]
    assert [run.config["prevResult"] for run in runs] == [final, final]


def test_delete_goes_on_past_a_failure(fakes: Fakes) -> None:
    """Beyond "Deleting an attachment", step 4: the error is returned, but all plugins have run."""
    for kind in ("a", "b"):
        fakes.failing(kind, "DEL")
    fakes.plugin("c")
    runtime, net = fakes.runtime(), network("a", "b", "c")
    runtime.add(net, WEB)
    with pytest.raises(ExceptionGroup) as caught:
        runtime.delete(net, WEB)
    assert [error.message for error in caught.value.exceptions] == ["b fails", "a fails"]
    assert [run.kind for run in fakes.seen("DEL")] == ["c", "b", "a"]
    assert len(runtime.attachments()[0]) == 1, "it must be possible to try again"


def test_delete_may_follow_a_delete(fakes: Fakes) -> None:
    """Lifecycle: additional deletes; without a result they still run."""
    fakes.plugin("a")
    runtime, net = fakes.runtime(), network("a")
    runtime.add(net, WEB)
    for _ in range(2):
        runtime.delete(net, WEB)
    first, second = fakes.seen("DEL")
    assert "prevResult" in first.config
    assert "prevResult" not in second.config


def test_delete_and_check_use_the_parameters_of_add(fakes: Fakes) -> None:
    """CHECK and "Checking an attachment": the same parameters as at ADD, whoever asks."""
    fakes.plugin("a")
    runtime = fakes.runtime()
    net = network({"type": "a", "capabilities": {"mac": True}})
    runtime.add(net, WEB._replace(capability_args={"mac": "02:00:00:00:00:07"}))
    bare = WEB._replace(args=())
    runtime.check(net, bare)
    runtime.delete(net, bare)
    for run in fakes.seen():
        assert run.environment["CNI_ARGS"] == "FOO=BAR;ABC=123"
        assert run.config["runtimeConfig"] == {"mac": "02:00:00:00:00:07"}


def test_check_gets_the_result_and_halts(fakes: Fakes) -> None:
    """Checking an attachment: in order, with the final result of ADD, up to an error."""
    fakes.plugin("a")
    fakes.failing("b", "CHECK")
    fakes.plugin("c")
    runtime, net = fakes.runtime(), network("a", "b", "c")
    runtime.add(net, WEB)
    with pytest.raises(PluginError, match="b fails"):
        runtime.check(net, WEB)
    runs = fakes.seen("CHECK")
    assert [run.kind for run in runs] == ["a", "b"]
    assert all(run.config["prevResult"] == RESULT for run in runs)


def test_check_needs_an_attachment(fakes: Fakes) -> None:
    """CHECK: not for a container that was never added, or was deleted since."""
    fakes.plugin("a")
    runtime, net = fakes.runtime(), network("a")
    with pytest.raises(CniError, match="nothing to check"):
        runtime.check(net, WEB)
    runtime.add(net, WEB)
    runtime.delete(net, WEB)
    with pytest.raises(CniError, match="nothing to check"):
        runtime.check(net, WEB)
    assert not fakes.seen("CHECK")


def test_disable_check(fakes: Fakes) -> None:
    """Configuration format and "Checking": no CHECK, and success."""
    fakes.plugin("a")
    runtime, net = fakes.runtime(), network("a", disableCheck=True)
    runtime.add(net, WEB)
    assert runtime.check(net, WEB) is False
    assert runtime.check(net, WEB._replace(container_id="other")) is False
    assert not fakes.seen("CHECK")


def test_disable_gc(fakes: Fakes) -> None:
    """Configuration format: with `disableGC` nothing is taken from anybody."""
    fakes.plugin("a")
    runtime, net = fakes.runtime(), network("a", disableGC=True)
    runtime.add(net, WEB)
    assert runtime.gc(net, []).deleted == []
    assert [run.command for run in fakes.seen()] == ["ADD"]


def test_gc_names_the_valid_attachments(fakes: Fakes) -> None:
    """GC: `cni.dev/valid-attachments`, and no attachment parameters."""
    fakes.plugin("a")
    fakes.runtime().gc(network("a"), [("web", "eth0"), ("db", "net1")])
    (run,) = fakes.seen("GC")
    valid = [{"containerID": "db", "ifname": "net1"}, {"containerID": "web", "ifname": "eth0"}]
    assert run.config["cni.dev/valid-attachments"] == valid
    assert run.config["cni.dev/attachments"] == valid, "as libcni has it besides"
    assert "prevResult" not in run.config
    assert "runtimeConfig" not in run.config


def test_gc_goes_on_past_an_error(fakes: Fakes) -> None:
    """Garbage-collecting a network, step 4: continue, and return all errors."""
    for kind in ("a", "b"):
        fakes.failing(kind, "GC")
    fakes.plugin("c")
    with pytest.raises(ExceptionGroup) as caught:
        fakes.runtime().gc(network("a", "b", "c"), [])
    assert len(caught.value.exceptions) == 2
    assert [run.kind for run in fakes.seen("GC")] == ["a", "b", "c"]


def test_gc_is_no_substitute_for_del(fakes: Fakes) -> None:
    """GC: DEL runs for what is remembered and no longer valid, with its result, before GC."""
    fakes.plugin("a")
    runtime, net = fakes.runtime(), network("a")
    runtime.add(net, WEB)
    runtime.add(net, WEB._replace(container_id="db"))
    runtime.gc(net, [("db", "eth0")])
    deleted, collected = fakes.seen("DEL", "GC")
    assert (deleted.command, collected.command) == ("DEL", "GC")
    assert deleted.environment["CNI_CONTAINERID"] == "web"
    assert deleted.config["prevResult"] == RESULT
    (left,), _ = runtime.attachments()
    assert left.attachment.container_id == "db"


def test_status_halts_at_the_first_error(fakes: Fakes) -> None:
    """STATUS: codes 50 and 51 reach the caller."""
    fakes.plugin("a")
    fakes.failing("b", "STATUS", code=50)
    fakes.failing("c", "STATUS", code=51)
    with pytest.raises(PluginError) as caught:
        fakes.runtime().status(network("a", "b", "c"))
    assert caught.value.code == 50
    with pytest.raises(PluginError) as caught:
        fakes.runtime().status(network("a", "c"))
    assert caught.value.code == 51
    assert fakes.runtime().status(network("a")) is True


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ("0.3.1", {"ADD", "DEL"}),
        ("0.4.0", {"ADD", "DEL", "CHECK", "prevResult"}),
        ("1.0.0", {"ADD", "DEL", "CHECK", "prevResult"}),
        ("1.1.0", {"ADD", "DEL", "CHECK", "prevResult", "GC", "STATUS"}),
    ],
)
def test_operations_of_each_version(fakes: Fakes, version: str, has: set[str]) -> None:
    """Released versions: what a version lacks is not asked of its plugins."""
    fakes.plugin("a")
    runtime, net = fakes.runtime(), network("a", version=version)
    runtime.add(net, WEB)
    if "CHECK" in has:
        runtime.check(net, WEB)
    else:
        with pytest.raises(CniError, match="CHECK needs"):
            runtime.check(net, WEB)
    assert runtime.status(net) is ("STATUS" in has)
    runtime.gc(net, [("web", "eth0")])
    runtime.delete(net, WEB)
    runs = fakes.seen()
    assert {run.command for run in runs} == has - {"prevResult"}
    assert ("prevResult" in runs[-1].config) is ("prevResult" in has)


def test_request_configuration(fakes: Fakes) -> None:
    """Deriving request configuration: the inserted keys, and `capabilities` taken out."""
    fakes.plugin("a")
    plugin = {"type": "a", "keyA": 1, "capabilities": {"mac": True, "ips": False, "dns": True}}
    asked = {"mac": "02:00:00:00:00:07", "ips": ["10.0.0.9"], "bandwidth": {}}
    run_all(fakes, network(plugin), WEB._replace(capability_args=asked))
    for run in fakes.seen():
        assert run.config["cniVersion"] == "1.1.0"
        assert run.config["name"] == "net"
        assert run.config["keyA"] == 1
        if run.command in ("ADD", "CHECK", "DEL"):
            assert "capabilities" not in run.config
            assert run.config["runtimeConfig"] == {"mac": "02:00:00:00:00:07"}


def test_version_probe(fakes: Fakes) -> None:
    """VERSION: the input names the version in use."""
    fakes.plugin("a", versions=["0.4.0", "1.0.0"])
    assert fakes.runtime().version("a") == ("0.4.0", "1.0.0")
    (run,) = fakes.seen()
    assert run.config == {"cniVersion": "1.1.0"}


def test_success_and_failure_by_exit_status(fakes: Fakes) -> None:
    """Errors of section 2: 0 is success, whatever is on stderr; all else is failure."""
    fakes.plugin("a", body="echo chatter >&2")
    fakes.runtime().add(network("a"), WEB)
    fakes.script("b", f"echo '{json.dumps(RESULT)}'; exit 1")
    with pytest.raises(PluginError):
        fakes.runtime().add(network("b"), WEB._replace(ifname="eth1"))


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 11, 50, 51, 100, 999])
def test_error_codes_reach_the_caller(fakes: Fakes, code: int) -> None:
    """Error: every code, with message and details, so that the caller can act on it."""
    fakes.failing("a", "ADD", code=code, msg="words", details="more")
    with pytest.raises(PluginError) as caught:
        fakes.runtime().add(network("a"), WEB)
    error = caught.value
    assert (error.code, error.message, error.details) == (code, "words", "more")


def test_a_failed_status_prevents_nothing(fakes: Fakes) -> None:
    """STATUS: informational only; other operations go on."""
    fakes.failing("a", "STATUS", code=50)
    runtime, net = fakes.runtime(), network("a")
    with pytest.raises(PluginError):
        runtime.status(net)
    runtime.add(net, WEB)
    runtime.delete(net, WEB)


def test_add_needs_a_namespace(fakes: Fakes) -> None:
    """Lifecycle & Ordering: there must be one before any plugin is run."""
    fakes.plugin("a")
    with pytest.raises(CniError, match="network namespace"):
        fakes.runtime().add(network("a"), WEB._replace(netns=""))
    assert not fakes.seen()
