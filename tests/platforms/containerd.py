"""containerd with directories, socket and configuration of its own (1.6), and its client `ctr`."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.host import eventually
from tests.platforms import images
from tests.sandboxes import PLUGINS

IMAGE = "localhost/busybox:latest"
_PAUSE = "localhost/pause:latest"
NETWORK = "pods"

_CONFIG = """\
version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = [
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{home}/socket"
[plugins."io.containerd.internal.v1.opt"]
path = "{home}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{home}/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.tapwright]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.tapwright.options]
BinaryName = "{runtime}"
Root = "{home}/tapwright"
"""
# `ctr run --cni` looks in /etc/cni/net.d and /opt/cni/bin, and nowhere else. So does since 1.7 `ctr
# tasks kill`, which takes the network away.
_OWN_CNI = """\
mkdir -p /etc/cni && mount --bind "$0" /etc/cni && mount -t tmpfs cni /opt && mkdir /opt/cni &&
ln -s {plugins} /opt/cni/bin && exec "$@"
"""


class Containerd:
    """The daemon, from its start to its end."""

    def __init__(self, home: Path, runtime: Path, layer: Path) -> None:
        self.home = home
        self.socket = home / "socket"
        self.runtime = runtime
        self.root = home / "tapwright"
        """What the runtime is given as its root: a directory a namespace in it."""
        self._cni = home / "cni"
        self._write_network()
        (home / "config.toml").write_text(
            _CONFIG.format(home=home, image=_PAUSE, plugins=PLUGINS, runtime=runtime)
        )
        self._log = (home / "log").open("w")
        self._process = subprocess.Popen(
            ["containerd", "--config", home / "config.toml"], stdout=self._log, stderr=self._log
        )
        try:
            assert eventually(lambda: self.ctr("version").returncode == 0), self.log()
            commands = {IMAGE: ["sh"], _PAUSE: ["sleep", "infinity"]}
            archive = images.oci_archive(layer, commands)
            for namespace in ("default", "k8s.io"):
                self.output("--namespace", namespace, "image", "import", str(archive))
        except BaseException:
            self.stop()
            raise

    @property
    def version(self) -> str:
        """As in "1.7.24"."""
        lines = self.output("version").partition("Server:")[2].splitlines()
        (line,) = (line for line in lines if "Version:" in line)
        return line.split()[-1].removeprefix("v")

    def ctr(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the client to its end; text in and out."""
        options = {"capture_output": True, "text": True, "timeout": 120, **options}
        return subprocess.run(self.command(*words), check=False, **options)

    def command(self, *words: str) -> list[str]:
        own = ["unshare", "--mount", "sh", "-c", _OWN_CNI.format(plugins=PLUGINS), str(self._cni)]
        return [*own, "ctr", "--address", str(self.socket), *words]

    def output(self, *words: str, **options: Any) -> str:
        """Run the client, insist on success, return its stdout."""
        done = self.ctr(*words, **options)
        assert done.returncode == 0, f"ctr {words}: {done.returncode} {done.stderr}"
        return str(done.stdout)

    def run_words(self, *words: str) -> list[str]:
        """`ctr run` with our runtime on the CNI network, and what follows."""
        binary = ["--runtime", "io.containerd.runc.v2", "--runc-binary", str(self.runtime)]
        return ["run", "--cni", *binary, "--runc-root", str(self.root), *words]

    @contextmanager
    def foreground(self, name: str, *command: str) -> Iterator[subprocess.Popen[str]]:
        """A container with its client, which alone takes the network away when it ends: for what
        it has detached from, nobody does."""
        words = self.command(*self.run_words("--rm", IMAGE, name, *command))
        pipe = subprocess.PIPE
        client = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        try:
            assert eventually(lambda: self._runs(name) or client.poll() is not None)
            assert client.poll() is None, client.communicate()[1]
            yield client
        finally:
            self.ctr("tasks", "kill", "--signal", "SIGKILL", name)
            client.communicate(timeout=60)

    def _runs(self, name: str) -> bool:
        return self.tasks().get(name, (0, ""))[1] == "RUNNING"

    def end(self, container: str) -> None:
        """As a person ends one, whatever is left of it."""
        self.ctr("tasks", "delete", "--force", container)
        self.output("containers", "delete", container)

    def remove_all(self) -> None:
        for container in self.output("containers", "ls", "--quiet").split():
            self.end(container)

    def tasks(self, namespace: str = "default") -> dict[str, tuple[int, str]]:
        """Container → (pid, status)."""
        lines = self.output("--namespace", namespace, "tasks", "ls").splitlines()[1:]
        return {name: (int(pid), status) for name, pid, status in map(str.split, lines)}

    def leased(self) -> list[str]:
        """The addresses of the CNI network that are given out."""
        directory = self.home / "leases" / NETWORK
        files = os.listdir(directory) if directory.exists() else []
        return sorted(entry for entry in files if entry[0].isdigit())

    def log(self) -> str:
        return (self.home / "log").read_text()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self._log.close()

    def _write_network(self) -> None:
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": "10.97.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.home / "leases"),
        }
        bridge = {
            "type": "bridge",
            "bridge": f"br-{NETWORK}",
            "isGateway": True,
            # Its rules stay for good when the network is removed after the process has ended, as
            # `ctr` does it, whatever the runtime.
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": ipam,
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        # It does nothing for a pod without annotations for it.
        bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
        plugins = [bridge, portmap, bandwidth]
        content = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins}
        directory = self._cni / "net.d"
        directory.mkdir(parents=True)
        (directory / "10-pods.conflist").write_text(json.dumps(content))
