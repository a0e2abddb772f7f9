"""A whole Open vSwitch of our own, with DPDK, in a directory of its own and the caller's network
namespace. Its datapath is the one in userspace, so no kernel module and no hugepage is needed."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.host import eventually

VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"

# Telemetry and the shared configuration would leave files in /run/dpdk.
_DPDK = "--no-pci --no-telemetry --no-shconf --no-huge --legacy-mem -m 512"


def _is_running(pid: int) -> bool:
    """Not when only its exit status is left."""
    try:
        return bool(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return False


class OpenVSwitch:
    """`directory` may not be deep: its sockets must have room in an address."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._database = f"unix:{directory}/db.sock"
        self._environment = os.environ | {
            f"OVS_{name}DIR": str(directory) for name in ("RUN", "DB", "LOG")
        }

    def start(self) -> None:
        self._run("ovsdb-tool", "create", "conf.db", SCHEMA)
        self._run(
            "ovsdb-server",
            "conf.db",
            f"--remote=punix:{self.directory}/db.sock",
            *self._daemon("ovsdb"),
        )
        self.vsctl("--no-wait", "init")
        self.vsctl(
            *("--no-wait", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true"),
            f"other_config:dpdk-extra={_DPDK}",
            "other_config:per-port-memory=true",
            # Sleep when there is nothing to do, for a test has few processors.
            "other_config:pmd-maxsleep=200",
        )
        self._run(VSWITCHD, self._database, *self._daemon("vswitchd"))
        assert self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized") == "true"

    def stop(self) -> None:
        for name, options in (("vswitchd", ["--cleanup"]), ("ovsdb", [])):
            with suppress(subprocess.CalledProcessError):
                control = self.directory / f"{name}.ctl"
                pid = int((self.directory / f"{name}.pid").read_text())
                self._run("ovs-appctl", "-t", str(control), "exit", *options)
                eventually(lambda pid=pid: not _is_running(pid))  # type: ignore[misc]

    def vsctl(self, *words: str) -> str:
        return self._run("ovs-vsctl", f"--db={self._database}", "--timeout=60", *words).strip()

    def appctl(self, *words: str) -> str:
        return self._run("ovs-appctl", "-t", str(self.directory / "vswitchd.ctl"), *words)

    def run_tool(self, *command: str) -> str:
        """A program that finds the switch by OVS_RUNDIR."""
        return self._run(*command)

    def add_bridge(self, name: str, address: str) -> None:
        self.vsctl("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")
        for command in (f"address add {address} dev {name}", f"link set {name} up"):
            subprocess.run(["ip", *command.split()], check=True)

    def _daemon(self, name: str) -> list[str]:
        return [
            "--detach",
            "--no-chdir",
            f"--pidfile={self.directory}/{name}.pid",
            f"--unixctl={self.directory}/{name}.ctl",
            f"--log-file={self.directory}/{name}.log",
        ]

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self._environment,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return done.stdout
