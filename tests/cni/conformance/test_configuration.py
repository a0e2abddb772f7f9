"""Section 1, "Network configuration format": what a runtime takes for a network."""

import json
from pathlib import Path
from typing import Any

import pytest

from tapwright.cni import Attachment, ConfigurationError, find_network, load_networks, parse_network
from tests.cni.fakes import Fakes, network

pytestmark = pytest.mark.unit

WEB = Attachment("web", "eth0", "/run/netns/web")


def refused(content: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_network(json.dumps(content).encode(), "a.conflist")
    assert caught.value.source == "a.conflist"
    return str(caught.value)


def test_configuration_format_names() -> None:
    """`name`: an alphanumeric character, then those, '_', '.' and '-'."""
    for good in ("a", "7", "db_net.1-x"):
        assert (
            parse_network(json.dumps({"name": good, "plugins": [{"type": "p"}]}).encode(), "").name
            == good
        )
    for bad in ("", "-a", ".a", "_a", "a/b", "a b", "a\n", "ä", 7, None):
        assert "key 'name'" in refused({"name": bad, "plugins": [{"type": "p"}]})


@pytest.mark.parametrize("key", ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"])
def test_configuration_format_booleans(key: str) -> None:
    """The three flags are true or false, and libcni takes the words too."""
    base = {"name": "n", "plugins": [{"type": "p"}]}
    for good in (True, False, "true", "False"):
        parse_network(json.dumps({**base, key: good}).encode(), "a.conflist")
    for bad in (1, "yes", None, [1]):
        assert f"key '{key}'" in refused({**base, key: bad})


def test_flags_are_kept() -> None:
    assert network("p", disableCheck=True).disable_check
    assert network("p", disableGC="true").disable_gc
    assert not network("p").disable_check


def test_load_only_inlined_plugins_needs_plugins() -> None:
    """Without `plugins`, `loadOnlyInlinedPlugins` can't be true."""
    assert "loadOnlyInlinedPlugins" in refused({"name": "n", "loadOnlyInlinedPlugins": True})


def folder_network(directory: Path, **keys: Any) -> None:
    content = {"cniVersion": "1.1.0", "name": "n", **keys}
    (directory / "n.conflist").write_text(json.dumps(content))
    (directory / "n").mkdir()
    (directory / "n" / "20-b.conf").write_text('{"type": "b"}')
    (directory / "n" / "10-a.conf").write_text('{"type": "a"}')
    (directory / "n" / "ignored.txt").write_text("no plugin")


def test_plugins_of_the_folder_are_appended(tmp_path: Path) -> None:
    """Plugins from other sources come behind the inlined ones, and each is invoked."""
    folder_network(tmp_path, plugins=[{"type": "inlined"}])
    found = find_network(tmp_path, "n")
    assert [plugin["type"] for plugin in found.plugins] == ["inlined", "a", "b"]
    again = parse_network(found.whole, "cache")
    assert again.plugins == found.plugins, "what is remembered must say all of it"


def test_plugins_of_the_folder_alone(tmp_path: Path) -> None:
    folder_network(tmp_path)
    assert [p["type"] for p in find_network(tmp_path, "n").plugins] == ["a", "b"]


def test_only_inlined_plugins(tmp_path: Path) -> None:
    """`loadOnlyInlinedPlugins`: other sources are ignored."""
    folder_network(tmp_path, plugins=[{"type": "inlined"}], loadOnlyInlinedPlugins=True)
    assert [p["type"] for p in find_network(tmp_path, "n").plugins] == ["inlined"]


def test_every_plugin_configuration_is_validated(tmp_path: Path) -> None:
    """A network with an invalid plugin, inlined or in the folder, is not run at all."""
    folder_network(tmp_path, plugins=[{"type": "inlined"}])
    (tmp_path / "n" / "30-c.conf").write_text('{"type": "c/d"}')
    networks, problems = load_networks(tmp_path)
    assert not networks
    assert [problem.source for problem in problems] == [str(tmp_path / "n" / "30-c.conf")]
    assert problems[0].key == "type"


def test_plugin_type_is_a_file_name() -> None:
    """`type` and `ipam.type`: required, and without characters that paths can't have."""
    for bad in ("a/b", "a\\b", "", "..", "\0", None, 3):
        assert "key 'plugins[0].type'" in refused({"name": "n", "plugins": [{"type": bad}]})
        if bad not in ("", None):  # with these there is no delegate: test_leniency
            ipam = {"type": "p", "ipam": {"type": bad}}
            assert "key 'plugins[0].ipam.type'" in refused({"name": "n", "plugins": [ipam]})
    assert "key 'plugins[1].type'" in refused({"name": "n", "plugins": [{"type": "p"}, {}]})


def test_unknown_keys_are_passed_on(fakes: Fakes) -> None:
    """Fields that the specification does not define reach the plugin unchanged."""
    fakes.plugin("p")
    odd = {"keyA": ["some more", {"x": None}], "keyB": 1.5, "ipMasq": True, "args": {"cni": {}}}
    fakes.runtime().add(network({"type": "p", **odd}), WEB)
    (run,) = fakes.seen("ADD")
    assert {key: run.config[key] for key in odd} == odd


def test_reserved_keys_are_not_passed_on(fakes: Fakes) -> None:
    """`runtimeConfig`, `prevResult` and `cni.dev/…` are the runtime's alone; `validate` says so."""
    fakes.plugin("p")
    reserved = {"runtimeConfig": {"mac": "x"}, "prevResult": {}, "cni.dev/valid-attachments": []}
    net = network({"type": "p", **reserved})
    fakes.runtime().add(net, WEB)
    (run,) = fakes.seen("ADD")
    assert not set(reserved) & set(run.config)
    assert len(fakes.runtime().validate(net)) == len(reserved)


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ({"cniVersion": "0.4.0"}, "0.4.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0"]}, "1.0.0"),
        ({"cniVersion": "1.1.0", "cniVersions": ["0.3.1"]}, "1.1.0"),
        ({"cniVersions": ["1.0.0", "1.1.0", "1.2.0", "2.0.0"]}, "1.1.0"),
        ({"cniVersion": "9.0.0", "cniVersions": ["0.4.0"]}, "0.4.0"),
        ({}, "0.1.0"),
    ],
)
def test_highest_supported_version_is_selected(keys: dict[str, Any], chosen: str) -> None:
    """Version considerations: the highest of `cniVersion` and `cniVersions` that we know."""
    assert network("p", version=None, **keys).cni_version == chosen


def test_unsupported_versions_are_refused() -> None:
    base = {"name": "n", "plugins": [{"type": "p"}]}
    assert "key 'cniVersion'" in refused({**base, "cniVersion": "2.0.0"})
    assert "key 'cniVersions'" in refused({**base, "cniVersions": ["1.2.0"]})
    assert "key 'cniVersion'" in refused({**base, "cniVersion": "one"})
    assert "key 'cniVersions'" in refused({**base, "cniVersions": "1.0.0"})


def test_versions_of_plugins_are_considered(fakes: Fakes) -> None:
    """Version considerations: the runtime may ask plugins; all then know the version."""
    fakes.plugin("new")
    fakes.plugin("old", add={"cniVersion": "0.4.0"}, versions=["0.3.1", "0.4.0"])
    net = network("new", "old", cniVersions=["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    fakes.runtime().add(net, WEB)
    assert [run.config["cniVersion"] for run in fakes.seen("ADD")] == ["0.4.0", "0.4.0"]
