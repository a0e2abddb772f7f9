"""Leases of the reference plugin `dhcp`, whose daemon renews them on the host as long as the
sandbox lives. The server is busybox's, in a namespace beyond a bridge."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.host import eventually
from tests.namespaces import Namespace, namespace
from tests.sandboxes import PLUGINS, Networks, Tapwright

LEASE_SECONDS = 6
RENEWALS = 3
SECONDS = 60.0  # for all of them
BRIDGE, SERVER = "brdhcp", "10.96.0.1"
SANDBOX = "leased"

ASK = "udhcpc -f -n -q -t 20 -T 3 -i eth0 -s /bin/true"


class Leases:
    """The daemon of the plugin, by its log."""

    def __init__(self, log: Path, socket: Path) -> None:
        self.socket = socket
        self._log = log

    @property
    def said(self) -> str:
        return self._log.read_text()

    def renewed(self, times: int) -> bool:
        """Whether the lease was renewed so often, within the time, and never lost."""

        def done() -> bool:
            return "expired" in self.said or self.said.count("lease renewed") >= times

        return eventually(done, SECONDS) and "expired" not in self.said


@pytest.fixture
def leases(tmp_path: Path, networks: Networks) -> Iterator[Leases]:
    host = Namespace()
    with ExitStack() as undo:
        undo.enter_context(namespace("dhcp-server"))
        host.ip(f"link add {BRIDGE} type bridge")
        undo.callback(host.ip, f"link delete {BRIDGE}")
        host.ip("link add dhcp0 type veth peer name srv0 netns dhcp-server")
        host.ip(f"link set dhcp0 master {BRIDGE} up")
        host.ip(f"link set {BRIDGE} up")
        server = Namespace("dhcp-server")
        server.ip(f"address add {SERVER}/24 dev srv0")
        server.ip("link set srv0 up")
        (tmp_path / "udhcpd.conf").write_text(
            "start 10.96.0.20\nend 10.96.0.40\ninterface srv0\nmin_lease 1\n"
            f"lease_file {tmp_path}/leases\npidfile {tmp_path}/pid\n"
            f"option subnet 255.255.255.0\noption router {SERVER}\noption lease {LEASE_SECONDS}\n"
        )
        (tmp_path / "leases").touch()
        in_server = ["ip", "netns", "exec", "dhcp-server"]
        config = str(tmp_path / "udhcpd.conf")
        background(undo, tmp_path / "server.log", *in_server, "busybox", "udhcpd", "-f", config)
        socket = tmp_path / "dhcp.sock"
        log = background(
            *(undo, tmp_path / "daemon.log"),
            *(f"{PLUGINS}/dhcp", "daemon", "-socketpath", str(socket), "-timeout", "2s"),
        )
        assert eventually(socket.exists)
        networks.write("leased", [bridge(socket)])
        undo.callback((networks.directory / "leased.conflist").unlink)
        yield Leases(log, socket)


def background(undo: ExitStack, log: Path, *command: str) -> Path:
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output)
    undo.callback(running.wait)
    undo.callback(running.send_signal, signal.SIGTERM)
    return log


def bridge(socket: Path) -> dict[str, Any]:
    ipam = {"type": "dhcp", "daemonSocketPath": str(socket)}
    return {"type": "bridge", "bridge": BRIDGE, "ipam": ipam}


def test_a_lease_is_renewed(leases: Leases, tapwright: Tapwright) -> None:
    done = tapwright.run("sandbox", "run", SANDBOX, "--network", "leased", "--json")
    assert done.returncode == 0, done.stderr + leases.said
    try:
        (nic,) = json.loads(done.stdout)["interfaces"]
        assert nic["addresses"][0].startswith("10.96.0.")
        before = leases.said.count("lease renewed")
        assert leases.renewed(before + RENEWALS), leases.said
        assert tapwright.reaches(SANDBOX, SERVER)
        # A client of the guest's own gets its answers, too.
        tapwright.exec(SANDBOX, "sh", "-c", ASK)
    finally:
        tapwright.delete(SANDBOX)
