"""Side by side with cnitool, where it is on the PATH."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cni.command import DEFAULT_CACHE, Commands
from tests.cni.reference import PLUGINS, Reference, addresses, inside, output

pytestmark = pytest.mark.skipif(
    shutil.which("cnitool") is None, reason="cnitool is not on the PATH"
)
VARIABLES = {
    "CNI_IFNAME": "net7",
    "CNI_ARGS": "IgnoreUnknown=1;IP=10.87.0.77",
    "CAP_ARGS": '{"portMappings": [{"hostPort": 8087, "containerPort": 80, "protocol": "tcp"}]}',
}


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    reference = Reference(tmp_path)
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    reference.network(reference.bridge(), {"type": "tuning"}, portmap)
    before = remembered()
    yield Commands(reference.nets, PLUGINS)
    assert remembered() == before
    output("ip", "link", "delete", "brcni")


def remembered() -> set[str]:
    folder = Path(DEFAULT_CACHE, "results")
    return set(os.listdir(folder)) if folder.exists() else set()


def alike(result: dict[str, Any]) -> dict[str, Any]:
    """Without what the kernel or chance chooses, or versions of cnitool print or leave out."""
    if result.get("dns") == {}:
        del result["dns"]
    for interface in result["interfaces"]:
        interface["mac"] = "?"
        if interface["name"].startswith("veth"):
            interface["name"] = "veth?"
    return result


def test_same_result(commands: Commands, make_netns: Callable[[], str]) -> None:
    netns = make_netns()
    theirs = commands.cnitool("add", "net", netns, **VARIABLES)
    assert commands.cnitool("del", "net", netns, **VARIABLES).returncode == 0
    ours = commands.tapwright("add", "net", netns, **VARIABLES)
    assert commands.tapwright("del", "net", netns, **VARIABLES).returncode == 0
    assert (ours.returncode, theirs.returncode) == (0, 0), ours.stderr + theirs.stderr
    assert alike(json.loads(ours.stdout)) == alike(json.loads(theirs.stdout))
    assert (ours.stderr, theirs.stderr) == ("", "")


@pytest.mark.parametrize(("first", "second"), [("cnitool", "tapwright"), ("tapwright", "cnitool")])
def test_each_checks_and_deletes_what_the_other_added(
    commands: Commands, make_netns: Callable[[], str], first: str, second: str
) -> None:
    netns = make_netns()
    before = remembered()
    # Without port mappings: the CHECK of portmap asks for rules of both families.
    variables = {"CNI_IFNAME": "net7"}
    added = getattr(commands, first)("add", "net", netns, **variables)
    assert added.returncode == 0, added.stderr
    assert len(remembered() - before) == 1
    assert addresses(netns, "net7") == [json.loads(added.stdout)["ips"][0]["address"]]
    for verb in ("check", "del"):
        done = getattr(commands, second)(verb, "net", netns, **variables)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert remembered() == before
    assert "net7" not in inside(netns, "ip", "link")


def test_ports_that_cnitool_mapped_are_unmapped(
    commands: Commands, make_netns: Callable[[], str]
) -> None:
    """Even without CAP_ARGS at `del`: the cache has its value."""
    netns = make_netns()
    assert commands.cnitool("add", "net", netns, **VARIABLES).returncode == 0
    assert "8087" in output("iptables-save")
    assert commands.tapwright("del", "net", netns, CNI_IFNAME="net7").returncode == 0
    assert "8087" not in output("iptables-save")
