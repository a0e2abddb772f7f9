"""Records of other versions, and damaged ones: nothing that they hold is lost."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tapwright.control import operations
from tapwright.control.containers import Containers
from tapwright.endpoint import kinds
from tapwright.errors import NetworkError, NewerRecordError, SandboxStateError
from tapwright.sandbox import lifecycle
from tapwright.state import entries, joins, record, registry
from tapwright.state.joins import Join
from tapwright.state.record import FILE, FORMAT, Journal, Place

pytestmark = pytest.mark.unit

BEFORE = Path(__file__).parent / "records" / "format-0.json"
"""As the last version wrote it whose records had no number, with an entry of each kind."""


def written(root: Path, content: Any) -> Path:
    directory = registry.directory_of(root) / "web"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def before() -> Any:
    return json.loads(BEFORE.read_text())


def small(**changes: Any) -> Any:
    """A record whose journal can be undone without a host."""
    return before() | {"held": [{"kind": "netns_used", "path": "/run/netns/x"}]} | changes


def has(content: Any, part: Any) -> bool:
    """Whether all of a part is there, and as it was."""
    if isinstance(part, dict):
        return all(key in content and has(content[key], part[key]) for key in part)
    if isinstance(part, list):
        return len(content) == len(part) and all(map(has, content, part))
    return bool(content == part)


def test_a_record_of_the_version_before(tmp_path: Path) -> None:
    directory = written(tmp_path, before())
    found = record.load(directory)
    assert found.spec.networks[0].name == "net"
    assert found.interfaces[0].addresses == ["10.0.0.1/24"]
    for entry in found.held:
        assert entries.read(entry) or kinds.of_entry(entry).device == "eth0"
    assert joins.of_nic(found, found.interfaces[0]) == Join("tcfilter", found.netns, 2)
    record.save(found, directory)
    assert has(json.loads((directory / FILE).read_text()), before() | {"format": FORMAT})


@pytest.mark.parametrize(
    ("given", "path", "place"),
    [
        ("", "/run/netns/tapwright-web", Place.MADE),
        ("/run/netns/x", "/run/netns/x", Place.GIVEN),
        ("/proc/7/ns/net", "/run/netns/tapwright-web", Place.BOUND),
        ("", "", Place.HOST),
    ],
)
def test_which_namespace_is_a_sandboxs(tmp_path: Path, given: str, path: str, place: Place) -> None:
    content = before() | {"netns": path}
    content["spec"] |= {"netns": given, "in_host_netns": not path}
    assert record.load(written(tmp_path, content)).place is place


def test_entries_are_read_as_they_were_written() -> None:
    made: list[entries.Entry] = [
        entries.NetnsUsed("/run/netns/a"),
        entries.Netns("/run/netns/b", {"inode": 7}),
        entries.Attachment("eth0", "c", "/run/netns/b", "{}", "a.conf", "", {"mac": "x"}, ["/bin"]),
        entries.HostTap("tap0", "mark", "eth1"),
        entries.Port("tap0", "mark", 7, "br0", "", "eth1"),
        entries.TemplateDraft("/var/lib/templates"),
        entries.ControlGroup("/tapwright"),
    ]
    for entry in made:
        kind, fields = entries.written(entry)
        assert entries.read({"kind": kind, **fields, "new": 1}) == entry
    assert entries.read({"kind": "of another version"}) is None
    with pytest.raises(SandboxStateError, match="port: the journal is damaged: index must be"):
        entries.read({"kind": "port", **vars(made[4]), "index": "7"})


def test_what_a_later_version_added_is_kept(tmp_path: Path) -> None:
    """Fields wherever they are, and kinds of entries."""
    content = before() | {"format": FORMAT, "new": {"a": [1]}}
    content["spec"]["new"] = 1
    content["spec"]["networks"][0]["new"] = 2
    content["spec"]["taps"][0]["new"] = 3
    content["interfaces"][0]["new"] = 4
    content["phases"][0]["new"] = 5
    content["held"][0]["new"] = 6
    content["held"].append({"kind": "new", "what": 7})
    directory = written(tmp_path, content)
    journal = Journal(directory, record.load(directory))
    entry = journal.hold("netns_used", path="/x")
    journal.release(entry)
    assert has(json.loads((directory / FILE).read_text()), content)


def test_an_entry_that_is_not_known_stays(tmp_path: Path) -> None:
    """`delete` takes back all else, and says by which means that one goes."""
    directory = written(
        tmp_path, small(held=[{"kind": "new"}, {"kind": "netns_used", "path": "/x"}])
    )
    with pytest.raises(NetworkError, match="'new' can't be undone by this version"):
        lifecycle.delete(tmp_path, "web")
    assert record.load(directory).held == [{"kind": "new"}]
    (left,) = lifecycle.delete(tmp_path, "web", force=True)
    assert "'new'" in left
    assert not directory.exists()


def test_a_record_that_would_be_misunderstood(tmp_path: Path) -> None:
    directory = written(tmp_path, small(format=FORMAT + 1))
    content = (directory / FILE).read_text()
    with pytest.raises(NewerRecordError, match=r"a newer Tapwright .* use that one, or --force"):
        lifecycle.delete(tmp_path, "web")
    assert (directory / FILE).read_text() == content
    assert "newer Tapwright" in registry.find(tmp_path, "web").problem
    assert lifecycle.delete(tmp_path, "web", force=True) == []
    assert not directory.exists()


@pytest.mark.parametrize(
    "damage",
    [
        {"spec": None},
        {"spec": {"kernel": "/k", "initrd": "/i", "networks": [5]}},
        {"spec": {}},
        {"interfaces": {}},
        {"phases": [{"name": "x"}]},
    ],
)
def test_the_journal_of_a_damaged_record_is_undone(tmp_path: Path, damage: Any) -> None:
    held = [{"kind": "netns", "path": str(tmp_path / "there")}, {"kind": "host_tap"}]
    (tmp_path / "there").touch()
    directory = written(tmp_path, small(held=held, **damage))
    with pytest.raises(SandboxStateError, match="is damaged"):
        record.load(directory)
    with pytest.raises(NetworkError, match="host_tap: the journal is damaged: device is missing"):
        lifecycle.delete(tmp_path, "web")
    assert not (tmp_path / "there").exists()
    assert record.load(directory).held == [{"kind": "host_tap"}]
    assert len(lifecycle.delete(tmp_path, "web", force=True)) == 1
    assert not directory.exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "[" * 100_000, {"held": 5}, {"held": [{}]}, small(held=["netns"])],
)
def test_a_record_of_which_nothing_is_left(tmp_path: Path, content: Any) -> None:
    directory = written(tmp_path, content)
    assert registry.find(tmp_path, "web").status == "dead"
    with pytest.raises(SandboxStateError, match=r"is damaged.*look for its namespace"):
        lifecycle.delete(tmp_path, "web")
    assert not directory.exists()


def test_requests_of_version_0_are_served() -> None:
    """With the arguments that they had: a running sandbox is asked by older versions, too."""
    nothing: Any = None
    served = operations.Operations(*[nothing] * 6).by_name()
    arguments = {name: inspect.signature(served[name]).parameters for name in served}
    for name, had in {
        "add_interface": ["interface"],
        "remove_interface": ["interface"],
        "list_interfaces": [],
        "add_routes": ["routes"],
        "remove_routes": ["routes"],
        "update_routes": ["routes"],
        "list_routes": [],
        "sync": ["at_once"],
    }.items():
        assert set(had) <= set(arguments[name])
        needed = [n for n, p in arguments[name].items() if p.default is p.empty]
        assert set(needed) <= set(had)
    assert {
        *("start_container", "signal_container", "pause_container", "resume_container"),
        *("update_container", "delete_container", "set_sysctls", "container_processes"),
        "container_statistics",
    } <= set(Containers(nothing, nothing).by_name())


def test_a_record_is_read_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = written(tmp_path, before())
    read: list[Path] = []

    def noted(place: Path) -> record.Record:
        read.append(place)
        return record.load(place)

    monkeypatch.setattr(registry, "load", noted)
    records = registry.Remembered()
    (first,), (second,) = records.listing(tmp_path), records.listing(tmp_path)
    assert first == second
    assert read == [directory]
    changed = record.load(directory)
    changed.memory_mib = 999
    record.save(changed, directory)
    (third,) = records.listing(tmp_path)
    assert third.record
    assert third.record.memory_mib == 999
    assert read == [directory, directory]
    (directory / FILE).unlink()
    assert records.listing(tmp_path) == []
    written(tmp_path, "{")
    (broken,) = records.listing(tmp_path)
    assert broken.record is None
