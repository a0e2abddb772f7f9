"""Services: kube-proxy's addresses and ports, and their names."""

import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from tests.kubernetes.cluster import SECONDS, Cluster, Object, container, pod
from tests.kubernetes.node import Node
from tests.kubernetes.waiting import eventually
from tests.platforms.images import SERVE


@pytest.fixture(scope="module")
def served(cluster: Cluster, runtime: str) -> Iterator[str]:
    """Two servers behind a service of each kind, and a client; the runtime's name."""
    tell = container("one", "sh", "-c", f"hostname >/www/index.html; exec {' '.join(SERVE)}")
    names = [f"{runtime}-{number}" for number in "ab"]
    servers = []
    for name, node in zip(names, [cluster.nodes[0], cluster.nodes[-1]], strict=True):
        server = pod(name, runtime, [tell], nodeName=node.name)
        server["metadata"]["labels"] = {"app": runtime}
        servers.append(server)
    client = f"{runtime}-client"
    cluster.control.apply(
        service(runtime),
        service(f"{runtime}-port", type="NodePort"),
        service(f"{runtime}-headless", clusterIP="None"),
        service(f"{runtime}-sticky", sessionAffinity="ClientIP"),
        service(f"{runtime}-dual", ipFamilyPolicy="RequireDualStack"),
        *servers,
        pod(client, runtime, [container("one", "sleep", "10000")], nodeName="node1"),
    )
    try:
        for name in (*names, client):
            assert eventually(partial(cluster.pod_is_ready, name), SECONDS), cluster.why(name)
        yield runtime
    finally:
        kinds = "", "-port", "-headless", "-sticky", "-dual"
        cluster.delete("service", *(f"{runtime}{kind}" for kind in kinds))
        cluster.delete("pod", *names, client)


def service(name: str, **spec: object) -> Object:
    labels = {"app": name.partition("-")[0]}
    ports = [{"name": "http", "port": 80, "targetPort": 80}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": labels, "ports": ports, **spec},
    }


def reaches_both(cluster: Cluster, runtime: str, url: str) -> bool:
    """As a pod sees it, in some tries: 2 of 20 that are all the same one are one in 500 000."""
    script = f"for n in $(seq 20); do timeout 20 wget -qO- {url} || break; done"
    found = cluster.exec(f"{runtime}-client", "one", "sh", "-c", script).stdout.split()
    return set(found) == {f"{runtime}-a", f"{runtime}-b"} and len(found) == 20


def test_cluster_address(cluster: Cluster, served: str) -> None:
    """ClusterIP, by kube-proxy's iptables: reaches each pod behind it"""
    address = cluster.control.get("service", served)["spec"]["clusterIP"]
    assert eventually(lambda: reaches_both(cluster, served, f"http://{address}/"), SECONDS)


def test_nftables(cluster: Cluster, served: str) -> None:
    """ClusterIP, NodePort and `sessionAffinity`, by kube-proxy's nftables"""
    cluster.must_be_of(33)
    proxied(cluster, "nftables")
    try:
        for node in cluster.nodes:
            by_it = eventually(partial(has_rules_by, node, "nftables"))
            assert by_it, node.log("kube-proxy")[-2000:]
        test_cluster_address(cluster, served)
        test_session_affinity(cluster, served)
        test_node_port(cluster, served)
    finally:
        proxied(cluster, "iptables")
    for node in cluster.nodes:
        by_other = eventually(partial(has_rules_by, node, "iptables"))
        assert by_other, node.log("kube-proxy")[-2000:]


def proxied(cluster: Cluster, mode: str) -> None:
    """By kube-proxies in another mode, which remove what the other has left."""
    for node in cluster.nodes:
        node.kill("kube-proxy")
        node.start_proxy(mode)


def has_rules_by(node: Node, mode: str) -> bool:
    """By this mode's kube-proxy alone."""
    found = {
        "nftables": "kube-proxy" in node.output("nft", "list", "tables"),
        "iptables": "KUBE-SVC" in node.output("iptables-save"),
    }
    return [one for one, there in found.items() if there] == [mode]


def test_names(cluster: Cluster, served: str) -> None:
    """DNS: a service by its short and its whole name"""
    assert eventually(lambda: reaches_both(cluster, served, f"http://{served}/"), SECONDS)
    whole = f"{served}.default.svc.cluster.local"
    assert reaches_both(cluster, served, f"http://{whole}/")


def test_headless(cluster: Cluster, served: str) -> None:
    """A headless service: its name has the addresses of its pods"""
    addresses = {cluster.address(f"{served}-{one}") for one in "ab"}
    name = f"{served}-headless.default.svc.cluster.local"
    said = cluster.said(f"{served}-client", "one", "nslookup", name)
    assert all(address in said for address in addresses)


def test_session_affinity(cluster: Cluster, served: str) -> None:
    """`sessionAffinity: ClientIP`"""
    address = cluster.control.get("service", f"{served}-sticky")["spec"]["clusterIP"]
    script = f"for n in $(seq 10); do timeout 20 wget -qO- http://{address}/ || break; done"

    def sticks() -> bool:
        found = cluster.exec(f"{served}-client", "one", "sh", "-c", script).stdout.split()
        return len(found) == 10 and len(set(found)) == 1

    assert eventually(sticks, SECONDS)


def test_node_port(cluster: Cluster, served: str) -> None:
    """NodePort, at each node's address, from outside of the cluster"""
    (port,) = cluster.control.get("service", f"{served}-port")["spec"]["ports"]
    for node in cluster.nodes:
        url = f"http://{node.address}:{port['nodePort']}/"
        assert eventually(partial(fetches_both, served, url), SECONDS), url


def fetches_both(runtime: str, url: str) -> bool:
    return fetched(url) == {f"{runtime}-a", f"{runtime}-b"}


def fetched(url: str) -> set[str]:
    """What comes of some tries from the control plane, which is no node."""
    words = ["curl", "-s", "--max-time", "20", *([url] * 20)]
    return set(subprocess.run(words, capture_output=True, text=True, check=False).stdout.split())


def test_across_nodes(cluster: Cluster, served: str) -> None:
    """Pods of two nodes reach each other, and see each other's own address"""
    if len(cluster.nodes) < 2:
        pytest.skip("the cluster has one node")
    client, server = f"{served}-client", f"{served}-b"
    address = cluster.address(server)
    assert cluster.said(client, "one", "wget", "-qO-", f"http://{address}/").strip()
    see_each_other(cluster, client, cluster.address(client), server, address)


def see_each_other(cluster: Cluster, client: str, mine: str, server: str, address: str) -> None:
    """A connection of one pod to an address of another comes from that of the first."""
    told = "while nc -l -p 99 -e sh -c 'netstat -tn | grep :99'; do :; done"
    cluster.said(server, "one", "sh", "-c", f"({told}) >/dev/null 2>&1 &")

    def seen() -> bool:
        said = cluster.exec(client, "one", "nc", "-w", "5", address, "99", input="").stdout
        return f"{mine}:" in said

    assert eventually(seen, SECONDS)


def test_dual_stack(cluster: Cluster, served: str) -> None:
    """IPv6 beside IPv4: pods have both, also across nodes, and a service is reached by both"""
    addresses = cluster.control.get("service", f"{served}-dual")["spec"]["clusterIPs"]
    (four,) = [one for one in addresses if ":" not in one]
    (six,) = [one for one in addresses if ":" in one]
    assert eventually(lambda: reaches_both(cluster, served, f"http://[{six}]/"), SECONDS)
    assert reaches_both(cluster, served, f"http://{four}/")
    client, server = f"{served}-client", f"{served}-b"
    of_client, of_server = (cluster.address6(one) for one in (client, server))
    see_each_other(cluster, client, of_client, server, of_server)


def test_host_port(cluster: Cluster, runtime: str) -> None:
    """`hostPort`, at the address of the pod's node"""
    number = 8101 if runtime == "runc" else 8102
    one = container("one", *SERVE, ports=[{"containerPort": 80, "hostPort": number}])
    with cluster.running(pod(f"port-{runtime}", runtime, [one], nodeName="node1")):
        url = f"http://{cluster.nodes[0].address}:{number}/"
        assert eventually(lambda: bool(fetched(url)), SECONDS)
