"""Namespaces whose path leads to another one by the time a sandbox is deleted, or nowhere."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandboxes import Networks, Tapwright, ended, pids_of

# Which accelerator serves is found out once, and kept.
pytestmark = pytest.mark.usefixtures("machine", "nothing_left")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def process_netns() -> Iterator[subprocess.Popen[str]]:
    """A process in a namespace of its own, which has no other name."""
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 1000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_namespace_of_that_name_is_another_one_now(
    tapwright: Tapwright, networks: Networks, scratch_netns: str
) -> None:
    name = os.path.basename(scratch_netns)
    tapwright.json("sandbox", "run", "moved", "--netns", scratch_netns, "--network", "small")
    assert networks.leased("small")
    ip("netns", "delete", name)
    ip("netns", "add", name)
    ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    ip("-n", name, "address", "add", "192.0.2.5/24", "dev", "eth0")
    before = ip("-n", name, "-d", "address")
    tapwright.delete("moved")
    assert ip("-n", name, "-d", "address") == before
    assert not networks.leased("small")


def test_its_own_namespace_is_another_one_now(tapwright: Tapwright, networks: Networks) -> None:
    """Not even the name goes, which is somebody else's."""
    tapwright.json("sandbox", "run", "lost", "--network", "small")
    ip("netns", "delete", "tapwright-lost")
    ip("netns", "add", "tapwright-lost")
    try:
        tapwright.delete("lost")
        assert ip("-n", "tapwright-lost", "-o", "link").count("\n") == 1
        assert not networks.leased("small")
    finally:
        ip("netns", "delete", "tapwright-lost")


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_chain_without_its_namespace(
    tapwright: Tapwright, networks: Networks, is_alive: bool
) -> None:
    """sbr refuses DEL without one; the port and the address are given back all the same. And as
    long as QEMU is in it, plugins find the namespace again, of which the masquerading needs to
    know the addresses."""
    bridge, portmap = json.loads((networks.directory / "dual.conflist").read_text())["plugins"]
    bridge["ipMasq"] = is_alive
    networks.write("chain", [bridge, portmap, {"type": "tuning", "mtu": 1400}, {"type": "sbr"}])
    try:
        words = "sandbox", "run", "bare", "--network", "chain", "--publish", "8086:80/tcp"
        supervisor, qemu = pids_of(tapwright.json(*words))
        assert networks.leased("chain")
        ip("netns", "delete", "tapwright-bare")
        if not is_alive:
            for pid in (supervisor, qemu):
                os.kill(pid, signal.SIGKILL)
                assert ended(pid)
        tapwright.delete("bare")
        assert not networks.leased("chain")
        assert not (tapwright.cache / "results" / "chain-bare-eth0").exists()
    finally:
        (networks.directory / "chain.conflist").unlink()


def test_a_namespace_outlives_its_process(
    tapwright: Tapwright,
    networks: Networks,
    process_netns: subprocess.Popen[str],
    tmp_path: Path,
) -> None:
    """It is bound for as long as the sandbox is there. And what plugins say is in its log, and
    they know the trace that they are part of."""
    noter = tmp_path / "noter"
    noter.write_text(
        f'#!/bin/sh\necho "$CNI_COMMAND $CNI_NETNS $TRACEPARENT" >>{tmp_path}/said\n'
        "echo noter was here >&2\n"
        'exec python3 -c "import json, sys; print(json.dumps(json.load(sys.stdin)'
        "['prevResult']))\"\n"
    )
    noter.chmod(0o755)
    plugins = json.loads((networks.directory / "small.conflist").read_text())["plugins"]
    networks.write("noted", [*plugins, {"type": "noter"}])
    config = tapwright.configuration(template=tapwright.templates, plugins=tmp_path)
    given = f"/proc/{process_netns.pid}/ns/net"
    bound = "/run/netns/tapwright-kept"
    traced = {**os.environ, "TRACEPARENT": TRACE}
    words = ("sandbox", "run", "kept", "--netns", given, "--network", "noted")
    try:
        done = tapwright.run(*words, config=config, env=traced)
        assert done.returncode == 0, done.stderr
        assert os.path.samefile(bound, given)
        again = tapwright.run("sandbox", "run", "second", "--netns", given)
        assert "in use by sandbox 'kept'" in again.stderr
        process_netns.kill()
        process_netns.wait()
        assert tapwright.reaches("kept", "10.92.0.1")
        log = tapwright.root / "sandboxes" / "kept" / "log"
        assert "noter was here" in log.read_text()
        done = tapwright.run("sandbox", "delete", "kept", env=traced)
        assert (done.returncode, done.stderr) == (0, "noter was here\n")
        assert (tmp_path / "said").read_text().splitlines() == [
            f"ADD {bound} {TRACE}",
            f"DEL {bound} {TRACE}",
        ]
        assert not os.path.exists(bound)
        assert not networks.leased("noted")
    finally:
        (networks.directory / "noted.conflist").unlink()
