"""A namespace that a guest follows: networks are made in it, and both are compared."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tapwright.cni import Attachment, Runtime, parse_network
from tapwright.endpoint import discovery
from tapwright.linux import entries, netns, settings
from tapwright.linux.netlink import Netlink
from tests.host import eventually
from tests.parity import comparison, networks, probe
from tests.parity.networks import Row
from tests.sandboxes import PLUGINS

BRIDGE = "br-par"

Json = Any


class Guest(Protocol):
    """What follows a namespace."""

    def sync(self) -> None: ...

    def probe(self, wanted: Json) -> Json: ...

    def log(self) -> str: ...


class Networked:
    """The namespace at `path`, which a guest follows, and what is made in it. Those that have one
    `directory` get other addresses of CNI plugins."""

    def __init__(self, path: str, guest: Guest, directory: Path) -> None:
        self.path, self.guest = path, guest
        self.name = Path(self.path).name
        self.directory = directory
        self._runtime = Runtime([PLUGINS], str(directory / "cache"))
        self._leases = str(directory / "leases")
        self._settings: dict[str, str] = {}
        self._attached: list[tuple[Any, Attachment]] = []
        self._defaults = settings.defaults()
        with netns.entered(path):
            # It would make addresses wait in the namespace, and the guest does not wait.
            for scope in ("all", "default"):
                Path(settings.ROOT, f"ipv6/conf/{scope}/accept_dad").write_text("0")

    def make(self, row: Row) -> None:
        for ifname, plugins in row.cni:
            self._attach(row, ifname, plugins)
        for name in row.interfaces:
            ip(f"link add h-{name} type veth peer name {name} netns {self.name}")
            state = "down" if name in row.without_carrier else "up"
            ip(f"link set h-{name} master {BRIDGE} {state}")
        for path, value in row.settings.items():
            self.set(path, value)
        for name in row.interfaces:
            ip(f"-n {self.name} link set {name} up")
        for command in row.ip:
            self.run(command)
        for name in row.lose_carrier:
            eventually(partial(self._has_link_local, name))
            ip(f"link set h-{name} down")

    def _has_link_local(self, name: str) -> bool:
        return "fe80" in ip(f"-n {self.name} address show {name}")

    def run(self, command: str) -> None:
        """A command of `ip` in the namespace."""
        ip(f"-n {self.name} {command}")

    def _attach(self, row: Row, ifname: str, plugins: networks.Plugins) -> None:
        name = "".join(c if c.isalnum() else "-" for c in row.name) + f"-{ifname}"
        content = {"cniVersion": "1.0.0", "name": name, "plugins": plugins}
        for plugin in plugins:
            if plugin.get("ipam", {}).get("type") == "host-local":
                plugin["ipam"]["dataDir"] = self._leases
        network = parse_network(json.dumps(content).encode(), name)
        ports = {"portMappings": list(row.ports)} if row.ports else {}
        attachment = Attachment(self.name, ifname, self.path, capability_args=ports)
        self._attached.append((network, attachment))
        self._runtime.add(network, attachment)

    def set(self, path: str, value: str) -> None:
        with netns.entered(self.path):
            file = Path(settings.ROOT, path)
            self._settings.setdefault(path, file.read_text())
            file.write_text(value)

    def clear(self) -> None:
        """Make it as it was: what is left is what is carried."""
        while self._attached:
            self._runtime.delete(*self._attached.pop())
        for link in json.loads(ip("-json link show type veth")):
            if link["ifname"].startswith("h-"):
                ip(f"link delete {link['ifname']}")
        with netns.entered(self.path), Netlink() as nl:
            for address in discovery.scan(nl).loopback.addresses:
                ip(f"-n {self.name} address delete {address} dev lo")
            left = sorted(discovery.scan(nl).entries, key=entries.rank, reverse=True)
            nl.replay(
                b"".join(
                    entries.message(entry, number, {d: d for d in entry.devices}, remove=True)
                    for number, entry in enumerate(left)
                )
            )
            left = discovery.scan(nl).entries
            assert not left, left
            for path, value in reversed(self._settings.items()):
                with suppress(FileNotFoundError):  # it went with its interface
                    Path(settings.ROOT, path).write_text(value)
        self._settings.clear()
        self.guest.sync()

    def tried(self, row: Row) -> dict[str, list[str]]:
        """Make a network, and take it away; return the differences, by column."""
        try:
            self.make(row)
            self.guest.sync()
            return self.compared()
        finally:
            self.clear()

    def interfaces(self) -> list[str]:
        """Loopback, and what can be a NIC: but for Tapwright's own device beside it."""
        links = json.loads(ip(f"-n {self.name} -json link show"))
        return [
            "lo",
            *(
                one["ifname"]
                for one in links
                if one.get("link_type") == "ether" and not one["ifname"].endswith("_kata")
            ),
        ]

    def compared(self) -> dict[str, list[str]]:
        """The differences when they have come to an end, for both kernels do some of it later."""
        found: dict[str, list[str]] = {}

        def is_same() -> bool:
            found.clear()
            found.update(self._compared())
            return not any(unexplained(found))

        eventually(is_same)
        return found

    def _compared(self) -> dict[str, list[str]]:
        names = self.interfaces()
        with netns.entered(self.path):
            special = list(settings.wide(self._defaults))
        wanted = {"interfaces": names, "settings": special}
        here = probed(self.path, wanted)
        there = self.guest.probe(wanted)
        return comparison.differences(comparison.seen(here, names), comparison.seen(there, names))


def ip(command: str) -> str:
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"
    return done.stdout


def has_kind(kind: str) -> bool:
    done = subprocess.run(
        ["ip", "link", "add", "try0", "type", kind, *(["table", "9"] if kind == "vrf" else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    subprocess.run(["ip", "link", "delete", "try0"], capture_output=True, check=False)
    return "Unknown device type" not in done.stderr


def probed(path: str, wanted: Json) -> Json:
    """What a program sees in a namespace of this host."""
    with netns.entered(path):
        return json.loads(json.dumps(probe.told({**wanted, "ip": ["ip"]})))


@contextmanager
def host_side() -> Iterator[None]:
    """The host's side of all networks."""
    ip(f"link add {BRIDGE} type bridge")
    ip(f"link set {BRIDGE} mtu 65535")
    ip(f"link set {BRIDGE} up")
    # For plugins that sit on an interface of the host's.
    ip("link add up0 type veth peer name down0")
    ip(f"link set down0 master {BRIDGE} up")
    ip("link set up0 up")
    try:
        yield
    finally:
        ip("link delete up0")
        ip(f"link delete {BRIDGE}")


def unexplained(found: dict[str, list[str]]) -> list[str]:
    return [one for told in found.values() for one in told if comparison.reason(one) is None]


def why_not(row: Row) -> str:
    """Why this kernel can't have such a network; empty where it can."""
    missing = [kind for kind in row.needs if not has_kind(kind)]
    return f"not tried: the kernel has no {missing[0]}" if missing else ""
