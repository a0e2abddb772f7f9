"""The reference plugins (Debian: containernetworking-plugins), and networks made of them."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tapwright.cni import Attachment, Network, Runtime, parse_network

PLUGINS = "/usr/lib/cni"
SUBNETS = {"v4": ["10.87.0.0/24"], "v6": ["fd87::/64"], "dual": ["10.87.0.0/24", "fd87::/64"]}


class Reference:
    """Networks of the real plugins, with leases, cache and runtime of their own."""

    def __init__(self, directory: Path) -> None:
        self.leases = directory / "leases"
        self.cache = directory / "cache"
        self.nets = directory / "net.d"
        self.nets.mkdir()
        self.runtime = Runtime([PLUGINS], str(self.cache))

    def ipam(self, family: str = "v4") -> dict[str, Any]:
        subnets = SUBNETS[family]
        return {
            "type": "host-local",
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
            "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets],
            "dataDir": str(self.leases),
        }

    def bridge(self, family: str = "v4", **keys: Any) -> dict[str, Any]:
        return {
            "type": "bridge",
            "bridge": "brcni",
            "isGateway": True,
            "ipam": self.ipam(family),
            **keys,
        }

    def network(self, *plugins: dict[str, Any], version: str = "1.0.0") -> Network:
        content = {"cniVersion": version, "name": "net", "plugins": plugins}
        raw = json.dumps(content).encode()
        (self.nets / "net.conflist").write_bytes(raw)
        return parse_network(raw, "net.conflist")

    def leased(self) -> list[str]:
        folder = self.leases / "net"
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return sorted(name for name in names if name[0].isdigit() or ":" in name)


def attachment(netns: str, container_id: str = "web", **options: Any) -> Attachment:
    return Attachment(container_id, "eth0", netns, **options)


def inside(netns: str, *command: str) -> str:
    """The output of a command in the namespace."""
    return output("nsenter", f"--net={netns}", *command)


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def addresses(netns: str, link: str = "eth0") -> list[str]:
    """The global addresses of an interface, with their prefixes."""
    found = json.loads(inside(netns, "ip", "-json", "address", "show", "dev", link))
    return [
        f"{info['local']}/{info['prefixlen']}"
        for entry in found
        for info in entry.get("addr_info", ())
        if info["scope"] == "global"
    ]


def links(netns: str) -> list[str]:
    return [link["ifname"] for link in json.loads(inside(netns, "ip", "-json", "link"))]
