"""Networks of other shapes than one address for each pod, and policies."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.kubernetes import policy
from tests.kubernetes.cluster import SECONDS, Cluster, Object, container, pod
from tests.kubernetes.test_services import see_each_other
from tests.kubernetes.waiting import eventually
from tests.platforms.images import PAGE, SERVE


def reaches(cluster: Cluster, client: str, address: str, port: int = 80) -> bool:
    url = f"http://{address}:{port}/"
    return cluster.exec(client, "one", "timeout", "15", "wget", "-qO-", url).stdout == PAGE


def test_policy(cluster: Cluster, runtime: str, tmp_path: Path) -> None:
    """NetworkPolicy: to a pod comes what the policy names, from its node and from another one"""
    server, friend, stranger = (f"{what}-{runtime}" for what in ("policed", "friend", "stranger"))
    last = cluster.nodes[-1].name
    serve = container("one", "sh", "-c", f"httpd -p 8080 -h /www; exec {' '.join(SERVE)}")
    wait = container("one", "sleep", "10000")
    wanted = [
        pod(server, runtime, [serve], nodeName="node1"),
        pod(friend, runtime, [wait], nodeName=last),
        pod(stranger, runtime, [wait], nodeName="node1"),
    ]
    cluster.control.apply(*wanted)
    try:
        for name in (server, friend, stranger):
            assert eventually(partial(cluster.pod_is_ready, name), SECONDS), cluster.why(name)
        address = cluster.address(server)
        for client in (friend, stranger):
            for port in (80, 8080):
                assert eventually(partial(reaches, cluster, client, address, port), SECONDS)
        cluster.control.apply(only(f"only-{runtime}", server, friend))
        policy.enforce(cluster, tmp_path)
        assert reaches(cluster, friend, address)
        assert not reaches(cluster, friend, address, 8080)
        assert not reaches(cluster, stranger, address)
        # Who is policed still reaches others: the answers are of connections that it has made.
        cluster.said(friend, "one", "sh", "-c", f"{' '.join(SERVE)} >/dev/null 2>&1 &")
        assert eventually(partial(reaches, cluster, server, cluster.address(friend)), SECONDS)
    finally:
        policy.lift(cluster)
        cluster.delete("networkpolicy", f"only-{runtime}")
        cluster.delete("pod", server, friend, stranger)


def only(name: str, server: str, client: str) -> Object:
    ingress = {
        "from": [{"podSelector": {"matchLabels": {"app": client}}}],
        "ports": [{"port": 80, "protocol": "TCP"}],
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "podSelector": {"matchLabels": {"app": server}},
            "policyTypes": ["Ingress"],
            "ingress": [ingress],
        },
    }


def test_further_interfaces(cluster: Cluster, runtime: str) -> None:
    """Further interfaces, as by Multus: a bridge of the node, and a macvlan to another node"""
    first, last = cluster.nodes[0].name, cluster.nodes[-1].name
    places = {f"several-a-{runtime}": first, f"several-b-{runtime}": first}
    far = f"several-c-{runtime}"
    serve = container("one", *SERVE)
    wanted = [
        pod(name, f"several-{runtime}", [serve], nodeName=node)
        for name, node in {**places, far: last}.items()
    ]
    cluster.control.apply(*wanted)
    try:
        for name in (*places, far):
            assert eventually(partial(cluster.pod_is_ready, name), SECONDS), cluster.why(name)
        one, other = places
        assert " mtu 1400 " in cluster.said(one, "one", "ip", "link", "show", "net1")
        assert eventually(partial(reaches, cluster, one, cluster.address(other)), SECONDS)
        for client, server, interface in (
            (one, other, "net1"),
            (one, other, "net2"),
            (far, one, "net2"),
        ):
            address = of_interface(cluster, server, interface)
            assert eventually(partial(reaches, cluster, client, address), SECONDS), interface
    finally:
        cluster.delete("pod", *places, far)


def of_interface(cluster: Cluster, pod: str, interface: str) -> str:
    said = cluster.said(pod, "one", "ip", "-4", "address", "show", interface)
    return said.partition("inet ")[2].partition("/")[0]


def test_flannel(cluster: Cluster, runtime: str) -> None:
    """As flannel: a bridge on each node, VXLAN between them, and the MTU of that"""
    with pods_of(cluster, "flannel", runtime) as (server, near, far):
        assert " mtu 1450 " in cluster.said(far, "one", "ip", "link", "show", "eth0")
        crosses(cluster, server, near, far)


def test_calico(cluster: Cluster, runtime: str) -> None:
    """As Calico: a /32 address, a gateway that no interface has, a policy at the host's end"""
    with pods_of(cluster, "calico", runtime) as (server, near, far):
        address = cluster.address(server)
        assert "default via 169.254.1.1 " in cluster.said(server, "one", "ip", "route")
        crosses(cluster, server, near, far)
        node = cluster.nodes[0]
        # "10.246.1.2 dev cali12345678901 src …"
        end = node.output("ip", "route", "get", address).split()[2]
        assert end.startswith("cali")
        head = "add rule inet calico forward oifname", end
        node.output("nft", "add table inet calico")
        node.output("nft", "add chain inet calico forward { type filter hook forward priority 0; }")
        try:
            for rule in (f"ip saddr {cluster.address(far)} accept", "drop"):
                node.output("nft", *head, rule)
            assert reaches(cluster, far, address)
            assert not reaches(cluster, near, address)
        finally:
            node.output("nft", "delete table inet calico")


@contextmanager
def pods_of(cluster: Cluster, network: str, runtime: str) -> Iterator[tuple[str, str, str]]:
    """A server, a pod on its node and one on another, in a network of their own."""
    names = [f"{network}-{one}-{runtime}" for one in ("server", "near", "far")]
    serve = f"dd if=/dev/zero of=/www/big bs=1M count=2; exec {' '.join(SERVE)}"
    one = container("one", "sh", "-c", serve)
    nodes = cluster.nodes[0].name, cluster.nodes[0].name, cluster.nodes[-1].name
    cluster.control.apply(
        *(
            pod(name, f"{network}-{runtime}", [one], nodeName=node)
            for name, node in zip(names, nodes, strict=True)
        )
    )
    try:
        for name in names:
            assert eventually(partial(cluster.pod_is_ready, name), SECONDS), cluster.why(name)
        server, near, far = names
        yield server, near, far
    finally:
        cluster.delete("pod", *names)


def crosses(cluster: Cluster, server: str, near: str, far: str) -> None:
    """Both reach the server, also with packets as large as possible, and the server sees their own
    addresses."""
    address = cluster.address(server)
    for client in (near, far):
        assert eventually(partial(reaches, cluster, client, address), SECONDS), client
        big = cluster.said(client, "one", "sh", "-c", f"wget -qO- http://{address}/big | wc -c")
        assert int(big) == 2 << 20
        see_each_other(cluster, client, cluster.address(client), server, address)
