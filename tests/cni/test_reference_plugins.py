"""The real plugins in real namespaces: made, checked, seen to work, and taken down again."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.cni import Attachment, Runtime
from tests.cni.reference import (
    PLUGINS,
    SUBNETS,
    Reference,
    addresses,
    attachment,
    inside,
    links,
    output,
)
from tests.host import eventually

MakeNetns = Callable[[], str]


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[Reference]:
    yield Reference(tmp_path)
    for link in json.loads(output("ip", "-json", "link")):
        if link["ifname"] in ("brcni", "parent0"):
            output("ip", "link", "delete", link["ifname"])


def answers(netns: str, address: str) -> bool:
    """As `answers_ping`, in a namespace."""
    ping = ["nsenter", f"--net={netns}", "ping", "-c", "1", "-W", "5", address]
    return eventually(
        lambda: subprocess.run(ping, capture_output=True, check=False).returncode == 0
    )


def round_trip(
    reference: Reference,
    netns: str,
    *plugins: dict[str, Any],
    can_check: bool = True,
    can_repeat: bool = True,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """ADD and CHECK; the result, to be looked at; then DEL, and again as
    after the namespace has gone; and nothing is left."""
    network, where = reference.network(*plugins), attachment(netns, **options)
    before = links(netns)
    result = reference.runtime.add(network, where)
    if can_check:
        assert reference.runtime.check(network, where)
    yield result
    reference.runtime.delete(network, where)
    if can_repeat:
        reference.runtime.delete(network, where._replace(netns=""))
    assert links(netns) == before
    assert reference.leased() == []
    assert reference.runtime.attachments() == ([], [])


@pytest.mark.smoke
@pytest.mark.parametrize("family", SUBNETS)
def test_bridge_and_host_local(reference: Reference, make_netns: MakeNetns, family: str) -> None:
    netns = make_netns()
    for result in round_trip(reference, netns, reference.bridge(family)):
        told = [ip["address"] for ip in result["ips"]]
        assert sorted(addresses(netns)) == sorted(told)
        assert len(told) == len(SUBNETS[family])
        assert reference.leased() == sorted(address.split("/")[0] for address in told)
        for ip in result["ips"]:
            assert answers(netns, ip["gateway"])


@pytest.mark.parametrize("family", SUBNETS)
def test_ptp(reference: Reference, make_netns: MakeNetns, family: str) -> None:
    netns = make_netns()
    plugin = {"type": "ptp", "ipam": reference.ipam(family)}
    for result in round_trip(reference, netns, plugin):
        assert sorted(addresses(netns)) == sorted(ip["address"] for ip in result["ips"])
        for ip in result["ips"]:
            assert answers(netns, ip["gateway"])


def test_macvlan_and_static(reference: Reference, make_netns: MakeNetns) -> None:
    output("ip", "link", "add", "parent0", "type", "bridge")
    output("ip", "link", "set", "parent0", "up")
    netns = make_netns()
    wanted = ["10.88.0.9/24", "fd88::9/64"]
    static = {"type": "static", "addresses": [{"address": address} for address in wanted]}
    plugin = {"type": "macvlan", "master": "parent0", "ipam": static}
    for _ in round_trip(reference, netns, plugin):
        assert sorted(addresses(netns)) == wanted
        assert "macvlan" in inside(netns, "ip", "-details", "link", "show", "eth0")


def test_static_by_arguments(reference: Reference, make_netns: MakeNetns) -> None:
    """The capability `ips` and CNI_ARGS reach the IPAM plugin."""
    for ips in (
        {"capability_args": {"ips": ["10.87.0.77/24"]}},
        {"args": (("IgnoreUnknown", "1"), ("IP", "10.87.0.77/24"))},
    ):
        netns = make_netns()
        plugin = reference.bridge(ipam={"type": "static"}, capabilities={"ips": True})
        for _ in round_trip(reference, netns, plugin, **ips):
            assert addresses(netns) == ["10.87.0.77/24"]


def test_host_device(reference: Reference, make_netns: MakeNetns) -> None:
    output("ip", "link", "add", "moved0", "type", "veth", "peer", "name", "stays0")
    netns = make_netns()
    try:
        plugin = {"type": "host-device", "device": "moved0", "ipam": reference.ipam()}
        for result in round_trip(reference, netns, plugin):
            assert addresses(netns) == [result["ips"][0]["address"]]
            assert "moved0" not in output("ip", "-brief", "link")
        assert "moved0" in output("ip", "-brief", "link"), "it must come back"
    finally:
        output("ip", "link", "delete", "stays0")


def test_loopback(reference: Reference, make_netns: MakeNetns) -> None:
    netns = make_netns()
    network = reference.network({"type": "loopback"})
    lo = Attachment("web", "lo", netns)
    result = reference.runtime.add(network, lo)
    assert reference.runtime.check(network, lo)
    assert sorted(ip["address"] for ip in result["ips"]) == ["127.0.0.1/8", "::1/128"]
    assert answers(netns, "127.0.0.1")
    reference.runtime.delete(network, lo)


@pytest.mark.parametrize("family", SUBNETS)
def test_portmap(reference: Reference, make_netns: MakeNetns, family: str) -> None:
    netns = make_netns()
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    mappings = [{"hostPort": 8087, "containerPort": 80, "protocol": "tcp"}]
    commands = {"v4": ["iptables-save"], "v6": ["ip6tables-save"]}.get(
        family, ["iptables-save", "ip6tables-save"]
    )
    for _ in round_trip(
        reference,
        netns,
        reference.bridge(family),
        portmap,
        can_check=False,  # its CHECK looks for rules of both families, whichever there are
        capability_args={"portMappings": mappings},
    ):
        for command in commands:
            assert "--dport 8087" in output(command)
    for command in commands:
        assert "8087" not in output(command)


@pytest.mark.parametrize("family", SUBNETS)
def test_firewall(reference: Reference, make_netns: MakeNetns, family: str) -> None:
    netns = make_netns()
    firewall = {"type": "firewall", "backend": "iptables"}
    commands = [
        c for c, f in (("iptables-save", "v4"), ("ip6tables-save", "v6")) if family in (f, "dual")
    ]
    for result in round_trip(reference, netns, reference.bridge(family), firewall):
        rules = "".join(map(output, commands))
        for ip in result["ips"]:
            assert ip["address"].split("/")[0] in rules
    assert all(".2/32" not in output(command) for command in commands)


def test_bandwidth(reference: Reference, make_netns: MakeNetns) -> None:
    netns = make_netns()
    bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    limits = {
        "ingressRate": 8_000_000,
        "ingressBurst": 800_000,
        "egressRate": 8_000_000,
        "egressBurst": 800_000,
    }
    before = output("tc", "qdisc")
    for _ in round_trip(
        reference, netns, reference.bridge(), bandwidth, capability_args={"bandwidth": limits}
    ):
        assert output("tc", "qdisc").count("tbf") == 2
        assert "ifb" in output("ip", "-details", "link")
    assert output("tc", "qdisc").count("tbf") == before.count("tbf") == 0


def test_tuning(reference: Reference, make_netns: MakeNetns) -> None:
    """The capability `mac` changes the result of the chain, as in section 1 of the example."""
    netns = make_netns()
    tuning = {"type": "tuning", "capabilities": {"mac": True}, "mtu": 1400}
    mac = "02:00:00:00:00:07"
    for result in round_trip(
        reference, netns, reference.bridge(), tuning, capability_args={"mac": mac}
    ):
        link = json.loads(inside(netns, "ip", "-json", "link", "show", "eth0"))[0]
        assert (link["address"], link["mtu"]) == (mac, 1400)
        assert mac in [interface["mac"] for interface in result["interfaces"]]


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_sbr(reference: Reference, make_netns: MakeNetns, family: str) -> None:
    """It moves the routes that the bridge's CHECK looks for, and its DEL insists on the link."""
    netns = make_netns()
    for result in round_trip(
        reference,
        netns,
        reference.bridge(family),
        {"type": "sbr"},
        can_check=False,
        can_repeat=False,
    ):
        rules = inside(netns, "ip", "-4" if family == "v4" else "-6", "rule")
        assert f"from {result['ips'][0]['address'].split('/')[0]}" in rules


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_every_version(reference: Reference, make_netns: MakeNetns, version: str) -> None:
    netns = make_netns()
    plugins = [reference.bridge("dual")]
    if version >= "0.3.0":
        plugins.append({"type": "tuning"})
    network, where = reference.network(*plugins, version=version), attachment(netns)
    result = reference.runtime.add(network, where)
    assert result["cniVersion"] == version
    assert ("ip4" in result and "ip6" in result) is (version < "0.3.0")
    if version >= "0.4.0":
        assert reference.runtime.check(network, where)
    reference.runtime.delete(network, where)
    assert reference.leased() == []


def test_version_is_negotiated_with_the_plugins(
    reference: Reference, make_netns: MakeNetns
) -> None:
    """The network would like 1.1.0, which Debian's plugins don't know."""
    known = reference.runtime.version("bridge")
    network = reference.network(reference.bridge())
    network = network._replace(versions=("0.4.0", "1.0.0", "1.1.0"))
    result = reference.runtime.add(network, attachment(make_netns()))
    assert result["cniVersion"] == max(set(known) & set(network.versions))
    reference.runtime.gc(network, [])
    assert reference.leased() == []


def test_gc_after_a_reboot(reference: Reference, make_netns: MakeNetns) -> None:
    """Namespaces gone, leases left on disk: they come back from plugins that have no GC."""
    network = reference.network(reference.bridge())
    gone, kept = make_netns(), make_netns()
    reference.runtime.add(network, attachment(gone, "gone"))
    reference.runtime.add(network, attachment(kept, "kept"))
    output("ip", "netns", "delete", gone.rsplit("/", 1)[1])
    assert len(reference.leased()) == 2
    collected = reference.runtime.gc(network)
    assert [entry.attachment.container_id for entry in collected.deleted] == ["gone"]
    assert reference.leased() == [addresses(kept)[0].split("/")[0]]
    assert reference.runtime.check(network, attachment(kept, "kept"))


def test_a_failing_plugin_does_not_keep_the_lease(
    reference: Reference, make_netns: MakeNetns, tmp_path: Path
) -> None:
    """DEL goes on: libcni would stop at the first plugin, and leak the address."""
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "broken"
    broken.write_text(
        "#!/bin/sh\ncat >$0.in; [ $CNI_COMMAND = ADD ] || exit 1\n"
        "python3 -c \"import json; print(json.dumps(json.load(open('$0.in'))['prevResult']))\"\n"
    )
    broken.chmod(0o755)
    reference.runtime = Runtime([PLUGINS, str(tmp_path / "bin")], str(reference.cache))
    network = reference.network(reference.bridge(), {"type": "broken"})
    where = attachment(make_netns())
    reference.runtime.add(network, where)
    with pytest.raises(ExceptionGroup):
        reference.runtime.delete(network, where)
    assert reference.leased() == []
