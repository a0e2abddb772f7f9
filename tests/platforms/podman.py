"""podman with storage, networks and state of its own: over netavark, or over CNI where the release
has that (4.3; podman 5 is built without)."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.platforms.terminal import Terminal
from tests.sandboxes import PLUGINS

_CONFIG = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "{backend}"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{home}/net.d"
default_network = "podman"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[engine.runtimes]
tapwright = ["{runtime}"]
runc = ["/usr/bin/runc"]
"""
_NETWORKS = {"podman": "10.88.0", "web": "10.98.0", "second": "10.99.0"}
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{home}/storage"
runroot = "{home}/run"
"""


class Podman:
    """Runs the command against a directory of its own, where nothing of another podman is."""

    def __init__(self, home: Path, runtime: Path) -> None:
        self.home = home
        self._environment = os.environ | {
            "CONTAINERS_CONF": str(home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }
        (home / "net.d").mkdir()
        # podman 4 may have both.
        version = subprocess.run(
            ["podman", "--version"], capture_output=True, text=True, check=True
        )
        backend = "cni" if " version 4." in version.stdout else "netavark"
        self.has_name_server = backend == "netavark"
        (home / "containers.conf").write_text(
            _CONFIG.format(home=home, backend=backend, plugins=PLUGINS, runtime=runtime)
        )
        (home / "storage.conf").write_text(_STORAGE.format(home=home))
        for name, prefix in _NETWORKS.items():
            if backend == "cni":
                self._write_network(name, prefix)
            elif name != "podman":  # which is there by itself
                self.output("network", "create", "--subnet", f"{prefix}.0/24", name)

    def command(self, *words: str, runtime: str = "tapwright") -> list[str]:
        places = ("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "tmp")
        options = [word for option, name in places for word in (option, str(self.home / name))]
        return ["podman", *options, "--runtime", runtime, *words]

    def run(
        self, *words: str, runtime: str = "tapwright", **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; text in and out."""
        options = {"capture_output": True, "text": True, "timeout": 120, **options}
        command = self.command(*words, runtime=runtime)
        return subprocess.run(command, check=False, env=self._environment, cwd=self.home, **options)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen(
            self.command(*words), env=self._environment, cwd=self.home, **options
        )

    def output(self, *words: str, **options: Any) -> str:
        """Run, insist on success, return its stdout."""
        done = self.run(*words, **options)
        assert done.returncode == 0, f"podman {words}: {done.returncode} {done.stderr}"
        return str(done.stdout)

    def terminal(self, *words: str) -> Terminal:
        """Run in a terminal of 33 rows and 99 columns."""
        return Terminal(self.command(*words), 33, 99, env=self._environment, cwd=self.home)

    def inspect(self, container: str) -> Any:
        return json.loads(self.output("inspect", container))[0]

    def end(self, container: str) -> None:
        """As a person ends one. Podman 5 does it at the second time when somebody killed its
        monitor, whatever the runtime: at the first it finds that out."""
        words = "rm", "--force", "--time", "0", container
        if "conmon exited prematurely" in self.run(*words).stderr:
            self.output(*words)
        assert self.run("container", "exists", container).returncode == 1

    def remove_all(self) -> None:
        self.run("pod", "rm", "--all", "--force")
        self.run("rm", "--all", "--force", "--time", "0")

    def _write_network(self, name: str, prefix: str) -> None:
        """As `podman network create` writes them, but for the place of the leases."""
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": f"{prefix}.0/24", "gateway": f"{prefix}.1"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.home / "leases"),
        }
        bridge = {
            "type": "bridge",
            "bridge": f"cni-{name}",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": ipam,
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        plugins = [bridge, portmap, {"type": "firewall"}, {"type": "tuning"}]
        content = {"cniVersion": "0.4.0", "name": name, "plugins": plugins}
        (self.home / "net.d" / f"{name}.conflist").write_text(json.dumps(content))
