"""Faults, made by hand on the stage (`stage`), and what `explain` is to say of each.

A fault is made by lines of a shell, with the words of the stage in braces. The test carries out the
remedy that `explain` names; where that is advice, what a person does is in `by_hand`. `back` puts
the rest right, so that the next fault finds the stage as it was.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`question` is what `explain` is asked, `hop` and `word` must be in the answer. Those that are
    `telling` are in the ordinary suite."""

    name: str
    make: str
    hop: str
    word: str
    question: str = "--to 198.51.100.2"
    by_hand: str = ""
    back: str = "true"
    telling: bool = False


def faults() -> list[Fault]:
    return [
        *_OF_GUEST,
        *_OF_LINKS,
        *_OF_BRIDGE,
        *_OF_HOST,
        *_OF_RULES,
        *_OF_SERVICES,
        *_OF_PROCESSES,
    ]


_SIX = "--to fd97::2"
_IN = "--from host"

_OF_GUEST = [
    Fault(
        "the guest's NIC is down",
        "{guest} ip link set eth0 down",
        "guest",
        "down",
        telling=True,
    ),
    Fault(
        "no default route in the guest",
        "{guest} ip route del default",
        "guest",
        "no default route",
    ),
    Fault(
        "no default route in the guest (IPv6)",
        "{guest} ip -6 route del default via fd96::1 dev eth0",
        "guest",
        "no default route",
        _SIX,
    ),
    Fault(
        "router advertisements are refused in the guest",
        "{in} sysctl -w net.ipv6.conf.eth0.accept_ra=0; {in} ip -6 route del default; "
        "{guest} sh -c 'sysctl -w net.ipv6.conf.eth0.accept_ra=0; "
        "while ip -6 route del default; do :; done'; "
        "nohup {router} >/dev/null 2>&1 & echo $! > {directory}/twx-pid",
        "guest",
        "refuses the router advertisements",
        _SIX,
        back="kill $(cat {directory}/twx-pid); rm {directory}/twx-pid; "
        "{in} sysctl -w net.ipv6.conf.eth0.accept_ra=0; "
        "{guest} sysctl -w net.ipv6.conf.eth0.accept_ra=0; {guest} ip -6 route del default; "
        "{in} ip -6 route replace default via fd96::1 dev eth0",
    ),
    Fault(
        "a blackhole route in the guest",
        "{guest} ip route add blackhole 198.51.100.0/24",
        "guest",
        "blackhole",
    ),
    Fault(
        "an unreachable route in the guest",
        "{guest} ip route add unreachable 198.51.100.2",
        "guest",
        "unreachable",
    ),
    Fault(
        "a prohibited route in the guest",
        "{guest} ip route add prohibit 198.51.100.0/25",
        "guest",
        "prohibit",
    ),
    Fault(
        "the wrong gateway in the guest",
        "{guest} ip route replace default via 10.96.0.77 dev eth0",
        "guest",
        "wrong gateway",
        telling=True,
    ),
    Fault(
        "the guest's address is gone",
        "{guest} ip address del {own}/24 dev eth0",
        "guest",
        "lacks its address",
    ),
    Fault(
        "IPv6 is off in the guest",
        "{guest} sysctl -w net.ipv6.conf.eth0.disable_ipv6=1",
        "guest",
        "IPv6 is off",
        _SIX,
    ),
    Fault(
        "a wrong neighbour entered in the guest",
        "{guest} arp -s 10.96.0.1 02:00:00:00:77:77",
        "guest",
        "entered",
    ),
    Fault(
        "the MTU of the guest is too large",
        "{guest} ip link set eth0 mtu 4000",
        "guest",
        "MTU",
        "--to 10.96.0.1",
    ),
    Fault(
        "the guest's firewall drops what it sends",
        "{guest} /host/nft 'add table ip f; add chain ip f o { type filter hook output priority 0; "
        "}; add rule ip f o ip daddr 198.51.100.2 drop'",
        "guest firewall",
        "drop",
        by_hand="{guest} /host/nft delete table ip f",
        telling=True,
    ),
    Fault(
        "the guest's firewall drops what comes",
        "{guest} /host/nft 'add table ip f; add chain ip f i { type filter hook input priority 0; "
        "}; add rule ip f i tcp dport 80 drop'; {serve}",
        "guest firewall",
        "input",
        "--from host --to :80",
        by_hand="{guest} /host/nft delete table ip f",
        back="{stop}",
    ),
    Fault(
        "the guest's firewall has the policy drop",
        "{guest} /host/nft 'add table ip f; add chain ip f i { type filter hook input priority 0; "
        "policy drop; }'",
        "guest firewall",
        "policy",
        by_hand="{guest} /host/nft delete table ip f",
    ),
    Fault(
        "the guest ignores echo requests",
        "{guest} sysctl -w net.ipv4.icmp_echo_ignore_all=1",
        "guest",
        "echo requests",
        _IN,
    ),
]

_OF_LINKS = [
    Fault(
        "the TAP is down",
        "{in} ip link set {tap} down",
        "tap",
        "down",
    ),
    Fault(
        "the interface in the namespace is down",
        "{in} ip link set eth0 down",
        "interface",
        "down",
        back="{in} ip route replace default via 10.96.0.1; "
        "{in} ip -6 address replace {own6}/64 dev eth0 nodad; "
        "{in} ip -6 route replace default via fd96::1",
    ),
    Fault("the host's end is down", "ip link set {peer} down", "peer", "down"),
    Fault(
        "the bridge is down",
        "ip link set {bridge} down",
        "bridge",
        "down",
        back="ip -6 address replace fd96::1/64 dev {bridge} nodad",
    ),
    Fault(
        "the filter is missing that sends on what the guest sends",
        "{in} tc qdisc del dev {tap} ingress",
        "tc filters",
        "what {tap} receives",
        telling=True,
    ),
    Fault(
        "the filter is missing that brings the guest what comes",
        "{in} tc qdisc del dev eth0 ingress",
        "tc filters",
        "what eth0 receives",
    ),
    Fault(
        "the queue of the TAP is stopped",
        "{in} tc qdisc replace dev {tap} root tbf rate 8bit burst 1600 limit 100000",
        "tap",
        "queue",
    ),
    Fault(
        "the queue of the interface is stopped",
        "{in} tc qdisc replace dev eth0 root tbf rate 8bit burst 1600 limit 100000",
        "interface",
        "queue",
    ),
    Fault(
        "the MTU of the interface is too small",
        "{in} ip link set eth0 mtu 1300",
        "interface",
        "MTU",
        telling=True,
    ),
    Fault(
        "the MTU of the host's end is too small",
        "ip link set {peer} mtu 1300",
        "peer",
        "MTU",
    ),
    Fault(
        "the uplink is down",
        "ip link set up0 down",
        "out",
        "down",
        back="ip -6 address replace fd97::1/64 dev up0 nodad; "
        "ip route replace default via 198.51.100.2; ip -6 route replace default via fd97::2",
    ),
]

_OWN_MAC = (
    "ip -n twx-near link set near0 down; ip -n twx-near link set near0 address 02:00:00:00:96:96 up"
)
_NEAR6 = "ip -n twx-near -6 address replace fd96::200/64 dev near0 nodad"

_OF_BRIDGE = [
    Fault(
        "the port has left the bridge",
        "ip link set {peer} nomaster",
        "peer",
        "no port of the bridge",
        telling=True,
    ),
    Fault(
        "STP of the bridge holds the port back",
        "ip link set {bridge} type bridge stp_state 1 forward_delay 3000; "
        "ip link set {peer} nomaster; ip link set {peer} master {bridge}",
        "bridge",
        "listening",
        back="ip link set {bridge} type bridge forward_delay 1500",
    ),
    Fault(
        "the port of the bridge is disabled",
        "bridge link set dev {peer} state 0",
        "bridge",
        "disabled",
    ),
    Fault(
        "both ports are isolated",
        "bridge link set dev {peer} isolated on; bridge link set dev near-h isolated on",
        "bridge",
        "isolated",
        "--to 10.96.0.200",
        back="bridge link set dev near-h isolated off",
        telling=True,
    ),
    Fault(
        "another one has the guest's address",
        "ip -n twx-near address add {own}/24 dev near0",
        "bridge",
        "duplicate address",
        by_hand="ip -n twx-near address del {own}/24 dev near0",
        telling=True,
    ),
    Fault(
        "another one has the guest's address (IPv6)",
        "ip -n twx-near address add {own6}/64 dev near0 nodad",
        "bridge",
        "duplicate address",
        _SIX,
        by_hand="ip -n twx-near address del {own6}/64 dev near0",
    ),
    Fault(
        "another one has the guest's MAC address",
        "ip -n twx-near link set near0 down; ip -n twx-near link set near0 address {mac} up; "
        "{near} ping -c 1 -W 1 10.96.0.1 || true",
        "bridge",
        "duplicate MAC address",
        by_hand=_OWN_MAC,
        back=_NEAR6,
    ),
    Fault(
        "another one has the guest's MAC address, and sends all the time",
        "ip -n twx-near link set near0 down; ip -n twx-near link set near0 address {mac} up; "
        "nohup {near} ping -i 0.2 10.96.0.1 >/dev/null 2>&1 & echo $! > {directory}/twx-pid",
        "bridge",
        "duplicate MAC address",
        by_hand="kill $(cat {directory}/twx-pid); rm {directory}/twx-pid; " + _OWN_MAC,
        back=_NEAR6,
    ),
    Fault(
        "a wrong entry in the forwarding table",
        "bridge fdb replace {mac} dev near-h master static sticky",
        "bridge",
        "entry",
    ),
    Fault(
        "the neighbour is not there",
        "ip -n twx-near link set near0 down",
        "target",
        "failed",
        "--to 10.96.0.200",
        by_hand="ip -n twx-near link set near0 up; {guest} ip neigh flush dev eth0",
    ),
    Fault(
        "the gateway's address is gone",
        "ip address del 10.96.0.1/24 dev {bridge}; {guest} ip neigh flush dev eth0",
        "gateway",
        "failed",
        back="{guest} ip neigh flush dev eth0",
    ),
]

_OF_HOST = [
    Fault(
        "the host does not forward",
        "sysctl -w net.ipv4.ip_forward=0",
        "host",
        "ip_forward",
        telling=True,
    ),
    Fault(
        "the host does not forward IPv6",
        "sysctl -w net.ipv6.conf.all.forwarding=0",
        "host",
        "ipv6.conf.all.forwarding",
        _SIX,
        back="ip -6 route replace default via fd97::2",
    ),
    Fault(
        "the host does not forward from the bridge",
        "sysctl -w net.ipv4.conf.br-ex.forwarding=0",
        "host",
        "br-ex.forwarding",
    ),
    Fault(
        "IPv6 is off on the bridge",
        "sysctl -w net.ipv6.conf.br-ex.disable_ipv6=1",
        "host",
        "IPv6 is off",
        _SIX,
        back="ip -6 address replace fd96::1/64 dev br-ex nodad",
    ),
    Fault(
        "the host has no default route",
        "ip route del default",
        "host route",
        "no route",
        "--to 203.0.113.9",
        by_hand="ip route replace default via 198.51.100.2; "
        "{wan} ip address add 203.0.113.9/32 dev wan0",
        back="{wan} ip address del 203.0.113.9/32 dev wan0 || true",
    ),
    Fault(
        "a blackhole route on the host",
        "ip route add blackhole 198.51.100.2",
        "host route",
        "blackhole",
    ),
    Fault(
        "a route on the host leads the guest's answers elsewhere",
        "ip route add {own}/32 dev up0",
        "host route",
        "leads to up0",
    ),
    Fault(
        "rp_filter is strict",
        "ip link add up1 type veth peer name wan1 netns twx-wan; ip link set up1 up; "
        "ip -n twx-wan link set wan1 up; ip address add 192.0.2.1/24 dev up1; "
        "ip -n twx-wan address add 192.0.2.2/24 dev wan1; "
        "ip -n twx-wan route add 198.51.100.1/32 dev wan1 src 198.51.100.2; "
        "ip -n twx-wan neighbour add 198.51.100.1 dev wan1 lladdr "
        "$(ip -br link show up1 | awk '{print $3}'); "
        "{wan} sysctl -qw net.ipv4.conf.all.rp_filter=0; sysctl -w net.ipv4.conf.up1.rp_filter=1",
        "host",
        "rp_filter",
        back="ip link delete up1",
    ),
    Fault(
        "rp_filter is strict, and keeps the host from answering to ARP",
        "ip link add up1 type veth peer name wan1 netns twx-wan; ip link set up1 up; "
        "ip -n twx-wan link set wan1 up; ip address add 192.0.2.1/24 dev up1; "
        "ip -n twx-wan address add 192.0.2.2/24 dev wan1; "
        "ip -n twx-wan route add 198.51.100.1/32 dev wan1 src 198.51.100.2; "
        "{wan} sysctl -qw net.ipv4.conf.all.rp_filter=0; sysctl -w net.ipv4.conf.up1.rp_filter=1",
        "host",
        "sends in at up1",
        back="ip link delete up1",
    ),
    Fault(
        "a wrong neighbour entered on the host",
        "ip neighbour replace {own} lladdr 02:00:00:00:88:88 dev br-ex nud permanent",
        "host",
        "entered",
    ),
    Fault(
        "no masquerade",
        "iptables -t nat -S POSTROUTING | grep -n CNI > /dev/null; "
        "iptables-save -t nat > {directory}/twx-nat; iptables -t nat -F POSTROUTING",
        "NAT",
        "masquerade",
        back="iptables-restore < {directory}/twx-nat; rm {directory}/twx-nat",
        telling=True,
    ),
    Fault(
        "the next machine is not there",
        "ip -n twx-wan link set wan0 down; ip neighbour flush dev up0",
        "out",
        "failed",
        by_hand="ip -n twx-wan link set wan0 up; ip neighbour flush dev up0",
        back="ip -n twx-wan -6 address add fd97::2/64 dev wan0 nodad || true",
    ),
    Fault(
        "the target drops it",
        "{wan} nft 'add table ip f; add chain ip f i { type filter hook input priority 0; "
        "policy drop; }'",
        "beyond",
        "nothing comes back",
        by_hand="{wan} nft delete table ip f",
    ),
]


def _nft(hook: str, match: str, where: str = "") -> str:
    chain = f"{{ type filter hook {hook} priority 0; }}"
    return f"nft 'add table ip f; add chain ip f c {chain}; add rule ip f c {match} drop{where}'"


_DELETE = "nft delete table ip f"

_OF_RULES = [
    Fault(
        "nft drops in prerouting",
        _nft("prerouting", "ip saddr {own}"),
        "host firewall",
        "prerouting",
        back=_DELETE,
    ),
    Fault(
        "nft drops in input",
        _nft("input", "ip saddr {own}"),
        "host firewall",
        "input",
        "--to 10.96.0.1",
        back=_DELETE,
    ),
    Fault(
        "nft drops in forward",
        _nft("forward", "ip daddr 198.51.100.2"),
        "host firewall",
        "forward",
        back=_DELETE,
        telling=True,
    ),
    Fault(
        "nft drops the answer in forward",
        _nft("forward", "ip saddr 198.51.100.2"),
        "host firewall",
        "ip saddr 198.51.100.2",
        back=_DELETE,
    ),
    Fault(
        "nft drops in output",
        _nft("output", "ip daddr {own}"),
        "host firewall",
        "output",
        "--to 10.96.0.1",
        back=_DELETE,
    ),
    Fault(
        "nft drops in postrouting",
        _nft("postrouting", "ip daddr 198.51.100.2"),
        "host firewall",
        "postrouting",
        back=_DELETE,
    ),
    Fault(
        "the policy of forward is drop",
        "nft 'add table ip f; add chain ip f c { type filter hook forward priority 0; "
        "policy drop; }'",
        "host firewall",
        "policy",
        back=_DELETE,
    ),
    Fault(
        "nft rejects a port",
        "nft 'add table ip f; add chain ip f c { type filter hook forward priority 0; }; "
        "add rule ip f c tcp dport 80 reject'",
        "host firewall",
        "tcp dport 80",
        "--to 198.51.100.2:80",
        back=_DELETE,
    ),
    Fault(
        "nft drops IPv6",
        "nft 'add table ip6 f; add chain ip6 f c { type filter hook forward priority 0; }; "
        "add rule ip6 f c ip6 daddr fd97::2 drop'",
        "host firewall",
        "forward",
        _SIX,
        back="nft delete table ip6 f",
    ),
    Fault(
        "iptables drops in FORWARD",
        "iptables -I FORWARD -s {own} -j DROP",
        "host firewall",
        "FORWARD",
    ),
    Fault(
        "the policy of iptables' FORWARD is DROP",
        "iptables -P FORWARD DROP",
        "host firewall",
        "FORWARD",
    ),
    Fault(
        "iptables-legacy drops in FORWARD",
        "iptables-legacy -I FORWARD -s {own} -j DROP",
        "host firewall",
        "FORWARD",
    ),
    Fault(
        "the policy of iptables-legacy's FORWARD is DROP",
        "iptables-legacy -P FORWARD DROP",
        "host firewall",
        "FORWARD",
    ),
]

_OF_SERVICES = [
    Fault(
        "nothing listens in the guest",
        "true",
        "guest",
        "nothing listens",
        "--from host --to :80",
        by_hand="{serve}",
        back="{stop}",
        telling=True,
    ),
    Fault(
        "what listens in the guest does so on 127.0.0.1",
        "{serve-local}",
        "guest",
        "127.0.0.1",
        "--from host --to :80",
        by_hand="{stop}; {serve}",
        back="{stop}",
    ),
    Fault(
        "a port that is not published",
        "{serve}",
        "host",
        "not published",
        "--from host --to 198.51.100.1:80",
        back="{stop}; iptables -t nat -D OUTPUT -p tcp -d 198.51.100.1 --dport 80 "
        "-j DNAT --to-destination {own}:80; iptables -t nat -D PREROUTING -p tcp "
        "-d 198.51.100.1 --dport 80 -j DNAT --to-destination {own}:80",
    ),
    Fault(
        "the rules of a published port are gone",
        "{serve}; iptables-save -t nat > {directory}/twx-nat; iptables -t nat -F OUTPUT; "
        "iptables -t nat -F PREROUTING",
        "host",
        "rules that say so are gone",
        "--from host --to 198.51.100.1:8088",
        back="{stop}; iptables-restore < {directory}/twx-nat; rm {directory}/twx-nat",
    ),
    Fault(
        "nothing listens on the host",
        "true",
        "target",
        "nothing listens",
        "--to 10.96.0.1:5555",
        by_hand="ip netns exec twx-near true; nohup python3 -m http.server 5555 --bind 10.96.0.1 "
        ">/dev/null 2>&1 & echo $! > {directory}/twx-pid; "
        "until grep -q :15B3 /proc/net/tcp; do sleep 0.05; done",
        back="kill $(cat {directory}/twx-pid); rm {directory}/twx-pid",
    ),
    Fault(
        "nothing listens beyond",
        "true",
        "target",
        "refuses",
        "--to 198.51.100.2:81",
        by_hand="nohup ip netns exec twx-wan python3 -m http.server 81 --bind 198.51.100.2 "
        ">/dev/null 2>&1 & echo $! > {directory}/twx-pid; "
        "until ip netns exec twx-wan grep -q :0051 /proc/net/tcp; do sleep 0.05; done",
        back="kill $(cat {directory}/twx-pid); rm {directory}/twx-pid",
    ),
    Fault(
        "nothing listens beyond (UDP)",
        "true",
        "target",
        "refuses",
        "--to 198.51.100.2:9 --udp",
        by_hand='nohup ip netns exec twx-wan python3 -c "import socket; s = socket.socket(2, 2); '
        "s.bind(('198.51.100.2', 9)); [s.recv(9) for _ in range(99)]\" >/dev/null 2>&1 & "
        "echo $! > {directory}/twx-pid; "
        "until ip netns exec twx-wan grep -q :0009 /proc/net/udp; do sleep 0.05; done",
        back="kill $(cat {directory}/twx-pid) || true; rm {directory}/twx-pid",
    ),
    Fault(
        "the name server does not answer",
        "{wan} ip address del 198.51.100.53/24 dev wan0",
        "DNS",
        "does not answer",
        "--to web.example.org",
        by_hand="{wan} ip address add 198.51.100.53/24 dev wan0",
    ),
    Fault(
        "the name server refuses",
        "{guest} sh -c 'echo nameserver 198.51.100.54 > /etc/resolv.conf'",
        "DNS",
        "refused",
        "--to web.example.org",
        by_hand="{resolv}",
    ),
    Fault(
        "no name server listens there",
        "{guest} sh -c 'echo nameserver 198.51.100.2 > /etc/resolv.conf'",
        "DNS",
        "does not answer",
        "--to web.example.org",
    ),
    Fault(
        "no name server in the guest",
        "{guest} sh -c 'echo > /etc/resolv.conf'",
        "DNS",
        "names no name server",
        "--to web.example.org",
    ),
    Fault(
        "the wrong search domain",
        "{guest} sh -c 'echo nameserver 198.51.100.53 > /etc/resolv.conf; "
        "echo search example.net >> /etc/resolv.conf'",
        "DNS",
        "search domain",
        "--to web",
        telling=True,
    ),
    Fault(
        "a name that nobody has",
        "true",
        "DNS",
        "knows no such name",
        "--to nowhere.example.org",
        by_hand="ASK --to web.example.org",
    ),
]

_OF_PROCESSES = [
    Fault("QEMU is stopped", "kill -STOP {qemu}", "QEMU", "stopped"),
    Fault("the supervisor is stopped", "kill -STOP {supervisor}", "supervisor", "stopped"),
    Fault(
        "the agent in the guest is stopped",
        "{guest} sh -c '(sleep 15; kill -CONT $PPID) & kill -STOP $PPID' &>/dev/null & sleep 1",
        "agent",
        "does not answer",
        by_hand="{guest} true",
    ),
]
