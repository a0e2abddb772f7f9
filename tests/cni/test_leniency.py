"""What the specification leaves open, and libcni takes: we take it too, for files and plugins have
been tried with nothing else. docs/cni-conformance.md has the table."""

import json
from pathlib import Path
from typing import Any

import pytest

from tapwright.cni import (
    Attachment,
    CniError,
    ConfigurationError,
    PluginError,
    Run,
    find_network,
    load_networks,
    parse_network,
)
from tests.cni.command import Commands
from tests.cni.fakes import RESULT, Fakes, network

pytestmark = pytest.mark.unit
WEB = Attachment("web", "eth0", "/run/netns/web")


def stdin_of(fakes: Fakes, value: str) -> str:
    """What reaches a plugin at ADD whose key "x" is written so."""
    fakes.plugin("p")
    runs: list[Run] = []
    raw = '{"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "p", "x": ' + value + "}]}"
    fakes.runtime(trace=runs.append).add(parse_network(raw.encode(), "x"), WEB)
    return runs[0].stdin


def test_words_on_stdout_of_a_success_are_passed_over(fakes: Fakes) -> None:
    """Only ADD and VERSION have an answer."""
    fakes.plugin("p", body="[ $CNI_COMMAND = ADD ] || echo all is well; ")
    runtime, net = fakes.runtime(), network("p")
    runtime.add(net, WEB)
    runtime.status(net)
    assert runtime.check(net, WEB)
    runtime.gc(net, [("web", "eth0")])
    runtime.delete(net, WEB)
    assert runtime.attachments() == ([], [])


def test_a_script_that_insists_on_its_variables(fakes: Fakes) -> None:
    """They are all there at every command, if only empty."""
    names = ("COMMAND", "CONTAINERID", "NETNS", "IFNAME", "ARGS", "PATH")
    fakes.plugin("p", body="set -u; : " + " ".join(f"$CNI_{name}" for name in names))
    runtime, net = fakes.runtime(), network("p", cniVersions=["1.0.0"])
    assert runtime.validate(net) == []
    runtime.add(net, WEB)
    runtime.status(net)
    runtime.check(net, WEB)
    runtime.gc(net, [("web", "eth0")])
    runtime.delete(net, WEB)
    told = ["VERSION", "ADD", "STATUS", "CHECK", "GC", "DEL"]
    assert [run.command for run in fakes.seen()] == told


def test_words_on_stderr_of_a_success_are_relayed(
    fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.plugin("p", body="echo $CNI_COMMAND: ü >&2")
    runtime, net = fakes.runtime(), network("p")
    runtime.add(net, WEB)
    runtime.delete(net, WEB)
    assert capsys.readouterr() == ("", "ADD: ü\nDEL: ü\n")


@pytest.mark.parametrize(
    "keys",
    [
        {"ipam": {}},
        {"ipam": None},
        {"ipam": {"type": ""}},
        {"ipam": {"type": None}},
        {"capabilities": None},
        {"capabilities": {"mac": None}},
        {"dns": None},
        {"dns": {}},
    ],
    ids=json.dumps,
)
def test_null_and_empty_are_as_good_as_nothing(fakes: Fakes, keys: dict[str, Any]) -> None:
    """And they reach the plugin as they are written."""
    fakes.plugin("p")
    net = network({"type": "p", **keys}, cniVersions=["1.0.0", "1.1.0"])
    assert net.capabilities == set()
    runtime = fakes.runtime()
    assert runtime.validate(net) == []
    runtime.add(net, WEB._replace(capability_args={"mac": "02:00:00:00:00:07"}))
    runtime.delete(net, WEB)
    (run,) = fakes.seen("ADD")
    assert "runtimeConfig" not in run.config
    for key in {"ipam", "dns"} & set(keys):
        assert run.config[key] == keys[key]


def test_capitals_of_keys_make_no_difference(fakes: Fakes) -> None:
    """As in Go's decoder; the plugin gets the key as it is written, and as libcni reads it."""
    fakes.plugin("p")
    fakes.plugin("i", versions=["0.4.0"])
    plugin = {"Type": "p", "Capabilities": {"mac": True}, "IPAM": {"Type": "i"}}
    net = network(plugin, version="0.4.0", cniVersions=["1.0.0"])
    fakes.runtime().add(net, WEB._replace(capability_args={"mac": "x"}))
    (run,) = fakes.seen("ADD")
    assert run.config["runtimeConfig"] == {"mac": "x"}
    assert (run.config["Type"], run.config["IPAM"]) == ("p", {"Type": "i"})
    assert run.config["cniVersion"] == "0.4.0", "the IPAM plugin was asked, too"


def test_a_single_plugin_with_a_capital(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text('{"name": "a", "Type": "p"}')
    assert [plugin["type"] for plugin in find_network(tmp_path, "a").plugins] == ["p"]


def test_name_and_version_of_a_single_plugin_with_capitals(fakes: Fakes, tmp_path: Path) -> None:
    """Which libcni decodes into a structure; but a list's keys by their very names."""
    fakes.plugin("p")
    (tmp_path / "a.conf").write_text('{"Name": "a", "CNIVersion": "0.4.0", "Type": "p"}')
    net = find_network(tmp_path, "a")
    fakes.runtime().add(net, WEB)
    (run,) = fakes.seen("ADD")
    assert (run.config["name"], run.config["cniVersion"]) == ("a", "0.4.0")
    assert find_network(tmp_path, "a").versions == ("0.4.0",)
    for whole in (net.raw, net.whole):
        assert parse_network(whole, "whole").versions == ("0.4.0",)
    (tmp_path / "b.conflist").write_text('{"Name": "b", "plugins": [{"type": "p"}]}')
    with pytest.raises(ConfigurationError, match="name"):
        find_network(tmp_path, "b")


@pytest.mark.parametrize(
    ("written", "reaches"),
    [
        ("1e3", "1000"),
        ("1.0", "1"),
        ("1500.0", "1500"),
        ("-2E+2", "-200"),
        ("0.1", "0.1"),
        ("1.5e3", "1500"),
        ("2.5e-7", "2.5e-07"),
        ("9007199254740993", "9007199254740993"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("1e21", "1e+21"),
    ],
)
def test_numbers_keep_their_value(fakes: Fakes, written: str, reaches: str) -> None:
    """A whole number is written as one: a plugin in Go takes no other for an integer. libcni does
    so, but for integers beyond 2 to the 53rd, which it rounds."""
    assert f'"x": {reaches},' in stdin_of(fakes, written)


@pytest.mark.parametrize(
    "written", [r'"\u0000"', r'"\ud83d\ude00"', r'"\u00fc<>&"', '"ü"', r'"\ud800"', '"\\/"', "null"]
)
def test_texts_keep_their_value(fakes: Fakes, written: str) -> None:
    assert json.loads(stdin_of(fakes, written))["x"] == json.loads(written)


def test_bytes_that_are_no_utf_8(fakes: Fakes) -> None:
    """U+FFFD takes their place, as in Go."""
    raw = b'{"name": "net", "plugins": [{"type": "p", "about": "f\xfcr"}]}'
    assert parse_network(raw, "x").plugins[0]["about"] == "f\ufffdr"
    fakes.script("p", r"""printf '{"cniVersion": "1.1.0", "about": "f\374r"}'""")
    assert fakes.runtime().add(network("p"), WEB)["about"] == "f\ufffdr"


def odd_result(index: int) -> dict[str, Any]:
    return {**RESULT, "ips": [{"address": "10.1.0.5/16", "interface": index}]}


@pytest.mark.parametrize("index", [1, -1, 1 << 40])
def test_an_index_beyond_the_interfaces_is_taken_and_reported(fakes: Fakes, index: int) -> None:
    fakes.plugin("p", add=odd_result(index))
    runs: list[Run] = []
    runtime, net = fakes.runtime(trace=runs.append), network("p")
    assert runtime.add(net, WEB) == odd_result(index)
    (remark,) = runs[0].remarks
    assert f"{index} is not the index of one of the 1 interfaces" in remark
    (problem,) = runtime.validate(net)
    assert problem.startswith("network 'net': the result of interface 'eth0'")
    assert remark in problem
    runtime.delete(net, WEB)
    assert runtime.validate(net) == []


def test_trace_and_validate_tell_of_an_index(fakes: Fakes, tmp_path: Path) -> None:
    fakes.plugin("p", add=odd_result(1))
    (tmp_path / "net.conflist").write_text(
        '{"name": "net", "cniVersion": "1.1.0", "plugins": [{"type": "p"}]}'
    )
    commands = Commands(tmp_path, str(fakes.bin), fakes.cache)
    added = commands.tapwright("add", "net", "/proc/self/ns/net", "--trace", CAP_ARGS="null")
    assert added.returncode == 0, added.stderr
    assert "remark: key 'ips', entry 0: key 'interface': 1" in added.stderr
    told = commands.tapwright("validate")
    assert told.returncode == 1
    assert "1 is not the index" in told.stderr


@pytest.mark.parametrize(
    "keys",
    [
        {"ips": [{"address": "10.1.0.5"}]},
        {"ips": [{"address": "10.1.0.5/16", "gateway": "the router"}]},
        {"routes": [{"dst": "default"}]},
        {"dns": {"nameservers": "10.1.0.1"}},
    ],
    ids=json.dumps,
)
def test_a_result_with_what_is_no_address(fakes: Fakes, keys: dict[str, Any]) -> None:
    """Refused, as by libcni's types; and taken down."""
    fakes.plugin("p", add={"cniVersion": "1.1.0", **keys})
    with pytest.raises(PluginError, match="its result can't be used: key '"):
        fakes.runtime().add(network("p"), WEB)
    assert [run.command for run in fakes.seen()] == ["ADD", "DEL"]
    assert fakes.runtime().attachments() == ([], [])


def test_null_is_an_empty_result(fakes: Fakes) -> None:
    fakes.script("p", "echo null")
    assert fakes.runtime().add(network("p", version="1.0.0"), WEB) == {"cniVersion": "1.0.0"}


@pytest.mark.parametrize("version", ["", None, 7, ["1.0.0"]])
def test_a_result_without_a_version_has_that_of_the_network(fakes: Fakes, version: Any) -> None:
    fakes.plugin("p", add={**RESULT, "cniVersion": version})
    result = fakes.runtime().add(network("p", version="1.0.0"), WEB)
    assert result == {**RESULT, "cniVersion": "1.0.0"}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_a_result_that_the_version_cannot_express_goes_on(fakes: Fakes, version: str) -> None:
    """A network at layer 2, in a file without a version or of an early one, by a plugin that prints
    what it always prints. The next plugin gets that, and the caller what the last one prints."""
    told = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}]}
    fakes.plugin("p", add=told)
    fakes.plugin("q", add=told | {"ips": [{"address": "10.0.0.2/24"}]})
    runtime, net = fakes.runtime(), network("p", version=version)
    assert runtime.add(net, WEB) == told
    runtime.delete(net, WEB)
    both = network("p", "q", version=version)
    assert runtime.add(both, WEB) == {"cniVersion": version, "ip4": {"ip": "10.0.0.2/24"}}
    runtime.delete(both, WEB)
    assert fakes.seen("ADD")[2].config["prevResult"] == told
    assert runtime.attachments() == ([], [])


def test_keys_of_the_first_versions_tell_a_result_without_one(fakes: Fakes) -> None:
    """A script that was written for them, in a network that is newer."""
    fakes.plugin("p", add={"ip4": {"ip": "10.0.0.2/24", "routes": [{"dst": "0.0.0.0/0"}]}})
    assert fakes.runtime().add(network("p", version="1.0.0"), WEB) == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.0.0.2/24"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }


def test_an_error_with_exit_status_0_is_a_success_and_reported(fakes: Fakes) -> None:
    fakes.plugin("p", add={"cniVersion": "1.1.0", "code": 7, "msg": "bad"})
    runs: list[Run] = []
    fakes.runtime(trace=runs.append).add(network("p"), WEB)
    assert "looks like an error (bad)" in runs[0].remarks[0]


def test_null_in_a_result_is_as_good_as_nothing(fakes: Fakes) -> None:
    fakes.plugin(
        "p",
        add={
            "cniVersion": "1.0.0",
            "interfaces": None,
            "ips": [{"address": "10.1.0.5/16", "gateway": None, "interface": None}],
            "routes": [{"dst": "0.0.0.0/0", "gw": ""}],
            "dns": {"nameservers": None},
        },
    )
    result = fakes.runtime().add(network("p", version="0.4.0"), WEB)
    assert result["ips"][0]["address"] == "10.1.0.5/16"
    assert result["ips"][0]["version"] == "4"


def test_capitals_of_keys_in_a_result(fakes: Fakes) -> None:
    """libcni reads them, and writes them as the specification does."""
    fakes.plugin("p", add={"CNIVersion": "0.2.0", "IP4": {"IP": "10.1.0.5/16"}})
    result = fakes.runtime().add(network("p", version="1.0.0"), WEB)
    assert result == {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/16"}]}


def test_the_mtu_of_a_newer_result_reaches_the_caller(fakes: Fakes) -> None:
    """A plugin of 1.1.0 in a network of 1.0.0; the next plugin sees it, too."""
    interface = {"name": "eth0", "mtu": 1280, "socketPath": "/s"}
    fakes.plugin("p", add={"cniVersion": "1.1.0", "interfaces": [interface]})
    fakes.plugin("q", body="[ $CNI_COMMAND != ADD ] || { cat $run/stdin; exit; }")
    fakes.runtime().add(network("p", "q", version="1.0.0"), WEB)
    (_, run) = fakes.seen("ADD")
    assert run.config["prevResult"] == {"cniVersion": "1.0.0", "interfaces": [interface]}


def test_a_plugin_of_0_2_0_need_not_name_its_versions(fakes: Fakes) -> None:
    fakes.script("p", """echo '{"cniVersion": "0.2.0"}'""")
    assert fakes.runtime().version("p") == ("0.1.0", "0.2.0")


def test_capitals_of_keys_in_an_answer_to_version(fakes: Fakes) -> None:
    fakes.script("p", """echo '{"CNIVersion": "1.0.0", "SupportedVersions": ["0.4.0"]}'""")
    assert fakes.runtime().version("p") == ("0.4.0",)


def test_versions_of_two_parts(fakes: Fakes) -> None:
    """Taken for versions, but none of ours: a plugin's answer could not be read."""
    assert network("p", version="1.0", cniVersions=["0.4", "1.0.0"]).versions == ("1.0.0",)
    with pytest.raises(ConfigurationError, match="names no supported version"):
        network("p", version="1.0")


@pytest.mark.parametrize("version", ["1.2.0", "0.3", "2.0.0-rc1"])
def test_delete_in_a_version_that_we_do_not_know(fakes: Fakes, version: str) -> None:
    """What somebody newer has made can be taken down: as libcni does it, without the result, which
    can't be read. ADD, CHECK, STATUS and GC have to understand it, and are refused."""
    fakes.plugin("p")
    runtime = fakes.runtime()
    runtime.add(network("p"), WEB)
    raw = b'{"name": "net", "cniVersion": "%s", "plugins": [{"type": "p"}]}' % version.encode()
    with pytest.raises(ConfigurationError, match="names no supported version"):
        parse_network(raw, "x")
    unknown = parse_network(raw, "x", any_version=True)
    for operation in (runtime.add, runtime.check):
        with pytest.raises(CniError, match="unknown here"):
            operation(unknown, WEB)
    for operate in (runtime.status, runtime.gc):
        with pytest.raises(CniError, match="unknown here"):
            operate(unknown)
    runtime.delete(unknown, WEB)
    (run,) = fakes.seen("DEL")
    assert run.config["cniVersion"] == version
    assert "prevResult" not in run.config
    assert runtime.attachments() == ([], [])


def test_only_del_of_the_command_takes_any_version(fakes: Fakes, tmp_path: Path) -> None:
    fakes.plugin("p")
    (tmp_path / "net.conflist").write_text(
        '{"name": "net", "cniVersion": "1.2.0", "plugins": [{"type": "p"}]}'
    )
    commands = Commands(tmp_path, str(fakes.bin), fakes.cache)
    for verb in ("add", "check", "status", "gc"):
        done = commands.tapwright(verb, "net", "/proc/self/ns/net")
        assert (done.returncode, done.stdout) == (1, "")
        assert "names no supported version" in done.stderr
    done = commands.tapwright("del", "net", "/proc/self/ns/net")
    assert done.returncode == 0, done.stderr
    assert [run.command for run in fakes.seen()] == ["DEL"]


@pytest.mark.parametrize("name", ["Pihole Network", "_x", "müsli"])
def test_del_of_a_network_with_a_name_that_breaks_the_rules(
    fakes: Fakes, tmp_path: Path, name: str
) -> None:
    """Runtimes took it once, podman among them; libcni looks at it in ADD alone."""
    fakes.plugin("p")
    (tmp_path / "net.conflist").write_text(
        json.dumps({"name": name, "cniVersion": "1.0.0", "plugins": [{"type": "p"}]})
    )
    commands = Commands(tmp_path, str(fakes.bin), fakes.cache)
    done = commands.tapwright("add", name, "/proc/self/ns/net")
    assert done.returncode == 1
    assert "must be a network name" in done.stderr
    done = commands.tapwright("del", name, "/proc/self/ns/net")
    assert (done.returncode, done.stderr) == (0, "")
    assert [run.command for run in fakes.seen()] == ["DEL"]


@pytest.mark.parametrize("single", ["10-first.conf", "30-last.conf", "10-first.json"])
def test_a_conflist_wins_however_it_sorts(tmp_path: Path, single: str) -> None:
    (tmp_path / "20-list.conflist").write_text('{"name": "n", "plugins": [{"type": "listed"}]}')
    (tmp_path / single).write_text('{"name": "n", "type": "single"}')
    (tmp_path / "25-other.conf").write_text('{"name": "o", "type": "p"}')
    networks, problems = load_networks(tmp_path)
    assert [network.name for network in networks] == ["n", "o"]
    assert networks[0].plugins[0]["type"] == "listed"
    assert [Path(problem.source).name for problem in problems] == [single]


def test_what_libcni_would_remember_of_a_list(fakes: Fakes, tmp_path: Path) -> None:
    """The bytes of the file. What plugins its folder had is noted beside, and used by GC."""
    for kind in ("inlined", "folder"):
        fakes.plugin(kind)
    raw = b'{ "name": "n", "cniVersion": "1.1.0",\n "plugins": [{"type": "inlined", "x": 1e3}] }'
    (tmp_path / "n.conflist").write_bytes(raw)
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "a.conf").write_text('{"type": "folder"}')
    runtime, net = fakes.runtime(), find_network(tmp_path, "n")
    runtime.add(net, WEB)
    (entry,), _ = runtime.attachments()
    assert entry.config == raw
    runtime.gc(net, [])
    assert [run.kind for run in fakes.seen("DEL")] == ["folder", "inlined"]


def test_what_libcni_would_remember_of_a_single_plugin(tmp_path: Path) -> None:
    """libcni/conf.go, ConfListFromConf. `disableGC` counts here, and is none of its keys."""
    single = {"name": "a", "type": "p", "cniVersion": "0.4.0", "disableGC": True}
    (tmp_path / "a.conf").write_text(json.dumps(single))
    net = find_network(tmp_path, "a")
    assert json.loads(net.raw) == {"cniVersion": "0.4.0", "name": "a", "plugins": [single]}
    assert parse_network(net.whole, "x").disable_gc


def test_the_trace_of_the_caller_reaches_plugins(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenTelemetry's context, in the variables of OTEP 258 (libcni, pkg/invoke/raw_exec.go)."""
    trace = {
        "TRACEPARENT": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "TRACESTATE": "vendor=1",
        "BAGGAGE": "userId=alice",
    }
    for name, value in trace.items():
        monkeypatch.setenv(name, value)
    fakes.plugin("p")
    runtime, net = fakes.runtime(), network("p")
    runtime.add(net, WEB)
    runtime.check(net, WEB)
    runtime.delete(net, WEB)
    for run in fakes.seen():
        assert {name: run.environment.get(name) for name in trace} == trace
