"""The command as a user runs it, and the networks that it is pointed at."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tapwright import config
from tapwright.cni import Attachment, Runtime, find_network
from tapwright.linux import mounts, netns
from tapwright.sandbox import client, lifecycle, planning
from tapwright.state import registry
from tapwright.state.registry import Sandbox
from tests import forked
from tests.host import eventually, one_ping

PLUGINS = "/usr/lib/cni"
COMMAND = str(Path(sys.executable).with_name("tapwright"))


class Networks:
    """A directory of network configurations. Their leases are kept beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "net.d"
        self.leases = directory / "leases"
        self._cache = directory / "cache"
        self.directory.mkdir()
        self.leases.mkdir()
        self.add_bridge("dual", ["10.91.0.0/24", "fd91::/64"], published=True)
        self.add_bridge("small", ["10.92.0.0/24"], mtu=1400)
        self.add_bridge("jumbo", ["10.93.0.0/24"], mtu=9000, dns=["10.93.0.1"])
        self.add_bridge("six", ["fd94::/64"])
        self.add_bridge("tiny", ["10.95.0.0/30"])

    def add_bridge(
        self,
        name: str,
        subnets: list[str],
        mtu: int = 1500,
        published: bool = False,
        dns: list[str] | None = None,
    ) -> None:
        """Write a network of the reference bridge plugin, and use it once: the plugins keep
        bridges and empty chains for good, which is theirs and no fault of ours."""
        routes = [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets]
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
            "routes": routes,
            "dataDir": str(self.leases),
        }
        bridge: dict[str, Any] = {
            "type": "bridge",
            "bridge": f"br-{name}",
            "isGateway": True,
            "hairpinMode": True,
            "mtu": mtu,
            "ipam": ipam,
        }
        if dns:
            bridge["dns"] = {"nameservers": dns, "search": ["example.org"]}
        plugins = [bridge]
        if published:
            plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
        self.write(name, plugins)
        self._warm(name, published)

    def write(self, name: str, plugins: list[dict[str, Any]], version: str = "1.0.0") -> None:
        content = {"cniVersion": version, "name": name, "plugins": plugins}
        (self.directory / f"{name}.conflist").write_text(json.dumps(content))

    def leased(self, name: str) -> list[str]:
        """The addresses of a network that are given out."""
        directory = self.leases / name
        files = os.listdir(directory) if directory.exists() else []
        return sorted(entry for entry in files if entry[0].isdigit() or ":" in entry)

    def _warm(self, name: str, published: bool) -> None:
        path = netns.path_of(f"twtest-warm-{os.getpid()}")
        ports = {"portMappings": [{"hostPort": 9, "containerPort": 9, "protocol": "tcp"}]}
        attachment = Attachment("warm", "eth0", path, capability_args=ports if published else {})
        network = find_network(self.directory, name)
        runtime = Runtime([PLUGINS], str(self._cache))
        netns.create(path)
        try:
            runtime.add(network, attachment)
        finally:
            runtime.delete(network, attachment)
            netns.remove(path)


class Tapwright:
    """Runs the installed command as a process of its own (`forked`). Its guests start from the
    templates in `templates`, by default a directory of its own."""

    def __init__(self, directory: Path, networks: Networks, templates: Path | None = None) -> None:
        self.program = COMMAND
        self.root = directory / "root"
        self.cache = directory / "cache"
        self.root.mkdir()
        self.cache.mkdir()
        self._directory = directory
        self._networks = networks
        self._configurations = 0
        self.templates = templates or directory / "template"
        self.config = self.configuration(template=self.templates)

    def configuration(
        self,
        runtime: Any = None,
        template: Any = None,
        plugins: Any = PLUGINS,
        spares: int = 0,
        **qemu: Any,
    ) -> Path:
        """A configuration file with these keys in [runtime] and [hypervisor.qemu]; sandboxes start
        from templates in the directory `template`, if that is given, and find their plugins in
        `plugins`, too; as many `spares` of each kind wait for them."""
        self._configurations += 1
        path = self._directory / f"configuration-{self._configurations}.toml"
        factory = {
            "enable_template": bool(template),
            "template_path": str(template or ""),
            "vm_cache_number": spares,
        }
        path.write_text(
            "[cni]\n"
            f'conf_dir = "{self._networks.directory}"\n'
            f'bin_dirs = ["{PLUGINS}", "{plugins}"]\n'
            f'cache_dir = "{self.cache}"\n'
            f"[factory]\n{_toml(factory)}"
            f"[runtime]\n{_toml(runtime or {})}"
            f"[hypervisor.qemu]\n{_toml(qemu)}"
        )
        return path

    def command(self, *words: str, config: Path | None = None) -> list[str]:
        return [
            self.program,
            "--config",
            str(config or self.config),
            "--root",
            str(self.root),
            *words,
        ]

    def run(
        self, *words: str, config: Path | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; text in and out."""
        options = {"capture_output": True, "text": True, "timeout": 120, **options}
        return forked.run(self.command(*words, config=config), **options)

    def start(self, *words: str, config: Path | None = None) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*words, config=config), stdout=pipe, stderr=pipe, text=True
        )

    def json(self, *words: str) -> Any:
        """Run, insist on success, read the answer."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def exec(self, sandbox: str, *argv: str, **options: Any) -> str:
        """Run a command in the guest, insist on success, return its stdout."""
        done = self.run("sandbox", "exec", sandbox, "--", *argv, **options)
        assert done.returncode == 0, f"{argv}: {done.returncode} {done.stderr}"
        return str(done.stdout)

    def reaches(self, sandbox: str, address: str, *options: str) -> bool:
        """Whether a guest is answered, as `answers_ping`."""
        command = one_ping(address, *options)
        return eventually(lambda: self.exec_with_status(sandbox, *command).returncode == 0)

    def exec_with_status(self, sandbox: str, *argv: str, **options: Any) -> Any:
        return self.run("sandbox", "exec", sandbox, "--", *argv, **options)

    def run_with_share(self, name: str) -> Sandbox:
        """A sandbox whose guest can be shown files of the host."""
        spec = planning.plan(config.load(str(self.config)), planning.Wish(share=True), print)
        lifecycle.run(self.root, name, spec)
        return registry.find(self.root, name)

    def delete(self, sandbox: str) -> None:
        done = self.run("sandbox", "delete", sandbox)
        assert done.returncode == 0, done.stderr

    def names(self) -> set[str]:
        return {sandbox.id for sandbox in registry.listing(self.root)}

    def delete_all(self) -> None:
        for name in self.names():
            self.delete(name)


def _toml(keys: dict[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


def pids_of(sandbox: dict[str, Any]) -> tuple[int, int]:
    """(supervisor, QEMU) of a running sandbox."""
    supervisor = sandbox["supervisor_pid"]
    return supervisor, child_of(supervisor, "qemu-system")


def child_of(supervisor: int, word: str) -> int:
    """The child of a supervisor that has the word in its command."""
    (found,) = children_of(supervisor, word)
    return found


def children_of(pid: int, word: str) -> list[int]:
    """The children of a process that have the word in their commands. Either may end meanwhile."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):
                if word in Path(f"/proc/{child}/cmdline").read_text():
                    found.append(int(child))
    return found


def ended(pid: int) -> bool:
    """Whether a process is gone, or nothing but its exit status is left."""

    def gone() -> bool:
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            # Its other threads may end later, and have its files open until then.
            return "State:\tZ" in status and "Threads:\t1\n" in status
        return True

    return eventually(gone)


def show(
    sandbox: Sandbox,
    container: str,
    source: Path,
    name: str = "root",
    read_only: bool = False,
    **more: Any,
) -> str:
    """Show a file or directory of the host to a guest; the path that it has there. For `more` see
    `client.Supervisor.share`."""
    fd = mounts.clone(str(source), read_only=read_only)
    try:
        return client.of(sandbox).share(container, {name: fd}, **more)[name]
    finally:
        os.close(fd)
