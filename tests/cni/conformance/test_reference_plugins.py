"""Clauses on plugins, as the reference plugins hold them under our runtime."""

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tapwright.cni import PluginError
from tapwright.cni.invoke import Invocation
from tests.cni.reference import PLUGINS, Reference, addresses, attachment, inside, links, output

MakeNetns = Callable[[], str]


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[Reference]:
    yield Reference(tmp_path)
    subprocess.run(["ip", "link", "delete", "brcni"], check=False, stderr=subprocess.DEVNULL)


def test_check_sees_what_is_missing(reference: Reference, make_netns: MakeNetns) -> None:
    """CHECK: an address of the result that is gone is an error."""
    netns = make_netns()
    network, where = reference.network(reference.bridge()), attachment(netns)
    reference.runtime.add(network, where)
    inside(netns, "ip", "address", "flush", "dev", "eth0")
    with pytest.raises(PluginError) as caught:
        reference.runtime.check(network, where)
    assert (caught.value.plugin, caught.value.command) == ("bridge", "CHECK")
    reference.runtime.delete(network, where)


def test_check_sees_missing_rules_and_leases(reference: Reference, make_netns: MakeNetns) -> None:
    """CHECK: so are firewall rules and IP reservations, which no result lists."""
    network = reference.network(reference.bridge(), {"type": "firewall", "backend": "iptables"})
    where = attachment(make_netns())
    reference.runtime.add(network, where)
    output("iptables", "-F", "CNI-FORWARD")
    with pytest.raises(PluginError) as caught:
        reference.runtime.check(network, where)
    assert caught.value.plugin == "firewall"
    (reference.leases / "net" / reference.leased()[0]).unlink()
    with pytest.raises(PluginError) as caught:
        reference.runtime.check(network, where)
    assert caught.value.plugin == "bridge", "it passes its delegate's error on"
    reference.runtime.delete(network, where)


def test_check_right_after_add(reference: Reference, make_netns: MakeNetns) -> None:
    """CHECK: at once, and with what a later plugin of the chain has changed."""
    network = reference.network(reference.bridge("dual"), {"type": "tuning", "mtu": 1300})
    where = attachment(make_netns())
    reference.runtime.add(network, where)
    assert reference.runtime.check(network, where)
    reference.runtime.delete(network, where)


def test_an_interface_of_that_name_is_an_error(reference: Reference, make_netns: MakeNetns) -> None:
    """ADD: it must be; and the lease of the failed ADD comes back."""
    netns = make_netns()
    inside(netns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other0")
    with pytest.raises(PluginError, match="already exists"):
        reference.runtime.add(reference.network(reference.bridge()), attachment(netns))
    assert reference.leased() == []


def test_delete_when_all_is_gone(reference: Reference, make_netns: MakeNetns) -> None:
    """DEL: without namespace and interface the lease is released, and again is no error."""
    netns = make_netns()
    network, where = reference.network(reference.bridge(), {"type": "tuning"}), attachment(netns)
    reference.runtime.add(network, where)
    output("ip", "netns", "delete", Path(netns).name)
    for _ in range(3):
        reference.runtime.delete(network, where)
    assert reference.leased() == []


def test_delete_undoes_add(reference: Reference, make_netns: MakeNetns) -> None:
    """DEL: the interface goes; the namespace is the runtime's caller's, and stays."""
    netns = make_netns()
    network, where = reference.network(reference.bridge()), attachment(netns)
    reference.runtime.add(network, where)
    assert "eth0" in links(netns)
    reference.runtime.delete(network, where)
    assert links(netns) == ["lo"]


def test_well_known_keys(reference: Reference, make_netns: MakeNetns) -> None:
    """Section 1: `ipMasq` masquerades, `dns` is in the result, `ipam` gives the addresses."""
    dns = {"nameservers": ["10.87.0.1"], "domain": "x", "search": ["y"], "options": ["ndots:2"]}
    network = reference.network(reference.bridge(ipMasq=True, dns=dns))
    where = attachment(make_netns())
    result = reference.runtime.add(network, where)
    assert result["dns"] == dns
    assert "-j MASQUERADE" in output("iptables-save", "-t", "nat")
    reference.runtime.delete(network, where)
    assert "10.87.0.2/32" not in output("iptables-save", "-t", "nat")


def test_parallel_containers(reference: Reference, make_netns: MakeNetns) -> None:
    """Lifecycle & Ordering: plugins stand being run at once, and lock what they share."""
    network = reference.network(reference.bridge(), {"type": "tuning"})
    wheres = [attachment(make_netns(), f"c{number}") for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda where: reference.runtime.add(network, where), wheres))
        told = [result["ips"][0]["address"] for result in made]
        assert len(set(told)) == len(wheres)
        assert [addresses(where.netns) for where in wheres] == [[address] for address in told]
        list(pool.map(lambda where: reference.runtime.delete(network, where), wheres))
    assert reference.leased() == []


def test_result_of_add(reference: Reference, make_netns: MakeNetns) -> None:
    """ADD Success: every interface, with the namespace as it was given."""
    netns = make_netns()
    result = reference.runtime.add(reference.network(reference.bridge()), attachment(netns))
    assert result["cniVersion"] == "1.0.0"
    bridge, veth, inner = result["interfaces"]
    assert bridge["name"] == "brcni"
    assert veth["name"] in output("ip", "-brief", "link")
    assert (inner["name"], inner["sandbox"]) == ("eth0", netns)
    assert result["ips"][0]["interface"] == 2
    assert result["routes"] == [{"dst": "0.0.0.0/0"}]


def test_ipam_result_is_abbreviated(reference: Reference) -> None:
    """Delegated plugins (IPAM): no interfaces, and no index of one."""
    run = Invocation("net", "host-local", "ADD", [PLUGINS], 10)
    config = json.loads(reference.network(reference.bridge()).raw)["plugins"][0]
    variables = {"CNI_CONTAINERID": "x", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0"}
    result = run.run({**config, "cniVersion": "1.0.0", "name": "net"}, variables)
    assert result
    assert "interfaces" not in result
    assert set(result["ips"][0]) == {"address", "gateway"}
    assert reference.leased() == ["10.87.0.2"]
