"""Where measurements are made: state, networks and templates of their own, in a namespace that
stands for the host. Nothing of it is left afterwards.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tapwright import config
from tapwright.config import Config
from tapwright.linux import libc, links
from tapwright.linux.netlink import Netlink
from tapwright.sandbox import lifecycle, spares
from tapwright.sandbox.planning import Wish, plan
from tapwright.state import registry
from tapwright.state.record import Spec

COMMAND = str(Path(sys.executable).with_name("tapwright"))
PLUGINS = "/usr/lib/cni"
NETWORK, BRIDGE, SUBNET = "bench", "br-bench", "10.86.0.0/16"

# On the disk where sandboxes are kept by default: their journal is written through to it.
_BESIDE = "/var/lib"


class Place:
    """A directory with a network, configurations, templates, and roots of sandboxes."""

    def __init__(self, directory: Path, templates: Path | None = None) -> None:
        self.directory = directory
        self.networks = directory / "net.d"
        self.leases = directory / "leases"
        self.cache = directory / "cni"
        self.templates = templates or directory / "templates"
        self.networks.mkdir()
        self._write_network()
        template = {
            "enable_template": True,
            "template_path": str(self.templates),
            "vm_cache_number": 0,
        }
        self.spared = self._configuration("spared", factory={**template, "vm_cache_number": 1})
        self.usual = self._configuration("usual", factory=template)
        self.monitored = self._configuration(
            "monitored", factory=template, netmon={"enable_netmon": True}
        )
        self.spared_monitored = self._configuration(
            "spared-monitored",
            factory={**template, "vm_cache_number": 1},
            netmon={"enable_netmon": True},
        )
        self.cold = self._configuration("cold", factory={"enable_template": False})

    def root(self, name: str) -> str:
        """Where sandboxes are kept; those of one root are beside each other."""
        return str(self.directory / "roots" / name)

    def command(self, root: str, *words: str, configuration: Path | None = None) -> list[str]:
        """The command line of `tapwright WORDS`."""
        return [COMMAND, "--config", str(configuration or self.usual), "--root", root, *words]

    def config(self, configuration: Path | None = None) -> Config:
        return config.load(str(configuration or self.usual))

    def spec(self, networks: Sequence[str] = (), configuration: Path | None = None) -> Spec:
        """What to run: by default a sandbox without a network, from a template."""
        wish = Wish(networks=[(name, "") for name in networks])
        return plan(self.config(configuration), wish, say)

    def delete_all(self) -> None:
        for root in (self.directory / "roots").glob("*"):
            for sandbox in registry.listing(root):
                lifecycle.delete(root, sandbox.id, force=True)
            spares.drop(root)

    def _write_network(self) -> None:
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": SUBNET}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.leases),
        }
        bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipam": ipam}
        content = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [bridge]}
        (self.networks / f"{NETWORK}.conflist").write_text(json.dumps(content))

    def _configuration(self, name: str, **sections: dict[str, Any]) -> Path:
        cni = {
            "conf_dir": str(self.networks),
            "bin_dirs": [PLUGINS],
            "cache_dir": str(self.cache),
        }
        path = self.directory / f"{name}.toml"
        path.write_text("".join(_section(*item) for item in {"cni": cni, **sections}.items()))
        return path


@contextmanager
def private(templates: Path | None = None) -> Iterator[Place]:
    """A place for the length of the block; its templates are elsewhere if a directory is given, and
    stay."""
    with tempfile.TemporaryDirectory(prefix="tapwright-bench-", dir=_BESIDE) as directory:
        place = Place(Path(directory), templates)
        try:
            yield place
        finally:
            place.delete_all()


def output(command: Sequence[str]) -> bytes:
    """What a command prints. When this process is to end, the command is, too, and takes back what
    it has made; `subprocess.run` would kill it. Raises CalledProcessError."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return printed


def new_host() -> None:
    """Put this process into a fresh network namespace, which is its host from here on."""
    libc.unshare(libc.CLONE_NEWNET)
    with Netlink() as nl:
        links.set_up(nl, 1)


def make_bridge(name: str, address: str) -> None:
    """A bridge whose MAC address does not change with its ports."""
    run(f"ip link add {name} address 02:00:00:00:00:fe type bridge")
    run(f"ip address add {address} dev {name}")
    run(f"ip link set {name} up")


def run(command: str) -> None:
    """Run a command, of words without spaces. Raises CalledProcessError."""
    subprocess.run(command.split(), check=True)


def say(text: str) -> None:
    """Tell whoever waits what is going on; stdout is for the answer."""
    print(text, file=sys.stderr, flush=True)


def _section(name: str, keys: dict[str, Any]) -> str:
    # JSON's strings, numbers, booleans and lists of strings are TOML's too.
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
