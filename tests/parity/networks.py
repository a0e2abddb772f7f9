"""The networks of the parity test: how each is made in a namespace."""

from dataclasses import dataclass, field
from typing import Any

Plugins = list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A network. `interfaces` are veths whose other ends are in a bridge of the host's; `settings`
    (below /proc/sys/net) are written before they come up, `ip` are commands in the namespace then;
    the other ends of those `without_carrier` are down, of those that `lose_carrier` in the end;
    `cni` networks come before, by interface, with their port mappings. `needs` are kinds of links
    that the kernel must have."""

    name: str
    interfaces: tuple[str, ...] = ("eth0",)
    ip: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    cni: tuple[tuple[str, Plugins], ...] = ()
    needs: tuple[str, ...] = ()
    ports: tuple[dict[str, Any], ...] = ()
    without_carrier: tuple[str, ...] = ()
    lose_carrier: tuple[str, ...] = ()


def ipam(*subnets: str, routes: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": [{"dst": route} for route in routes],
        **more,
    }


V4, V6 = "0.0.0.0/0", "::/0"


def bridge(
    name: str, *subnets: str, routes: tuple[str, ...] = (V4,), **more: Any
) -> dict[str, Any]:
    return {
        "type": "bridge",
        "bridge": name,
        "isGateway": True,
        "ipam": ipam(*subnets, routes=routes),
        **more,
    }


def with_plugin(*plugins: dict[str, Any], ifname: str = "eth0") -> tuple[str, Plugins]:
    return ifname, list(plugins)


ADDRESS, GATEWAY = "address add 10.70.0.9/24 dev eth0", "10.70.0.1"
ADDRESS6, GATEWAY6 = "address add fd70::9/64 dev eth0 nodad", "fd70::1"
BOTH = ADDRESS, ADDRESS6
DEFAULT = f"route add default via {GATEWAY}"
CALICO = (
    "address add 10.99.0.5/32 dev eth0",
    "route add 169.254.1.1 dev eth0 scope link",
    "route add default via 169.254.1.1 dev eth0",
)
STATIC_NEIGHBOUR = "neigh add 169.254.1.1 lladdr 02:00:00:00:00:fe dev eth0 nud permanent"

ROWS = (
    # --- shapes of platforms, made by hand
    Row("no address"),
    Row("one address", ip=(ADDRESS,)),
    Row("one address and a default route", ip=(ADDRESS, DEFAULT)),
    Row(
        "several addresses of one subnet",
        ip=(ADDRESS, "address add 10.70.0.10/24 dev eth0", "address add 10.70.0.11/24 dev eth0"),
    ),
    Row(
        "several subnets",
        ip=(ADDRESS, "address add 10.71.0.9/16 dev eth0", "address add 10.70.0.9/25 dev eth0"),
    ),
    Row("dual-stack", ip=(*BOTH, DEFAULT, f"route add default via {GATEWAY6}")),
    Row("IPv6 only", ip=(ADDRESS6, f"route add default via {GATEWAY6}")),
    Row("Calico's", ip=(*CALICO, STATIC_NEIGHBOUR)),
    Row(
        "Calico's, dual-stack",
        ip=(
            *CALICO,
            "address add fd99::5/128 dev eth0 nodad",
            "route add default via fe80::ee dev eth0 metric 1024",
        ),
    ),
    Row(
        "flannel's",
        ip=(
            "link set eth0 mtu 1450",
            "address add 10.244.1.9/24 dev eth0",
            "route add default via 10.244.1.1",
            "route add 10.244.0.0/16 via 10.244.1.1",
        ),
    ),
    Row(
        "Cilium's",
        ip=(
            "address add 10.0.1.7/32 dev eth0",
            "route add 10.0.1.254 dev eth0 scope link",
            "route add default via 10.0.1.254 dev eth0 mtu 1450",
            "address add fd01::7/128 dev eth0 nodad",
            "route add fd01::fe dev eth0 metric 1024",
            "route add default via fd01::fe dev eth0 mtu 1450",
        ),
        settings={"ipv6/conf/eth0/disable_ipv6": "0", "ipv4/conf/eth0/rp_filter": "0"},
    ),
    Row(
        "AWS VPC's",
        ip=(*CALICO, STATIC_NEIGHBOUR, "link set eth0 mtu 9001"),
        settings={"ipv6/conf/eth0/accept_ra": "0", "ipv4/conf/eth0/arp_ignore": "1"},
    ),
    Row(
        "AWS VPC's, two interfaces",
        ("eth0", "eth1"),
        ip=(
            *CALICO,
            "address add 10.99.0.6/32 dev eth1",
            "route add 169.254.1.1 dev eth1 scope link table 101",
            "route add default via 169.254.1.1 dev eth1 table 101",
            "rule add from 10.99.0.6 lookup 101 pref 1500",
            "rule add to 10.99.0.0/16 lookup main pref 512",
        ),
    ),
    Row(
        "istio's, with TPROXY",
        ip=(
            *BOTH,
            DEFAULT,
            "rule add fwmark 1337 lookup 133",
            "route add local 0.0.0.0/0 dev lo table 133",
            "-6 rule add fwmark 1337 lookup 133",
            "-6 route add local ::/0 dev lo table 133",
        ),
    ),
    Row(
        "the gateway is on no subnet (onlink)",
        ip=("address add 10.99.0.5/32 dev eth0", "route add default via 10.1.2.3 dev eth0 onlink"),
    ),
    # --- reference plugins
    Row("bridge", (), cni=(with_plugin(bridge("br-p1", "10.60.1.0/24")),)),
    Row("bridge, MTU 1400", (), cni=(with_plugin(bridge("br-p2", "10.60.2.0/24", mtu=1400)),)),
    Row(
        "bridge, dual-stack",
        (),
        cni=(with_plugin(bridge("br-p3", "10.60.3.0/24", "fd60:3::/64", routes=(V4, V6))),),
    ),
    Row(
        "bridge, IPv6 only",
        (),
        cni=(with_plugin(bridge("br-p4", "fd60:4::/64", routes=(V6,))),),
    ),
    Row(
        "bridge with portmap and firewall",
        (),
        cni=(
            with_plugin(
                bridge("br-p5", "10.60.5.0/24"),
                {"type": "portmap", "capabilities": {"portMappings": True}},
                {"type": "firewall"},
            ),
        ),
    ),
    Row(
        "bridge with bandwidth",
        (),
        cni=(
            with_plugin(
                bridge("br-p6", "10.60.6.0/24"),
                {
                    "type": "bandwidth",
                    "ingressRate": 10_000_000,
                    "ingressBurst": 1_000_000,
                    "egressRate": 10_000_000,
                    "egressBurst": 1_000_000,
                },
            ),
        ),
    ),
    Row(
        "bridge with tuning",
        (),
        cni=(
            with_plugin(
                bridge("br-p7", "10.60.7.0/24"),
                {
                    "type": "tuning",
                    "mac": "02:00:00:00:60:07",
                    "mtu": 1380,
                    "sysctl": {
                        "net.core.somaxconn": "777",
                        "net.ipv4.conf.eth0.arp_notify": "1",
                        "net.ipv4.tcp_syn_retries": "3",
                        "net.ipv4.ip_local_port_range": "20000 30000",
                    },
                },
            ),
        ),
    ),
    Row("ptp", (), cni=(with_plugin({"type": "ptp", "ipam": ipam("10.60.8.0/24", routes=(V4,))}),)),
    Row(
        "ptp, dual-stack, MTU 1460",
        (),
        cni=(
            with_plugin(
                {
                    "type": "ptp",
                    "mtu": 1460,
                    "ipam": ipam("10.60.9.0/24", "fd60:9::/64", routes=(V4, V6)),
                }
            ),
        ),
    ),
    Row(
        "bridge with static addresses",
        (),
        cni=(
            with_plugin(
                {
                    "type": "bridge",
                    "bridge": "br-p10",
                    "ipam": {
                        "type": "static",
                        "addresses": [
                            {"address": "10.60.10.9/24", "gateway": "10.60.10.1"},
                            {"address": "10.60.11.9/24"},
                        ],
                        "routes": [{"dst": V4}, {"dst": "192.168.0.0/16", "gw": "10.60.10.3"}],
                    },
                }
            ),
        ),
    ),
    Row(
        "two bridges, as by Multus",
        (),
        cni=(
            with_plugin(bridge("br-p12", "10.60.12.0/24")),
            with_plugin(bridge("br-p13", "10.60.13.0/24", routes=()), ifname="net1"),
        ),
    ),
    Row(
        "three bridges, as by Multus",
        (),
        cni=(
            with_plugin(bridge("br-p14", "10.60.14.0/24")),
            with_plugin(bridge("br-p15", "10.60.15.0/24", routes=()), ifname="net1"),
            with_plugin(bridge("br-p16", "fd60:16::/64", routes=()), ifname="net2"),
        ),
    ),
    Row(
        "two bridges, the second with sbr",
        (),
        cni=(
            with_plugin(bridge("br-p17", "10.60.17.0/24")),
            with_plugin(bridge("br-p18", "10.60.18.0/24"), {"type": "sbr"}, ifname="net1"),
        ),
    ),
    Row(
        "macvlan",
        (),
        needs=("macvlan",),
        cni=(with_plugin({"type": "macvlan", "master": "up0", "ipam": ipam("10.60.20.0/24")}),),
    ),
    Row(
        "ipvlan",
        (),
        needs=("ipvlan",),
        cni=(with_plugin({"type": "ipvlan", "master": "up0", "ipam": ipam("10.60.21.0/24")}),),
    ),
    Row(
        "vlan",
        (),
        needs=("vlan",),
        cni=(
            with_plugin(
                {"type": "vlan", "master": "up0", "vlanId": 5, "ipam": ipam("10.60.22.0/24")}
            ),
        ),
    ),
    Row(
        "bridge with vrf",
        (),
        needs=("vrf",),
        cni=(with_plugin(bridge("br-p23", "10.60.23.0/24"), {"type": "vrf", "vrfname": "blue"}),),
    ),
    # --- sizes
    # Too small for IPv6.
    Row("MTU 576", ip=("link set eth0 mtu 576", ADDRESS)),
    Row("MTU 1280", ip=("link set eth0 mtu 1280", *BOTH)),
    Row("MTU 9000", ip=("link set eth0 mtu 9000", *BOTH)),
    Row("MTU 65521", ip=("link set eth0 mtu 65521", *BOTH)),
    Row("MTU 65535", ip=("link set eth0 mtu 65535", *BOTH)),
    Row("txqueuelen", ip=("link set eth0 txqueuelen 77", ADDRESS)),
    # --- what else an interface is known by
    Row(
        "alias, other names and group of an interface",
        ip=(
            ADDRESS,
            "link set eth0 alias the-first",
            "link property add dev eth0 altname net-of-the-pod",
            "link property add dev eth0 altname enp0s1",
            "link set eth0 group 77",
        ),
    ),
    Row(
        "interfaces with odd names",
        ("eth0.100", "@'$;{}+\\", "é-1"),
        ip=(
            "address add 10.70.0.9/24 dev eth0.100",
            "address add 10.71.0.9/24 dev @'$;{}+\\",
            "address add 10.72.0.9/24 dev é-1",
            "route add default via 10.71.0.1",
        ),
        settings={"ipv4/conf/eth0.100/rp_filter": "2", "ipv6/conf/é-1/accept_ra": "0"},
    ),
    Row(
        "interfaces without a carrier, or that lost it",
        ("eth0", "eth1", "eth2"),
        ip=(
            *BOTH,
            "address add 10.71.0.9/24 dev eth1",
            "address add fd71::9/64 dev eth1 nodad",
            "route add 10.71.0.1 dev eth1",
            "route add default via 10.71.0.1",
            "address add 10.72.0.9/24 dev eth2",
            "address add fd72::9/64 dev eth2 nodad",
            "route delete 10.72.0.0/24 dev eth2",
            "-6 route delete fd72::/64 dev eth2",
            "route delete 10.71.0.0/24 dev eth1",
            "-6 route delete fd71::/64 dev eth1",
        ),
        without_carrier=("eth1",),
        lose_carrier=("eth2",),
    ),
    Row("an interface without multicast", ip=("link set eth0 multicast off", *BOTH)),
    Row(
        "an interface without ARP",
        ip=("link set eth0 down", "link set eth0 arp off", "link set eth0 up", ADDRESS),
    ),
    # --- addresses
    Row(
        "addresses with label, broadcast, scope and metric",
        ip=(
            "address add 10.70.0.9/24 broadcast + dev eth0 label eth0:1",
            "address add 10.71.0.9/24 dev eth0 metric 77",
            "address add 10.72.0.9/24 dev eth0 scope link",
            "address add 10.73.0.9/24 dev eth0 scope host",
        ),
    ),
    Row(
        "addresses with a peer",
        ip=(
            "address add 10.70.0.9 peer 10.70.9.9 dev eth0",
            "address add 10.71.0.9 peer 10.72.0.0/16 dev eth0",
            "address add fd70::9 peer fd71::9 dev eth0 nodad",
        ),
    ),
    Row(
        "addresses that make no route",
        ip=(
            "address add 10.70.0.9/24 dev eth0 noprefixroute",
            "address add fd70::9/64 dev eth0 nodad noprefixroute",
        ),
    ),
    Row(
        "addresses that end",
        ip=(
            "address add 10.70.0.9/24 dev eth0 valid_lft 3000 preferred_lft 1000",
            "address add fd70::9/64 dev eth0 nodad valid_lft 3000 preferred_lft 1000",
            "address add fd70::a/64 dev eth0 nodad preferred_lft 0",
        ),
    ),
    Row(
        "IPv6 addresses with flags",
        ip=(
            "address add fd70::9/64 dev eth0 nodad home",
            "address add fd70::a/64 dev eth0",
            "address add fd70:1::9/64 dev eth0 nodad mngtmpaddr",
            "address add fe80::77/64 dev eth0 nodad",
        ),
    ),
    Row(
        "addresses of unusual ranges",
        ip=(
            "address add 127.5.5.5/8 dev eth0",
            "address add 240.1.1.1/24 dev eth0",
            "address add 0.1.2.3/8 dev eth0",
            "address add 239.1.1.1/32 dev eth0 autojoin",
            "address add ::ffff:10.3.3.3/128 dev eth0 nodad",
            "address add fd07::/127 dev eth0 nodad",
        ),
    ),
    Row(
        "the link-local address was taken away",
        ip=("-6 address flush dev eth0 scope link", *BOTH),
    ),
    Row(
        "another link-local address in its place",
        ip=("-6 address flush dev eth0 scope link", "address add fe80::5/64 dev eth0 nodad"),
    ),
    Row(
        "addresses of loopback",
        ip=(
            ADDRESS,
            "address add 10.88.0.1/32 dev lo",
            "address add fd88::1/128 dev lo",
            "route add 10.200.0.0/16 via 10.70.0.1 src 10.88.0.1",
        ),
    ),
    # --- routes
    Row(
        "a route of the kernel's that was taken away",
        ip=(
            *BOTH,
            "route delete 10.70.0.0/24 dev eth0",
            "-6 route delete fd70::/64 dev eth0",
            "route add 10.70.0.1 dev eth0 scope link",
            "route add default via 10.70.0.1",
        ),
    ),
    Row(
        "blackhole, unreachable, prohibit, throw",
        ip=(
            ADDRESS,
            "route add blackhole 10.100.0.0/16",
            "route add unreachable 10.101.0.0/16 metric 7",
            "route add prohibit 10.102.0.0/16",
            "route add throw 10.103.0.0/16 table 50",
        ),
    ),
    Row(
        "the same with IPv6",
        ip=(
            ADDRESS6,
            "-6 route add blackhole fd00:100::/32",
            "-6 route add unreachable fd00:101::/32",
            "-6 route add prohibit fd00:102::/32",
            "-6 route add throw fd00:103::/32 table 50",
        ),
    ),
    Row(
        "local, broadcast and multicast routes",
        ip=(
            ADDRESS,
            "route add local 10.104.0.0/16 dev eth0",
            "route add broadcast 10.105.0.255 dev eth0 table local",
            "route add multicast 239.0.0.0/8 dev eth0",
            "route add 224.0.0.0/4 dev eth0",
        ),
    ),
    Row(
        "several tables",
        ip=(
            *BOTH,
            "route add default via 10.70.0.1 table 100",
            "route add 10.106.0.0/16 via 10.70.0.2 table 70000",
            "route add default via fd70::1 table 100",
        ),
    ),
    Row(
        "metrics of routes",
        ip=(
            *BOTH,
            "route add 10.107.0.0/16 via 10.70.0.1 mtu lock 1400 advmss 1300 window 4000",
            "route add 10.108.0.0/16 via 10.70.0.1 initcwnd 20 initrwnd 30 hoplimit 9 quickack 1",
            "route add 10.109.0.0/16 via 10.70.0.1 rtt 300ms rto_min 80ms congctl reno",
            "route add fd00:107::/32 via fd70::1 mtu 1400 hoplimit 9 initcwnd 20",
        ),
    ),
    Row(
        "tos, scope, source, protocol, metric",
        ip=(
            *BOTH,
            "route add 10.110.0.0/16 via 10.70.0.1 tos 0x10",
            "route add 10.110.0.0/16 via 10.70.0.2",
            "route add 10.111.0.0/16 dev eth0 scope link src 10.70.0.9",
            "route add 10.112.0.0/16 dev eth0 scope host",
            "route add 10.113.0.0/16 via 10.70.0.1 proto static metric 50",
            "route add 10.113.0.0/16 via 10.70.0.1 proto 77 metric 60",
            "route add 10.114.0.0/16 via 10.70.0.1 proto kernel",
            "route add fd00:113::/32 via fd70::1 proto static metric 50 pref high",
            "route add fd00:114::/32 via fd70::1 src fd70::9",
        ),
    ),
    Row(
        "several routes of one metric, in their order",
        ("eth0", "eth1"),
        ip=(
            ADDRESS,
            "address add 10.71.0.9/24 dev eth1",
            "route add default via 10.70.0.1",
            "route prepend default via 10.71.0.1",
            "route append default via 10.70.0.2",
        ),
    ),
    Row(
        "multipath",
        ("eth0", "eth1"),
        ip=(
            ADDRESS,
            "address add 10.71.0.9/24 dev eth1",
            "route add 10.115.0.0/16 nexthop via 10.70.0.1 weight 3 nexthop via 10.71.0.1 weight 5",
            "route add 10.116.0.0/16 nexthop via 10.9.9.9 dev eth0 onlink nexthop dev eth1",
        ),
    ),
    Row(
        "multipath with IPv6",
        ("eth0", "eth1"),
        ip=(
            ADDRESS6,
            "address add fd71::9/64 dev eth1 nodad",
            "route add fd00:115::/32 nexthop via fd70::1 weight 3 nexthop via fd71::1",
        ),
    ),
    Row(
        "next hop objects",
        ("eth0", "eth1"),
        ip=(
            *BOTH,
            "address add 10.71.0.9/24 dev eth1",
            "nexthop add id 1 via 10.70.0.1 dev eth0",
            "nexthop add id 2 via 10.71.0.1 dev eth1",
            "nexthop add id 3 blackhole",
            "nexthop add id 4 via fd70::1 dev eth0",
            "nexthop add id 10 group 1,3/2,7",
            "route add 10.117.0.0/16 nhid 1",
            "route add 10.118.0.0/16 nhid 10",
            "route add 10.119.0.0/16 nhid 3",
            "-6 route add fd00:117::/32 nhid 4",
        ),
    ),
    Row(
        "a resilient group of next hops",
        ip=(
            ADDRESS,
            "nexthop add id 1 via 10.70.0.1 dev eth0",
            "nexthop add id 2 via 10.70.0.2 dev eth0",
            "nexthop add id 10 group 1/2 type resilient buckets 8 idle_timer 60 "
            "unbalanced_timer 300",
            "route add 10.117.0.0/16 nhid 10",
        ),
    ),
    Row(
        "gateways to which no route leads any more",
        ip=(
            *BOTH,
            DEFAULT,
            f"route add default via {GATEWAY6}",
            "route add 10.122.0.0/16 nexthop via 10.70.0.2 nexthop via 10.70.0.3",
            "nexthop add id 5 via 10.70.0.4 dev eth0",
            "route add 10.123.0.0/16 nhid 5",
            "route delete 10.70.0.0/24 dev eth0",
            "-6 route delete fd70::/64 dev eth0",
        ),
    ),
    Row(
        "IPv4 by an IPv6 gateway",
        ip=(*BOTH, "route add 10.120.0.0/16 via inet6 fd70::1 dev eth0"),
    ),
    Row(
        "IPv6 routes by source",
        ip=(ADDRESS6, "-6 route add fd00:121::/32 from fd70::/64 via fd70::1 dev eth0"),
    ),
    # --- rules
    Row(
        "rules",
        ip=(
            ADDRESS,
            "route add default via 10.70.0.1 table 100",
            "rule add from 10.70.0.9 lookup 100 pref 100",
            "rule add to 10.200.0.0/16 tos 0x10 lookup 100 pref 101",
            "rule add fwmark 0x10/0xff iif eth0 prohibit pref 102",
            "rule add oif eth0 uidrange 100-200 blackhole pref 103",
            "rule add ipproto tcp sport 1000-2000 dport 80 unreachable pref 104",
            "rule add not from 10.0.0.0/8 lookup 70000 pref 105",
            "rule add from all lookup main suppress_prefixlength 0 pref 106",
            "rule add from 10.1.1.1 goto 200 pref 107",
            "rule add nop pref 200",
            "rule add from 10.2.0.0/16 lookup 5 pref 300 protocol static",
            "rule add from 10.3.0.0/16 lookup 6 pref 300",
            "rule add from 10.1.0.0/16 lookup 7 pref 300",
        ),
    ),
    Row(
        "rules of IPv6",
        ip=(
            ADDRESS6,
            "-6 rule add from fd70::9 lookup 100 pref 100",
            "-6 rule add to fd00::/16 iif lo lookup 101 pref 101",
            "-6 rule add fwmark 7 prohibit pref 102",
        ),
    ),
    Row(
        "the common rules moved, as Cilium does it",
        ip=(
            *BOTH,
            "rule add from all lookup local pref 100",
            "rule delete from all lookup local pref 0",
            "-6 rule add from all lookup local pref 100",
            "-6 rule delete from all lookup local pref 0",
            "rule delete pref 32767",
        ),
    ),
    # --- neighbours
    Row(
        "static neighbours and proxies",
        ip=(
            *BOTH,
            "neigh add 10.70.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
            "neigh add fd70::77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent router",
            "neigh add proxy 10.70.0.88 dev eth0",
            "neigh add proxy fd70::88 dev eth0",
        ),
        settings={"ipv4/conf/eth0/proxy_arp": "1", "ipv6/conf/eth0/proxy_ndp": "1"},
    ),
    # --- settings
    Row(
        "IPv6 off on the interface, as docker does it",
        ip=(ADDRESS, DEFAULT),
        settings={"ipv6/conf/eth0/disable_ipv6": "1"},
    ),
    Row(
        "IPv6 off in the namespace",
        ip=(ADDRESS, DEFAULT),
        settings={
            "ipv6/conf/all/disable_ipv6": "1",
            "ipv6/conf/default/disable_ipv6": "1",
        },
    ),
    Row(
        "router advertisements off (CVE-2020-10749)",
        ip=(*BOTH, DEFAULT),
        settings={
            "ipv6/conf/eth0/accept_ra": "0",
            "ipv6/conf/eth0/autoconf": "0",
            "ipv6/conf/eth0/router_solicitations": "0",
            "ipv6/conf/eth0/accept_redirects": "0",
            "ipv6/conf/default/accept_ra": "0",
        },
    ),
    Row(
        "forwarding",
        ip=(*BOTH, DEFAULT),
        settings={
            "ipv4/conf/all/forwarding": "1",
            "ipv6/conf/all/forwarding": "1",
            "ipv4/conf/lo/forwarding": "0",
        },
    ),
    Row(
        "answers to ARP, and paths that are checked",
        ip=(ADDRESS,),
        settings={
            "ipv4/conf/all/rp_filter": "1",
            "ipv4/conf/default/rp_filter": "2",
            "ipv4/conf/eth0/rp_filter": "1",
            "ipv4/conf/eth0/arp_ignore": "1",
            "ipv4/conf/eth0/arp_announce": "2",
            "ipv4/conf/eth0/arp_notify": "1",
            "ipv4/conf/eth0/proxy_arp": "1",
            "ipv4/conf/eth0/accept_local": "1",
            "ipv4/conf/eth0/route_localnet": "1",
            "ipv4/conf/eth0/promote_secondaries": "1",
        },
    ),
    Row(
        "times of neighbours",
        ip=(*BOTH,),
        settings={
            "ipv4/neigh/eth0/gc_stale_time": "77",
            "ipv4/neigh/eth0/base_reachable_time_ms": "20000",
            "ipv4/neigh/eth0/retrans_time_ms": "500",
            "ipv6/neigh/eth0/ucast_solicit": "5",
        },
    ),
    Row(
        "settings of the namespace",
        ip=(ADDRESS,),
        settings={
            "core/somaxconn": "999",
            "ipv4/ip_unprivileged_port_start": "0",
            "ipv4/ping_group_range": "0 2147483647",
            "ipv4/ip_local_port_range": "10000 20000",
            "ipv4/ip_local_reserved_ports": "11000-11010,12000",
            "ipv4/tcp_keepalive_time": "600",
            "ipv4/tcp_mtu_probing": "1",
            "ipv4/ip_nonlocal_bind": "1",
            "ipv4/ip_default_ttl": "33",
            "ipv6/bindv6only": "1",
            "ipv4/fib_multipath_hash_policy": "1",
            "ipv4/icmp_echo_ignore_broadcasts": "0",
            "unix/max_dgram_qlen": "50",
        },
    ),
    Row(
        "no link-local address of the kernel's",
        ip=("link set eth0 addrgenmode none", ADDRESS),
        settings={"ipv6/conf/eth0/addr_gen_mode": "1"},
    ),
)
