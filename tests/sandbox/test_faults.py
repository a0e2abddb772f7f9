"""What goes wrong while a sandbox is made: one sentence says so, and nothing stays behind."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.state import supervisors
from tests.host import Host, eventually
from tests.sandboxes import PLUGINS, Networks, Tapwright, children_of

pytestmark = pytest.mark.usefixtures("nothing_left")

Refusal = Callable[..., str]


@pytest.fixture
def refusal(tapwright: Tapwright) -> Refusal:
    """Run a command that must fail; return what it says, which is one line."""

    def run(*words: str, status: int = 1, config: Path | None = None) -> str:
        done = tapwright.run(*words, config=config)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        said = [line for line in done.stderr.splitlines() if line.startswith("tapwright: ")]
        assert len(said) == 1, done.stderr
        return said[0]

    return run


@pytest.fixture
def broken_networks(networks: Networks) -> Iterator[Networks]:
    """Networks that can't work, beside those that do."""
    subnet = {"type": "host-local", "subnet": "10.92.0.0/24", "dataDir": str(networks.leases)}
    bridge = {"type": "bridge", "bridge": "br-small", "ipam": subnet}
    networks.write("half", [bridge, {"type": "tuning", "sysctl": {"net.core.nothing": "1"}}])
    networks.write("pluginless", [bridge, {"type": "no-such-plugin"}])
    (networks.directory / "torn.conflist").write_text('{\n  "name": "torn",\n  "plugins": [\n')
    yield networks
    for name in ("half", "pluginless", "torn"):
        (networks.directory / f"{name}.conflist").unlink()


def test_no_address_left(tapwright: Tapwright, refusal: Refusal, networks: Networks) -> None:
    tapwright.json("sandbox", "run", "full", "--network", "tiny")
    said = refusal("sandbox", "run", "toomany", "--network", "tiny")
    assert "network 'tiny': plugin 'bridge' failed to ADD" in said
    assert "no IP addresses available" in said
    assert len(networks.leased("tiny")) == 1
    tapwright.delete("full")


def test_plugin_in_the_middle_of_a_chain_fails(refusal: Refusal, broken_networks: Networks) -> None:
    before = broken_networks.leased("small")
    said = refusal("sandbox", "run", "half", "--network", "half")
    assert "plugin 'tuning' failed to ADD" in said
    assert "net/core/nothing" in said
    assert broken_networks.leased("half") == []
    assert broken_networks.leased("small") == before


def test_second_network_fails(refusal: Refusal, broken_networks: Networks) -> None:
    refusal("sandbox", "run", "second", "--network", "dual", "--network", "half")
    assert broken_networks.leased("dual") == []


def test_plugin_missing(refusal: Refusal, broken_networks: Networks) -> None:
    said = refusal("sandbox", "run", "x", "--network", "pluginless")
    assert "no-such-plugin" in said
    assert PLUGINS in said


def test_unknown_network(refusal: Refusal, broken_networks: Networks) -> None:
    said = refusal("sandbox", "run", "x", "--network", "nothing")
    for name in ("dual", "small", "jumbo"):
        assert name in said


def test_network_that_is_not_json(refusal: Refusal, broken_networks: Networks) -> None:
    said = refusal("sandbox", "run", "x", "--network", "torn")
    assert f"{broken_networks.directory}/torn.conflist, line 4" in said


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "x" * 65, "-x", "ö"])
def test_bad_id(refusal: Refusal, name: str) -> None:
    assert "is not a sandbox id" in refusal("sandbox", "run", "--", name, status=2)


@pytest.mark.parametrize("name", ["a/b", "x" * 16, "a b", ".."])
def test_bad_interface_name(refusal: Refusal, name: str) -> None:
    said = refusal("sandbox", "run", "x", "--network", f"dual:{name}", status=2)
    assert "is not an interface name" in said


def test_too_little_memory(refusal: Refusal) -> None:
    assert "a guest needs 128" in refusal("sandbox", "run", "x", "--memory", "64", status=2)


def test_unknown_keys_are_reported(tapwright: Tapwright) -> None:
    config = tapwright.configuration(machine_typ="q35")
    done = tapwright.run("sandbox", "run", "x", "--network", "nothing", config=config)
    assert f"{config}: [hypervisor.qemu] machine_typ is not known" in done.stderr


def test_what_can_not_be_taken_back(
    tapwright: Tapwright, networks: Networks, tmp_path: Path
) -> None:
    """A plugin whose DEL fails for good: the sandbox stays, until it is given up."""
    plugin = tmp_path / "stubborn"
    plugin.write_text(
        "#!/bin/sh\ncat >/dev/null\n"
        '[ "$CNI_COMMAND" = ADD ] && echo \'{"cniVersion": "1.0.0"}\' && exit\n'
        'echo \'{"cniVersion": "1.0.0", "code": 999, "msg": "never"}\'; exit 1\n'
    )
    plugin.chmod(0o755)
    networks.write("stubborn", [{"type": "stubborn"}])
    try:
        words = "sandbox", "run", "stuck", "--network", "stubborn", "--plugin-dir", str(tmp_path)
        assert tapwright.run(*words).returncode == 0
        done = tapwright.run("sandbox", "delete", "stuck")
        assert (done.returncode, done.stdout) == (1, "")
        assert "never (code 999)" in done.stderr
        assert "--force" in done.stderr
        assert tapwright.json("sandbox", "inspect", "stuck")["status"] == "dead"
        done = tapwright.run("sandbox", "delete", "--force", "stuck")
        assert (done.returncode, done.stdout) == (0, "stuck\n")
        assert "stuck: given up" in done.stderr
    finally:
        (networks.directory / "stubborn.conflist").unlink()
        for leftover in tapwright.cache.glob("results/stubborn-*"):
            leftover.unlink()


def test_hypervisor_missing(tapwright: Tapwright, refusal: Refusal) -> None:
    config = tapwright.configuration(path="/nowhere/qemu")
    said = refusal("sandbox", "run", "x", config=config)
    assert "QEMU (/nowhere/qemu) is not installed: install qemu-system-x86" in said


@pytest.mark.parametrize("key", ["kernel", "initrd"])
def test_image_missing(tapwright: Tapwright, refusal: Refusal, key: str) -> None:
    keys: dict[str, Any] = {key: "/nowhere/image", "accelerator": "tcg"}
    config = tapwright.configuration(**keys)
    said = refusal("sandbox", "run", "x", "--network", "dual", config=config)
    assert "/nowhere/image is missing" in said


def test_hypervisor_that_fails_at_once(tapwright: Tapwright, refusal: Refusal) -> None:
    config = tapwright.configuration(path="/bin/false", accelerator="tcg")
    said = refusal("sandbox", "run", "x", "--network", "dual", config=config)
    assert "QEMU did not start" in said


def test_guest_that_panics(tapwright: Tapwright, refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"no archive")
    for path in (tmp_path, *tmp_path.parents[:-2]):  # all in /tmp
        path.chmod(0o755)  # for QEMU's user
    config = tapwright.configuration(initrd=str(tmp_path / "initrd"), accelerator="tcg")
    said = refusal("sandbox", "run", "x", "--network", "dual", config=config)
    assert "the guest did not come up" in said


def test_agent_that_stays_silent(tapwright: Tapwright, refusal: Refusal) -> None:
    config = tapwright.configuration(
        kernel_params="rdinit=/bin/cat", boot_timeout=2, accelerator="tcg"
    )
    said = refusal("sandbox", "run", "x", "--network", "dual", config=config)
    assert "the agent did not answer within 2 s" in said


HOLD = """#!/usr/bin/python3 -IS
import json, os, sys, time
here = os.path.dirname(sys.argv[0])
config = json.load(sys.stdin)
if os.environ["CNI_COMMAND"] == "VERSION":
    print(json.dumps({"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}))
elif os.environ["CNI_COMMAND"] == "ADD":
    open(f"{here}/holding", "w").close()
    while not os.path.exists(f"{here}/go"):
        time.sleep(0.02)
    print(json.dumps(config["prevResult"]))
"""


@pytest.fixture
def held(tapwright: Tapwright, networks: Networks, tmp_path: Path) -> Iterator[Path]:
    """The directory of a plugin at which a sandbox of the network `held` stands still, as it shows
    by a file `holding`, until there is a file `go`; the network has given it an address by then."""
    (tmp_path / "hold").write_text(HOLD)
    (tmp_path / "hold").chmod(0o755)
    subnet = {"type": "host-local", "subnet": "10.92.0.0/24", "dataDir": str(networks.leases)}
    bridge = {"type": "bridge", "bridge": "br-small", "ipam": subnet}
    networks.write("held", [bridge, {"type": "hold"}])
    yield tmp_path
    (networks.directory / "held.conflist").unlink()


def has_qemu(supervisor: int) -> bool:
    return bool(children_of(supervisor, "qemu-system"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_caller_that_goes_away(
    tapwright: Tapwright, networks: Networks, held: Path, number: signal.Signals
) -> None:
    config = tapwright.configuration(template=tapwright.templates, plugins=held)
    running = tapwright.start("sandbox", "run", "left", "--network", "held", config=config)
    assert eventually((held / "holding").exists)
    assert networks.leased("held") != []
    supervisor = supervisors.pid_of(tapwright.root / "sandboxes/left")
    assert supervisor
    assert eventually(lambda: has_qemu(supervisor))
    running.send_signal(number)
    # The supervisor knows by then.
    assert eventually(lambda: not has_qemu(supervisor))
    (held / "go").touch()
    _, errors = running.communicate(timeout=150)
    assert running.returncode == (130 if number == signal.SIGINT else -number), errors
    assert eventually(lambda: tapwright.json("sandbox", "list") == [])
    assert networks.leased("held") == []


def test_id_taken(tapwright: Tapwright, refusal: Refusal) -> None:
    starting = [tapwright.start("sandbox", "run", "same") for _ in range(3)]
    outcomes = []
    for process in starting:
        _, errors = process.communicate(timeout=120)
        outcomes.append(process.returncode)
        assert process.returncode == 0 or "a sandbox 'same' exists" in errors
    assert sorted(outcomes) == [0, 1, 1]
    assert "a sandbox 'same' exists" in refusal("sandbox", "run", "same")
    tapwright.delete("same")


def test_prefix_of_an_id(tapwright: Tapwright, refusal: Refusal) -> None:
    for name in ("web-1", "web-2"):
        tapwright.json("sandbox", "run", name)
    assert "web-1, web-2" in refusal("sandbox", "inspect", "web", status=2)
    assert "there is no sandbox 'wob'" in refusal("sandbox", "inspect", "wob")
    assert tapwright.json("sandbox", "inspect", "web-2")["id"] == "web-2"
    tapwright.run("sandbox", "delete", "web-1")
    assert tapwright.json("sandbox", "inspect", "w")["id"] == "web-2"
    tapwright.delete("w")


@pytest.mark.parametrize("text", ["80", "0:80", "70000:80", "80:80/icmp", "x:1:2", "[::1:80:80"])
def test_port_that_is_none(refusal: Refusal, text: str) -> None:
    said = refusal("sandbox", "run", "x", "--network", "dual", "--publish", text, status=2)
    assert f"{text!r} is not a port to publish" in said


def test_port_that_no_network_publishes(refusal: Refusal) -> None:
    said = refusal("sandbox", "run", "x", "--network", "small", "--publish", "80:80", status=2)
    assert "portmap" in said


def test_own_namespace(refusal: Refusal) -> None:
    said = refusal("sandbox", "run", "x", "--netns", "/proc/self/ns/net", status=2)
    assert "this host's own namespace" in said


def test_namespace_missing(refusal: Refusal) -> None:
    said = refusal("sandbox", "run", "x", "--netns", "/run/netns/nowhere")
    assert "there is no network namespace at /run/netns/nowhere" in said


def test_not_root(tapwright: Tapwright) -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*command, *tapwright.command("sandbox", "list")],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 1
    assert "only root can do this" in done.stderr


def test_state_directory_that_is_a_file(tapwright: Tapwright, tmp_path: Path, host: Host) -> None:
    (tmp_path / "file").touch()
    words = tapwright.command("sandbox", "run", "x")
    words[words.index("--root") + 1] = str(tmp_path / "file")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("tapwright: ")
    assert "Traceback" not in done.stderr
    assert os.path.isfile(tmp_path / "file")


def test_errors_of_the_configuration(
    tapwright: Tapwright, refusal: Refusal, tmp_path: Path
) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text("[hypervisor.qemu]\ndefault_memory = 'much'\n")
    said = refusal("sandbox", "run", "x", config=config)
    assert f"{config}: [hypervisor.qemu] default_memory = 'much': must be a whole number" in said
