"""Configurations read from bytes and directories: an error names the place of the mistake."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwright.cni import ConfigurationError, find_network, load_networks, parse_network

pytestmark = pytest.mark.unit

GOOD = {"cniVersion": "1.0.0", "name": "good", "plugins": [{"type": "p"}]}


def write(directory: Path, name: str, content: Any) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (directory / name).write_bytes(raw)


def test_files_in_lexical_order_of_all_kinds(tmp_path: Path) -> None:
    """.conflist, and single plugins in .conf and .json; nothing else."""
    write(tmp_path, "30-c.json", {"name": "c", "type": "p"})
    write(tmp_path, "10-a.conf", {"name": "a", "type": "p", "cniVersion": "0.4.0"})
    write(tmp_path, "20-b.conflist", {**GOOD, "name": "b"})
    write(tmp_path, "40-d.txt", {**GOOD, "name": "d"})
    (tmp_path / "50-e.conf").mkdir()
    networks, problems = load_networks(tmp_path)
    assert [network.name for network in networks] == ["a", "b", "c"]
    assert not problems


def test_a_single_plugin_is_wrapped(tmp_path: Path) -> None:
    single = {"name": "a", "cniVersion": "0.4.0", "type": "p", "ipam": {"type": "i"}, "odd": [1.5]}
    write(tmp_path, "a.conf", single)
    network = find_network(tmp_path, "a")
    assert network.plugins == (single,)
    wrapped = json.loads(network.raw)
    assert wrapped["plugins"] == [single], "libcni reads what is remembered as a conflist"
    assert parse_network(network.raw, "x").plugins == network.plugins


def test_a_broken_file_never_hides_the_good_ones(tmp_path: Path) -> None:
    write(tmp_path, "10-broken.conflist", b'{\n  "name": "x",\n  oops\n}')
    write(tmp_path, "20-good.conflist", GOOD)
    write(tmp_path, "30-twice.conflist", GOOD)
    write(tmp_path, "40-gone.conflist", b"")
    (tmp_path / "40-gone.conflist").unlink()
    (tmp_path / "40-gone.conflist").symlink_to("nowhere")
    os.mkfifo(tmp_path / "50-fifo.conflist")
    write(tmp_path, "60-binary.conflist", b'{"name": "\xff"}')
    assert find_network(tmp_path, "good").name == "good"
    _, problems = load_networks(tmp_path)
    told = {Path(problem.source).name: problem for problem in problems}
    assert told["10-broken.conflist"].line == 3
    assert told["10-broken.conflist"].reason.startswith("not JSON: ")
    assert "must be unique" in told["30-twice.conflist"].reason
    assert "No such file" in told["40-gone.conflist"].reason
    assert set(told) >= {"50-fifo.conflist", "60-binary.conflist"}


def test_line_of_a_wrong_key() -> None:
    raw = b'{\n  "name": "n",\n  "cniVersion": 7,\n  "plugins": [{"type": "p"}]\n}'
    with pytest.raises(ConfigurationError) as caught:
        parse_network(raw, "/etc/cni/net.d/n.conflist")
    error = caught.value
    assert (error.source, error.line, error.key) == ("/etc/cni/net.d/n.conflist", 3, "cniVersion")
    assert str(error).startswith("/etc/cni/net.d/n.conflist, line 3: key 'cniVersion': must hold")


def test_the_error_of_a_missing_network_lists_the_others(tmp_path: Path) -> None:
    write(tmp_path, "a.conflist", GOOD)
    write(tmp_path, "b.conflist", b"{")
    with pytest.raises(ConfigurationError) as caught:
        find_network(tmp_path, "bad")
    assert "no network 'bad'" in str(caught.value)
    assert "good" in str(caught.value)
    assert "b.conflist" in str(caught.value)


def test_a_missing_directory_has_no_networks(tmp_path: Path) -> None:
    assert load_networks(tmp_path / "nowhere") == ([], [])


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({}, "name"),
        ({"name": "n"}, "plugins"),
        ({"name": "n", "plugins": []}, "plugins"),
        ({"name": "n", "plugins": {}}, "plugins"),
        ({"name": "n", "plugins": ["p"]}, "plugins[0]"),
        ({"name": "n", "plugins": [{"type": "p", "capabilities": []}]}, "plugins[0].capabilities"),
        (
            {"name": "n", "plugins": [{"type": "p", "capabilities": {"mac": 1}}]},
            "plugins[0].capabilities",
        ),
        ({"name": "n", "plugins": [{"type": "p", "ipam": "x"}]}, "plugins[0].ipam"),
    ],
)
def test_the_key_at_fault_is_named(content: Any, key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_network(json.dumps(content).encode(), "x")
    assert caught.value.key == key


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"name": "n", "plugins": [{"type": "p", "x": ' + b"[" * 150 + b"]" * 150 + b"}]}",
        b'{"name": "n", "plugins": [{"type": "p", "x": 1e999}]}',
        b'{"name": "n", "plugins": [{"type": "p", "x": -Infinity}]}',
        b'{"name": "n", "plugins": [{"type": "p", "x": ' + b"9" * 5000 + b"}]}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
    ],
)
def test_what_go_would_not_read_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigurationError):
        parse_network(raw, "x")


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(raw: bytes) -> None:
    with pytest.raises(ConfigurationError, match=r"^x(, line \d+)?: "):
        parse_network(raw, "x")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "name",
        "cniVersion",
        "cniVersions",
        "plugins",
        "type",
        "disableCheck",
        "disableGC",
        "ipam",
        "loadOnlyInlinedPlugins",
        "capabilities",
    ]
)


@given(st.dictionaries(KEYS, VALUES | st.lists(st.dictionaries(KEYS, VALUES), max_size=2)))
def test_no_value_crashes_the_parser(content: dict[str, Any]) -> None:
    try:
        network = parse_network(json.dumps(content).encode(), "x")
    except ConfigurationError:
        return
    assert network.plugins


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), min_size=1, max_size=3))
def test_no_key_of_a_plugin_is_lost(plugins: list[dict[str, Any]]) -> None:
    ours = {"type", "capabilities", "ipam"}
    plugins = [{k: v for k, v in p.items() if k not in ours} | {"type": "p"} for p in plugins]
    network = parse_network(json.dumps({"name": "n", "plugins": plugins}).encode(), "x")
    assert list(network.plugins) == plugins
    assert list(parse_network(network.raw, "y").plugins) == plugins
