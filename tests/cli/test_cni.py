"""`tapwright cni` as a person or a script runs it, with real plugins."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha512
from pathlib import Path

import pytest

from tests.cni.command import Commands
from tests.cni.fakes import Fakes
from tests.cni.reference import PLUGINS, Reference, addresses, inside

MakeNetns = Callable[[], str]


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[Reference]:
    reference = Reference(tmp_path)
    reference.network(reference.bridge(), {"type": "tuning"})
    yield reference
    subprocess.run(["ip", "link", "delete", "brcni"], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture
def commands(reference: Reference) -> Commands:
    return Commands(reference.nets, PLUGINS, reference.cache)


@pytest.mark.smoke
def test_add_list_check_delete(commands: Commands, make_netns: MakeNetns) -> None:
    netns = make_netns()
    result = commands.json("add", "net", netns)
    assert result["ips"][0]["address"] == addresses(netns)[0]
    (attached,) = commands.json("attachments", "--json")
    assert attached["container_id"] == f"cnitool-{sha512(netns.encode()).hexdigest()[:20]}"
    assert (attached["network"], attached["ifname"], attached["netns"]) == ("net", "eth0", netns)
    assert attached["result"] == result
    table = commands.tapwright("attachments").stdout
    assert re.search(rf"net +cnitool-\S+ +eth0 +{netns} +attached +10\.87\.0\.2/24", table)
    assert commands.json("check", "net", netns, "--json") == {"network": "net", "checked": True}
    assert commands.tapwright("del", "net", netns).stdout == ""
    assert commands.json("attachments", "--json") == []
    assert "eth0" not in inside(netns, "ip", "link")


def test_interface_name_from_option_and_environment(
    commands: Commands, make_netns: MakeNetns
) -> None:
    netns = make_netns()
    commands.json("add", "net", netns, CNI_IFNAME="one0")
    commands.json("add", "net", netns, "--ifname", "two0", CNI_IFNAME="ignored0")
    links = inside(netns, "ip", "-brief", "link")
    assert "one0" in links
    assert "two0" in links
    assert "ignored0" not in links
    for name in ("one0", "two0"):
        assert commands.tapwright("del", "net", netns, "-i", name).returncode == 0


@pytest.mark.unit
def test_list_and_validate(commands: Commands, reference: Reference) -> None:
    (reference.nets / "broken.conflist").write_text('{"name": "b",\n"plugins": 3}')
    missing = {"cniVersion": "1.0.0", "name": "missing", "plugins": [{"type": "nowhere"}]}
    (reference.nets / "missing.conflist").write_text(json.dumps(missing))
    listed = commands.tapwright("list", "--json")
    assert [entry["name"] for entry in json.loads(listed.stdout)] == ["missing", "net"]
    assert "broken.conflist, line 2: key 'plugins': must be a list" in listed.stderr
    assert commands.tapwright("validate", "net").returncode == 0
    done = commands.tapwright("validate")
    assert done.returncode == 1
    assert "broken.conflist" in done.stderr
    assert "'nowhere'" in done.stderr
    problems = json.loads(commands.tapwright("validate", "--json").stdout)["problems"]
    assert len(problems) == 2


@pytest.mark.unit
def test_the_configuration_has_the_defaults(tmp_path: Path) -> None:
    """Its directories, where neither options nor the environment name others."""
    fakes = Fakes(tmp_path)
    fakes.plugin("p")
    nets, cache = tmp_path / "nets", tmp_path / "remembered"
    nets.mkdir()
    (nets / "net.conf").write_text('{"cniVersion": "1.1.0", "name": "net", "type": "p"}')
    file = tmp_path / "configuration.toml"
    file.write_text(
        f'[cni]\nconf_dir = "{nets}"\nbin_dirs = ["{fakes.bin}"]\ncache_dir = "{cache}"\n'
    )
    commands = Commands(Path(), "")
    variables = {"NETCONFPATH": "", "TAPWRIGHT_CONFIG": str(file)}
    netns = "/proc/self/ns/net"
    commands.json("add", "net", netns, "--container-id", "web", **variables)
    assert (cache / "results" / "net-web-eth0").exists()
    [attached] = commands.json("attachments", "--json", **variables)
    assert attached["container_id"] == "web"
    done = commands.tapwright("del", "net", netns, "--container-id", "web", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert [run.command for run in fakes.seen()] == ["ADD", "DEL"]


@pytest.mark.unit
def test_version_and_status(commands: Commands) -> None:
    versions = commands.json("version", "bridge", "--json")
    assert versions["tapwright"][-1] == "1.1.0"
    assert "1.0.0" in versions["bridge"]
    assert "bridge" in commands.tapwright("version", "bridge").stdout
    asked = commands.json("status", "net", "--json")
    assert asked == {"network": "net", "ready": True, "asked": False}


def test_gc_keeps_what_lives(
    commands: Commands, reference: Reference, make_netns: MakeNetns
) -> None:
    gone, kept = make_netns(), make_netns()
    for netns in (gone, kept):
        commands.json("add", "net", netns)
    subprocess.run(["ip", "netns", "delete", Path(gone).name], check=True)
    told = commands.json("gc", "net", "--json")
    assert [entry["netns"] for entry in told["deleted"]] == [gone]
    assert reference.leased() == [addresses(kept)[0].split("/")[0]]
    assert commands.tapwright("gc", "net", "--all").returncode == 0
    assert reference.leased() == []


def test_gc_with_a_given_list(
    commands: Commands, reference: Reference, make_netns: MakeNetns
) -> None:
    for container in ("a", "b"):
        commands.json("add", "net", make_netns(), "--container-id", container)
    told = commands.json("gc", "net", "--keep", "b/eth0", "--json")
    assert [entry["container_id"] for entry in told["deleted"]] == ["a"]
    assert commands.tapwright("gc", "net", "--keep", "b").returncode == 2


def test_trace_shows_every_run(commands: Commands, make_netns: MakeNetns) -> None:
    netns = make_netns()
    added = commands.tapwright("add", "net", netns, "--trace", CNI_ARGS="IgnoreUnknown=1")
    json.loads(added.stdout)
    assert re.findall(r"--- (\w+) (\S+) \((\S+)\): exit 0, [\d.]+ ms", added.stderr) == [
        ("ADD", "bridge", f"{PLUGINS}/bridge"),
        ("ADD", "tuning", f"{PLUGINS}/tuning"),
    ]
    for shown in (f"CNI_NETNS={netns}", "CNI_ARGS=IgnoreUnknown=1", "stdin:", '"prevResult"'):
        assert shown in added.stderr
    assert commands.tapwright("del", "net", netns).returncode == 0


@pytest.mark.parametrize(
    ("words", "variables", "status", "said"),
    [
        (["add", "net"], {}, 2, "NETNS"),
        (["fly"], {}, 2, "fly"),
        (["add", "nope", "NETNS"], {}, 1, "no network 'nope'"),
        (["add", "net", "/nowhere"], {}, 1, "no network namespace /nowhere"),
        (["add", "net", "NETNS"], {"CNI_ARGS": "novalue"}, 2, "CNI_ARGS: 'novalue'"),
        (["add", "net", "NETNS"], {"CNI_ARGS": "a=b=c"}, 2, "CNI_ARGS"),
        (["add", "net", "NETNS"], {"CAP_ARGS": "{"}, 2, "CAP_ARGS is not JSON: "),
        (["add", "net", "NETNS"], {"CAP_ARGS": "[1]"}, 2, "CAP_ARGS must be a JSON object"),
        (["add", "net", "NETNS"], {"CNI_IFNAME": "a/b"}, 1, "'a/b' is not an interface name"),
        (["add", "net", "NETNS", "--container-id", "-x"], {}, 2, "--container-id"),
        (["add", "net", "NETNS"], {"CNI_PATH": "/nowhere"}, 1, "does not exist in /nowhere"),
        (["check", "net", "NETNS"], {}, 1, "nothing to check"),
        (["version", "nowhere"], {}, 1, "'nowhere'"),
    ],
)
def test_wrong_input_changes_nothing(
    commands: Commands,
    reference: Reference,
    make_netns: MakeNetns,
    words: list[str],
    variables: dict[str, str],
    status: int,
    said: str,
) -> None:
    netns = make_netns()
    done = commands.tapwright(*(netns if word == "NETNS" else word for word in words), **variables)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in reference.cache.rglob("*") if path.is_file()]
    assert reference.leased() == []
    assert inside(netns, "ip", "-brief", "link").split()[0] == "lo"


@pytest.mark.unit
@pytest.mark.parametrize("words", [["version"], ["list", "--help"], ["list", "--json"]])
def test_output_reaches_a_pipe(commands: Commands, words: list[str]) -> None:
    """The command ends its process at once: nothing may be left in a buffer."""
    done = commands.tapwright(*words, PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")


def test_every_failure_of_a_delete_is_reported(
    commands: Commands, reference: Reference, make_netns: MakeNetns
) -> None:
    netns = make_netns()
    commands.json("add", "net", netns)
    content = json.loads((reference.nets / "net.conflist").read_text())
    content["plugins"] += [{"type": "gone-one"}, {"type": "gone-two"}]
    (reference.nets / "net.conflist").write_text(json.dumps(content))
    done = commands.tapwright("del", "net", netns)
    assert done.returncode == 1
    assert "gone-one" in done.stderr
    assert "gone-two" in done.stderr
    assert reference.leased() == [], "the other plugins must have run"
