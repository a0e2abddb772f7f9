"""A policy engine, as far as tests need one: ingress from pods by their labels, to ports of TCP.

No release of Debian has one. Like those that work by the packet filter of the node (kube-router,
Calico), it lets a node forward to a pod that a policy selects what the policy names, and no more.
"""

from pathlib import Path
from typing import Any

from tests.kubernetes.cluster import Cluster, Object

_TABLE = "inet policies"


def enforce(cluster: Cluster, home: Path) -> None:
    """Let each node have what all policies say now."""
    pods = cluster.control.get("pod")["items"]
    lines = [f"table {_TABLE}", f"delete table {_TABLE}", f"table {_TABLE} {{", " chain forward {"]
    lines.append("  type filter hook forward priority 0; policy accept;")
    lines.append("  ct state established,related accept")
    for policy in cluster.control.get("networkpolicy")["items"]:
        chosen = _addresses(pods, policy["spec"]["podSelector"])
        for address in chosen:
            for rule in policy["spec"]["ingress"]:
                lines += [f"  ip daddr {address} {allowed} accept" for allowed in _of(rule, pods)]
        # Of all rules for a pod one is enough.
        lines += [f"  ip daddr {address} drop" for address in chosen]
    file = home / "policies.nft"
    file.write_text("\n".join([*lines, " }", "}", ""]))
    for node in cluster.nodes:
        node.output("nft", "-f", str(file))


def lift(cluster: Cluster) -> None:
    """Take the rules away."""
    for node in cluster.nodes:
        node.run("nft", "delete", "table", *_TABLE.split())


def _of(rule: Object, pods: list[Any]) -> list[str]:
    sources = {
        address for peer in rule["from"] for address in _addresses(pods, peer["podSelector"])
    }
    ports = [port["port"] for port in rule["ports"]]
    return [f"ip saddr {source} tcp dport {port}" for source in sorted(sources) for port in ports]


def _addresses(pods: list[Any], selector: Object) -> list[str]:
    wanted = selector["matchLabels"].items()
    return [
        one["status"]["podIP"]
        for one in pods
        if wanted <= one["metadata"]["labels"].items() and "podIP" in one["status"]
    ]
