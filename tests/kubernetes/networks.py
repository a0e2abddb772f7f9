"""The networks of a node's pods: configurations of CNI, and stand-ins for what Debian has not.

`pods` is that of all pods, in both families of addresses. Classes `NETWORK-RUNTIME` have others:
`several` with further interfaces, as Multus gives them, and `flannel` and `calico` as those make
them. Their plugins are written here, after those projects' sources, on top of the plugins that are
packages; what their daemons do on a node is done by `begin` and `lead`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.sandboxes import PLUGINS

WIRE, WIRE6 = "192.168.50", "fd00:50:"
PODS, PODS6 = "10.244", "fd00:244:"
FLANNEL, CALICO = "10.245", "10.246"
OTHERS = "several", "flannel", "calico"

# Runs several plugins for a pod, as Multus does: the first for eth0, whose result is the pod's, and
# the others for net1, net2, …
_META = """\
#!/usr/bin/python3 -ISB
import json, os, subprocess, sys

config = json.load(sys.stdin)
adds = os.environ["CNI_COMMAND"] == "ADD"
delegates = list(enumerate(config["delegates"]))
results = []
for number, one in delegates if adds else delegates[::-1]:
    told = {"cniVersion": config["cniVersion"], "name": f"{config['name']}-{number}", **one}
    name = f"net{number}" if number else os.environ["CNI_IFNAME"]
    done = subprocess.run(
        [f"{os.path.dirname(__file__)}/{one['type']}"],
        input=json.dumps(told), stdout=subprocess.PIPE, text=True,
        env={**os.environ, "CNI_IFNAME": name},
    )
    results.append(done.stdout)
    if done.returncode:
        print(done.stdout)
        sys.exit(done.returncode)
print(results[0] if adds else "")
"""
# Has the bridge plugin make what the daemon has written into subnet.env, as that of flannel does.
_FLANNEL = """\
#!/usr/bin/python3 -ISB
import json, os, subprocess, sys

config = json.load(sys.stdin)
with open(config["subnetFile"]) as file:
    told = dict(line.strip().split("=") for line in file)
ipam = {"type": "host-local", "ranges": [[{"subnet": told["FLANNEL_SUBNET"]}]]}
ipam["routes"] = [{"dst": told["FLANNEL_NETWORK"]}]
bridge = {"type": "bridge", "isGateway": True, "mtu": int(told["FLANNEL_MTU"]), "ipam": ipam}
bridge["ipMasq"] = told["FLANNEL_IPMASQ"] != "true"
told = {"cniVersion": config["cniVersion"], "name": config["name"], **bridge, **config["delegate"]}
plugin = f"{os.path.dirname(__file__)}/bridge"
sys.exit(subprocess.run([plugin], input=json.dumps(told), text=True).returncode)
"""
# A /32 address, a gateway that no interface has, and the answer for it on the host's end.
_CALICO = """\
#!/usr/bin/python3 -ISB
import hashlib, json, os, subprocess, sys

def run(*words):
    subprocess.run(words, check=True, stdout=sys.stderr)

config = json.load(sys.stdin)
told, command = json.dumps(config), os.environ["CNI_COMMAND"]
host = "cali" + hashlib.sha1(os.environ["CNI_CONTAINERID"].encode()).hexdigest()[:11]
plugin = f"{os.path.dirname(__file__)}/host-local"
done = subprocess.run([plugin], input=told, stdout=subprocess.PIPE, text=True)
if done.returncode or command != "ADD":
    print(done.stdout)
    if command == "DEL":
        subprocess.run(["ip", "link", "delete", host], stderr=subprocess.DEVNULL)
    sys.exit(done.returncode)
address = json.loads(done.stdout)["ips"][0]["address"].partition("/")[0] + "/32"
inside, name = os.path.basename(os.environ["CNI_NETNS"]), os.environ["CNI_IFNAME"]
run("ip", "link", "add", host, "type", "veth", "peer", "name", name, "netns", inside)
run("ip", "link", "set", host, "address", "ee:ee:ee:ee:ee:ee", "up")
for place, value in (("conf", "proxy_arp=1"), ("neigh", "proxy_delay=0")):
    key, _, number = value.partition("=")
    with open(f"/proc/sys/net/ipv4/{place}/{host}/{key}", "w") as file:
        file.write(number)
run("ip", "route", "add", address, "dev", host, "scope", "link")
run("ip", "-n", inside, "address", "add", address, "dev", name)
run("ip", "-n", inside, "link", "set", name, "up")
run("ip", "-n", inside, "route", "add", "169.254.1.1", "dev", name, "scope", "link")
run("ip", "-n", inside, "route", "add", "default", "via", "169.254.1.1", "dev", name)
interfaces = [{"name": host}, {"name": name, "sandbox": os.environ["CNI_NETNS"]}]
ips = [{"version": "4", "address": address, "interface": 1}]
print(json.dumps({"cniVersion": config["cniVersion"], "interfaces": interfaces, "ips": ips}))
"""


class Place(Protocol):
    """Of a node what its networks need."""

    @property
    def number(self) -> int: ...

    @property
    def address(self) -> str: ...

    def output(self, *words: str) -> str: ...


def write(home: Path, number: int) -> None:
    """Configurations and plugins of a node, in `home`."""
    (home / "plugins").mkdir()
    for plugin in Path(PLUGINS).iterdir():
        (home / "plugins" / plugin.name).symlink_to(plugin)
    for name, text in (("meta", _META), ("flannel", _FLANNEL), ("calico", _CALICO)):
        written = home / "plugins" / name
        written.write_text(text)
        written.chmod(0o755)
    default = [{"dst": "0.0.0.0/0"}]
    both = _ipam(f"{PODS}.{number}.0/24", routes=[*default, {"dst": "::/0"}])
    both["ranges"] = [[{"subnet": f"{PODS}.{number}.0/24"}], [{"subnet": f"{PODS6}{number}::/64"}]]
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    _write(home, "cni", "pods", {"type": "ptp", "ipam": both}, ports)

    first = {"type": "ptp", "ipam": _ipam(f"{PODS}.{100 + number}.0/24", routes=default)}
    local = {"type": "bridge", "bridge": "second", "mtu": 1400, "ipam": _ipam("10.77.1.0/24")}
    # The nodes are in one network: each has a part of its addresses.
    part = {"rangeStart": f"10.77.2.{number}0", "rangeEnd": f"10.77.2.{number}9"}
    apart = {"type": "macvlan", "master": "eth0", "ipam": _ipam("10.77.2.0/24", **part)}
    _write(home, "several", "several", {"type": "meta", "delegates": [first, local, apart]})

    told = {"NETWORK": f"{FLANNEL}.0.0/16", "SUBNET": f"{FLANNEL}.{number}.0/24"}
    told |= {"MTU": "1450", "IPMASQ": "true"}
    subnet = home / "subnet.env"
    subnet.write_text("".join(f"FLANNEL_{key}={value}\n" for key, value in told.items()))
    delegate = {"isDefaultGateway": True, "hairpinMode": True}
    _write(
        home,
        "flannel",
        "flannel",
        {"type": "flannel", "subnetFile": str(subnet), "delegate": delegate},
    )
    of_calico = _ipam(f"{CALICO}.{number}.0/24")
    _write(home, "calico", "calico", {"type": "calico", "ipam": of_calico})


def begin(node: Place) -> None:
    """What a network's daemon does on its node first: flannel's VXLAN."""
    options = ("type", "vxlan", "id", "1", "local", node.address, "dev", "eth0", "nolearning")
    name, mac = "flannel.1", _mac(node)
    node.output("ip", "link", "add", name, "address", mac, *options, "dstport", "8472")
    node.output("ip", "address", "add", f"{FLANNEL}.{node.number}.0/32", "dev", name)
    node.output("ip", "link", "set", name, "up")


def lead(node: Place, other: Place) -> None:
    """Lead a node to the pods of another: by routes, and flannel's by VXLAN."""
    number, via = other.number, ("via", other.address)
    for network in (PODS, CALICO):
        node.output("ip", "route", "add", f"{network}.{number}.0/24", *via)
    six = f"{WIRE6}:{10 + number}"
    node.output("ip", "-6", "route", "add", f"{PODS6}{number}::/64", "via", six)
    there, tunnel = f"{FLANNEL}.{number}.0", ("dev", "flannel.1")
    node.output("bridge", "fdb", "append", _mac(other), *tunnel, "dst", other.address)
    node.output("ip", "neighbour", "add", there, "lladdr", _mac(other), *tunnel, "nud", "permanent")
    node.output("ip", "route", "add", f"{there}/24", "via", there, *tunnel, "onlink")


def _mac(node: Place) -> str:
    return f"0e:00:00:00:00:{node.number:02x}"


def _write(home: Path, directory: str, name: str, *plugins: Mapping[str, object]) -> None:
    (home / directory).mkdir(exist_ok=True)
    network = {"cniVersion": "0.4.0", "name": name, "plugins": plugins}
    (home / directory / f"10-{name}.conflist").write_text(json.dumps(network))


def _ipam(subnet: str, routes: Sequence[object] = (), **part: str) -> dict[str, object]:
    return {"type": "host-local", "ranges": [[{"subnet": subnet, **part}]], "routes": routes}
