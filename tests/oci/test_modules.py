"""What the guest's kernel loads when a container asks for it, by the programs that ask.

They are the host's own, bound into one container that has nothing but CAP_NET_ADMIN and CAP_NET_RAW
beyond the usual capabilities.
"""

import os
import shlex
from collections.abc import Iterator

import pytest

from tests.oci.bundles import CAPABILITIES, Json, configuration
from tests.oci.runtime import Container, Runtime

TUN = {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666}
FUSE = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
PPP = {"path": "/dev/ppp", "type": "c", "major": 108, "minor": 0, "fileMode": 0o600}
VHOST = {"path": "/dev/vhost-net", "type": "c", "major": 10, "minor": 238, "uid": 7, "gid": 8}
OTHER_NAME = {"path": "/dev/deep/er/tunnel", "type": "c", "major": 10, "minor": 200}
CLOSED = {"path": "/dev/loop-control", "type": "c", "major": 10, "minor": 237}
ELSEWHERE = {
    "path": "/data/tun",
    "type": "c",
    "major": 10,
    "minor": 200,
    "fileMode": 0o640,
    "gid": 5,
}
DEVICES = [TUN, FUSE, PPP, VHOST, OTHER_NAME, ELSEWHERE, CLOSED]
USR = {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]}
MODULES = {"destination": "/lib/modules", "type": "bind", "source": "/lib/modules"}

LINKS = """
d0 type dummy
d1 type dummy
d2 type dummy
br0 type bridge vlan_filtering 1
bo0 type bond mode 802.3ad
te0 type team
if0 type ifb
nl0 type nlmon
ve0 type veth peer name ve1
vl0 link d0 type vlan id 5
vl1 link d0 type vlan proto 802.1ad id 6
mv0 link d0 type macvlan mode bridge
mt0 link d0 type macvtap
iv0 link d1 type ipvlan mode l3
ms0 link d2 type macsec encrypt on
vr0 type vrf table 10
vx0 type vxlan id 1 dstport 4789
ge0 type geneve id 1 remote 10.0.0.1
gr0 type gre remote 10.0.0.1
gt0 type gretap remote 10.0.0.2
g60 type ip6gre remote fd00::1
ii0 type ipip remote 10.0.0.3
si0 type sit remote 10.0.0.4
i60 type ip6tnl remote fd00::2
vt0 type vti remote 10.0.0.5 key 5
xf0 type xfrm dev d0 if_id 7
wg0 type wireguard
vc0 type vcan
ba0 type batadv
"""

QDISCS = """
fq
fq_codel
cake bandwidth 10mbit
codel
netem delay 1ms loss 1%
tbf rate 1mbit burst 32k latency 400ms
htb default 1
hfsc
prio
drr
sfq
red limit 400000 avpkt 1000
pie
ets bands 3
choke limit 1000 bandwidth 10mbit
"""

FILTERS = """
matchall action drop
u32 match ip dst 10.0.0.1 action mirred egress redirect dev d2
flower ip_proto tcp dst_port 80 action skbedit mark 5
basic action pass
handle 9 fw action nat ingress 10.0.0.0/24 10.1.0.1
u32 match u32 0 0 action police rate 1mbit burst 10k drop
flower action pedit munge ip ttl set 3 pipe action csum ip
flower action vlan push id 5
flower action tunnel_key set id 5 src_ip 10.0.0.1 dst_ip 10.0.0.2
flower ct_state -trk action ct
matchall action sample rate 10 group 5
matchall action connmark
"""

RULES = """
-t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 15001
-t nat -A POSTROUTING -o d0 -j MASQUERADE
-t nat -A PREROUTING -p tcp --dport 81 -j DNAT --to-destination 10.0.0.9:8080
-t nat -A POSTROUTING -p tcp -j SNAT --to-source 10.0.0.8
-t mangle -A PREROUTING -p tcp -m socket --transparent -j MARK --set-mark 1
-t mangle -A PREROUTING -p tcp --dport 82 -j TPROXY --on-port 15006 --tproxy-mark 1/1
-t mangle -A POSTROUTING -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-t mangle -A PREROUTING -j CONNMARK --save-mark
-t raw -A PREROUTING -p udp --dport 53 -j CT --notrack
-t security -A INPUT -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment text -j ACCEPT
-A INPUT -p tcp -m multiport --dports 1,2,3 -m limit --limit 1/s -j ACCEPT
-A INPUT -p tcp -m connlimit --connlimit-above 9 -j REJECT --reject-with tcp-reset
-A INPUT -p udp -m hashlimit --hashlimit-upto 5/s --hashlimit-name h -j ACCEPT
-A INPUT -m recent --name r --set -j RETURN
-A INPUT -m statistic --mode random --probability 0.5 -j DROP
-A INPUT -m mac --mac-source 02:00:00:00:00:01 -m pkttype --pkt-type unicast -j DROP
-A INPUT -p tcp -m string --string x --algo bm -m length --length 9 -j DROP
-A OUTPUT -m owner --uid-owner 1337 -m addrtype --dst-type LOCAL -j RETURN
-A FORWARD -m physdev --physdev-is-bridged -m iprange --src-range 10.0.0.1-10.0.0.9 -j ACCEPT
-A FORWARD -m time --timestart 01:00 -m u32 --u32 0=0 -j LOG
-t raw -A PREROUTING -m rpfilter -j NFLOG
-A FORWARD -m dscp --dscp 9 -m ttl --ttl-eq 9 -m mark --mark 9 -j NFQUEUE
-A INPUT -p sctp --dport 5 -m quota --quota 9 -j ACCEPT
"""

RULESET = """
table inet t {
  set s { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.1 . 80-90 } }
  map m { type inet_service : verdict; elements = { 80 : accept } }
  counter c { }
  quota q { over 1 mbytes }
  limit l { rate 5/second }
  ct helper ftp { type "ftp" protocol tcp; }
  flowtable f { hook ingress priority 0; devices = { d0 }; }
  chain pre { type nat hook prerouting priority dstnat; tcp dport 81 dnat ip to 10.0.0.9:8080; }
  chain out { type nat hook output priority -100; tcp dport 80 redirect to :15001; }
  chain post { type nat hook postrouting priority srcnat; oif d0 masquerade; }
  chain route { type route hook output priority mangle; meta mark set 5; }
  chain mangle { type filter hook prerouting priority mangle;
    tcp dport 82 tproxy to :15006 meta mark set 1; socket transparent 1 accept;
    ip saddr . tcp dport @s counter name c; fib saddr . iif oif missing drop; }
  chain in { type filter hook input priority filter;
    ct state established,related accept; tcp dport vmap @m; limit name l; quota name q drop;
    numgen random mod 2 0 log prefix "x" group 1; meta l4proto tcp reject with tcp reset;
    jhash ip saddr mod 2 0 queue num 1; ct count over 5 drop;
    osf name "Linux"; tcp dport 21 ct helper set "ftp"; }
  chain forward { type filter hook forward priority filter; tcp option maxseg size set rt mtu;
    meta l4proto tcp flow add @f; }
}
table bridge b {
  chain c { type filter hook input priority 0; reject; }
}
table netdev n {
  chain i { type filter hook ingress device d0 priority 0; fwd to d1; }
}
table arp a {
  chain c { type filter hook input priority 0; accept; }
}
"""

PYTHON = """
import ctypes, fcntl, os, socket, struct
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tun7", 0x1001))
assert socket.if_nametoindex("tun7")
for path in ("/dev/fuse", "/dev/ppp", "/dev/vhost-net", "/dev/deep/er/tunnel"):
    os.close(os.open(path, os.O_RDWR))
try:
    os.open("/dev/loop-control", os.O_RDWR)
except PermissionError:
    pass
else:
    raise AssertionError("the rules for devices do not hold")
for words in ((2, 1, 132), (10, 5, 132), (2, 1, 262), (29, 3, 1), (16, 3, 12), (40, 1, 0)):
    socket.socket(*words).close()  # SCTP twice, MPTCP, CAN, nfnetlink, vsock
for name in (b"bbr", b"vegas", b"dctcp", b"westwood", b"htcp"):
    with socket.socket() as tcp:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
server = socket.create_server(("127.0.0.1", 0))
with socket.create_connection(server.getsockname()) as tcp:
    tcp.setsockopt(socket.IPPROTO_TCP, 31, b"tls")  # TCP_ULP
for mode in (0, 4, 6):  # hash, random, eBPF without a program
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as packets:
        packets.setsockopt(263, 18, 7 | mode << 16)  # SOL_PACKET, PACKET_FANOUT
"""


@pytest.fixture(scope="module")
def container(runtime: Runtime, modules_of_the_host: None) -> Iterator[Container]:
    content = configuration("sleep", "10000", mounts=[USR, MODULES])
    allowed = [*CAPABILITIES, "CAP_NET_ADMIN"]
    content["process"]["capabilities"] = dict.fromkeys(
        ("bounding", "effective", "permitted"), allowed
    )
    content["process"]["env"] = ["PATH=/usr/sbin:/usr/bin:/bin"]
    content["linux"]["devices"] = DEVICES
    rules: list[Json] = [{"allow": False, "access": "rwm"}]
    for device in DEVICES[:-1]:
        numbers = {key: device[key] for key in ("type", "major", "minor")}
        rules.append({"allow": True, "access": "rwm", **numbers})
    content["linux"]["resources"] = {"devices": rules}
    bundle = runtime.bundle(content)
    root = bundle / "rootfs"
    (root / "lib64").symlink_to("usr/lib64")
    (root / "lib/modules").mkdir(parents=True)
    (root / "run").mkdir()
    (root / "bin/kmod").symlink_to("/usr/bin/kmod")
    (root / "lib/x86_64-linux-gnu").symlink_to("/usr/lib/x86_64-linux-gnu")
    made = Container(runtime, runtime.fresh_id(), bundle)
    try:
        made.create()
        made.start()
        yield made
    finally:
        runtime.call("delete", "--force", made.id)
        made.close()


TABLES = "nat", "mangle", "raw", "security", "filter"


def refused(container: Container, *commands: str) -> list[str]:
    """Those that fail, with what they say."""
    script = "".join(
        f"said=$({command} 2>&1) || echo {shlex.quote(command)}: $said\n" for command in commands
    )
    done = container.exec("sh", "-c", script)
    print(done.stdout, done.stderr)  # pytest cuts what an assertion shows
    return f"{done.stdout}{done.stderr}".splitlines()


def lines(text: str, before: str = "", after: str = "") -> list[str]:
    return [f"{before}{line}{after}" for line in text.strip().splitlines()]


def test_devices_and_sockets(container: Container) -> None:
    container.says("/usr/bin/python3", "-I", "-S", "-c", PYTHON)
    found = container.says("stat", "-c", "%n %a %u %g", *(str(d["path"]) for d in DEVICES))
    assert found.splitlines() == [
        "/dev/net/tun 666 0 0",
        "/dev/fuse 666 0 0",
        "/dev/ppp 600 0 0",
        "/dev/vhost-net 666 7 8",
        "/dev/deep/er/tunnel 666 0 0",
        "/data/tun 640 0 5",
        "/dev/loop-control 666 0 0",
    ]
    container.says("sh", "-c", ": <>/data/tun")


@pytest.mark.smoke
def test_connections_are_counted(container: Container) -> None:
    rule = "OUTPUT -o lo -p icmp -m conntrack --ctstate NEW -m connbytes --connbytes 1 "
    rule += "--connbytes-dir both --connbytes-mode packets"
    assert (
        refused(
            container,
            "ip link set lo up",
            f"/usr/sbin/iptables-legacy -A {rule}",
            "ping -c 1 127.0.0.1",
        )
        == []
    )
    listed = container.says("iptables-legacy", "-vnxL", "OUTPUT")
    assert [line.split()[0] for line in listed.splitlines() if "connbytes" in line] == ["1"]


def test_links(container: Container) -> None:
    assert refused(container, *lines(LINKS, "/usr/bin/ip link add ")) == []


def test_qdiscs(container: Container) -> None:
    commands = [f"/usr/sbin/tc qdisc replace dev d0 root {line}" for line in lines(QDISCS)]
    assert refused(container, "/usr/bin/ip link set d0 up", *commands) == []


def test_classifiers_and_actions(container: Container) -> None:
    commands = [
        f"/usr/sbin/tc filter add dev d1 ingress protocol ip pref {number} {line}"
        for number, line in enumerate(lines(FILTERS), 1)
    ]
    commands += [
        "/usr/sbin/tc qdisc replace dev d2 root handle 1: prio",
        "/usr/sbin/tc filter add dev d2 parent 1: pref 1 handle 1 flow hash keys src divisor 16",
    ]
    assert refused(container, "/usr/sbin/tc qdisc add dev d1 clsact", *commands) == []


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_rules_of_iptables(container: Container, backend: str) -> None:
    rules = lines(RULES)
    six = [rule for rule in rules if "10." not in rule and "ttl" not in rule]
    for program, asked in (("iptables", rules), ("ip6tables", six)):
        for text in (ruleset(asked), ruleset([])):
            words = f"/usr/sbin/{program}-{backend}-restore", "-w"
            done = container.exec(*words, input=text)
            assert (done.returncode, done.stderr) == (0, ""), text
        assert "-A" not in container.says(f"/usr/sbin/{program}-{backend}-save")


def ruleset(rules: list[str]) -> str:
    """As iptables-restore reads them: a program for each rule would be most of what this takes."""
    of_table: dict[str, list[str]] = {name: [] for name in TABLES}
    for rule in rules:
        table = rule.split()[1] if rule.startswith("-t ") else "filter"
        of_table[table].append(rule.removeprefix(f"-t {table} "))
    return "".join("\n".join([f"*{name}", *found, "COMMIT\n"]) for name, found in of_table.items())


def test_rules_of_nft(container: Container) -> None:
    done = container.exec("nft", "-f", "-", input=RULESET)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tproxy to :15006" in container.says("nft", "list", "ruleset")
    container.says("nft", "flush", "ruleset")


def test_a_mount_of_the_hosts_modules_has_those_of_the_kernel(container: Container) -> None:
    release = container.says("uname", "-r").strip()
    assert container.says("ls", "/lib/modules").split() == [release]
    assert container.says("/usr/sbin/modinfo", "-F", "filename", "wireguard").startswith(
        "/lib/modules/"
    )
    built_in = container.says("sh", "-c", "head -n 1 /lib/modules/*/modules.builtin").strip()
    # The kernel has them already: no right to load modules is needed.
    names = "dummy", "tun", os.path.basename(built_in).removesuffix(".ko")
    assert refused(container, *(f"/usr/sbin/modprobe {name}" for name in names)) == []
    assert container.exec("/usr/sbin/modprobe", "nfs").returncode != 0


def test_a_container_names_no_file_to_load(container: Container) -> None:
    """What a container says becomes the name of a module, and no path or option of it."""
    script = "mkdir -p /tmp/modules && cp /lib/modules/*/kernel/net/sctp/sctp_diag.ko /tmp/evil.ko"
    assert refused(container, script) == []
    for kind in ("/tmp/evil.ko", "../../../tmp/evil", "-r dummy", "-d /tmp evil", "*"):
        done = container.exec("/usr/bin/ip", "link", "add", "ev0", "type", kind)
        assert done.returncode != 0
    loaded = container.says("cut", "-d ", "-f1", "/proc/modules").split()
    assert "evil" not in loaded
    assert "dummy" in loaded
    assert "nfs" not in loaded
