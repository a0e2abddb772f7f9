"""Where faults are made: a sandbox on a bridge, another machine in that bridge, and one beyond the
host, which routes and masquerades. All in the namespace that is the host of the tests."""

import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from tapwright.cli.explain import wish_of
from tapwright.diagnosis import explaining
from tapwright.diagnosis.case import Explanation
from tapwright.state import registry
from tests.host import eventually
from tests.sandboxes import Networks, Tapwright

BRIDGE, NEAR, WAN, UPLINK = "br-ex", "twx-near", "twx-wan", "up0"
WEB, DNS, WEB6, UPSTREAM, NEAR_ADDRESS = (
    *("198.51.100.2", "198.51.100.53", "fd97::2", "198.51.100.1"),
    "10.96.0.200",
)
NAME = "lost"

_SERVERS = """
import select, socket, struct
def listen(address, port, kind):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    if kind == socket.SOCK_STREAM:
        s.listen(16)
    return s
web = [listen(a, 80, socket.SOCK_STREAM) for a in ("198.51.100.2", "fd97::2")]
echo = [listen("198.51.100.2", 7, socket.SOCK_DGRAM)]
dns = [listen("198.51.100.53", 53, socket.SOCK_DGRAM)]
refusing = [listen("198.51.100.54", 53, socket.SOCK_DGRAM)]
print("ready", flush=True)
while True:
    for s in select.select(web + echo + dns + refusing, [], [])[0]:
        if s in web:
            s.accept()[0].close()
        elif s in echo:
            s.sendto(*s.recvfrom(4096))
        else:
            data, place = s.recvfrom(4096)
            end = data.index(b"\\0", 12)
            name, kind = data[12:end], data[end + 1 : end + 3]
            known = name == b"\\x03web\\x07example\\x03org" and kind == b"\\0\\1"
            code = 5 if s in refusing else 0 if name == b"\\x03web\\x07example\\x03org" else 3
            head = data[:2] + struct.pack("!BBHHHH", 0x81, 0x80 | code, 1, int(known), 0, 0)
            answer = b"\\xc0\\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes((198, 51, 100, 2))
            s.sendto(head + data[12 : end + 5] + (answer if known else b""), place)
"""
# Offers to be the default router of the bridge (RFC 4861, 4.2), again and again.
_ROUTER = f"""
import socket, struct, time
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
while True:
    offer = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    s.sendto(offer, ("ff02::1", 0, 0, socket.if_nametoindex("{BRIDGE}")))
    time.sleep(0.3)
"""


class Stage:
    """`words` stand in braces in the commands of faults."""

    def __init__(self, tapwright: Tapwright, words: dict[str, str]) -> None:
        self.tapwright = tapwright
        self.words = words

    def run(self, command: str) -> None:
        """A line of a shell, of which `tapwright` is the one under test. Raises AssertionError."""
        for word, value in self.words.items():
            command = command.replace("{" + word + "}", value)
        ours = " ".join(map(shlex.quote, self.tapwright.command()))
        script = f'tapwright() {{ {ours} "$@"; }}\n{command}'
        done = subprocess.run(
            ["bash", "-c", script], check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def explain(self, question: str) -> Explanation:
        """In this process; `question` is what follows the sandbox's name on the command line."""
        options = self._options(question)
        wish = wish_of(options["--to"], options["--from"], "--udp" in options)
        return explaining.explain(registry.find(self.tapwright.root, NAME), wish)

    def told(self, question: str) -> dict[str, Any]:
        """The same, as JSON."""
        return asdict(self.explain(question))

    def command(self, question: str) -> dict[str, Any]:
        """By the command; its exit status must be as it says."""
        words = shlex.split(self.filled(question))
        done = self.tapwright.run("sandbox", "explain", NAME, *words, "--json")
        assert done.stdout, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (0 if said["arrives"] else 1)
        return said

    def filled(self, question: str) -> str:
        for word, value in self.words.items():
            question = question.replace("{" + word + "}", value)
        return question

    def _options(self, question: str) -> dict[str, Any]:
        words = shlex.split(self.filled(question))
        found: dict[str, Any] = {"--to": "", "--from": None}
        while words:
            word = words.pop(0)
            found[word] = True if word == "--udp" else words.pop(0)
        return found


def sh(command: str) -> None:
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def staged(tapwright: Tapwright, networks: Networks) -> Iterator[Stage]:
    """A sandbox with one NIC, and the two machines."""
    with _machines(networks) as configuration:
        network = ("--network", "ex", "--publish", "8088:80/tcp")
        done = tapwright.run("sandbox", "run", NAME, *network, "--json", config=configuration)
        assert done.returncode == 0, done.stderr
        try:
            _give_nft(tapwright)
            yield Stage(tapwright, _words(tapwright))
        finally:
            # A plugin may find a chain busy that a fault had to do with, and not again.
            delete = "sandbox", "delete", NAME
            assert eventually(lambda: tapwright.run(*delete).returncode == 0)


@contextmanager
def _machines(networks: Networks) -> Iterator[Path | None]:
    networks.write("ex", _plugins(networks.leases))
    settings = {
        name: Path(f"/proc/sys/net/{name}").read_text()
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    }
    for name in (NEAR, WAN):
        sh(f"ip netns add {name} && ip -n {name} link set lo up")
    servers = None
    try:
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        sh(f"ip link add {UPLINK} type veth peer name wan0 netns {WAN}")
        sh(f"ip address add {UPSTREAM}/24 dev {UPLINK} && ip link set {UPLINK} up")
        sh(f"ip address add fd97::1/64 dev {UPLINK} nodad")
        for address in (f"{WEB}/24", f"{DNS}/24", "198.51.100.54/24"):
            sh(f"ip -n {WAN} address add {address} dev wan0")
        sh(f"ip -n {WAN} address add {WEB6}/64 dev wan0 nodad && ip -n {WAN} link set wan0 up")
        sh(f"ip route replace default via {WEB} && ip -6 route replace default via {WEB6}")
        servers = subprocess.Popen(
            ["ip", "netns", "exec", WAN, sys.executable, "-c", _SERVERS], stdout=subprocess.PIPE
        )
        assert servers.stdout
        assert servers.stdout.readline() == b"ready\n"
        yield None
    finally:
        if servers:
            servers.kill()
            servers.wait()
            if servers.stdout:
                servers.stdout.close()
        for name, value in settings.items():
            Path(f"/proc/sys/net/{name}").write_text(value)
        for command in (f"link delete {UPLINK}", f"netns delete {NEAR}", f"netns delete {WAN}"):
            subprocess.run(["ip", *command.split()], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False, stderr=subprocess.DEVNULL)


def _plugins(leases: Path) -> list[dict[str, Any]]:
    return [
        {
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "dns": {"nameservers": [DNS], "search": ["example.org"]},
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.96.0.0/24"}], [{"subnet": "fd96::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                "dataDir": str(leases),
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]


def _words(tapwright: Tapwright) -> dict[str, str]:
    sandbox = tapwright.json("sandbox", "inspect", NAME)
    picture = tapwright.json("sandbox", "show", NAME)
    (way,) = picture["ways"]
    points = {point["kind"]: point for point in way["points"]}
    peer = points["peer"]["name"]
    # The other machine comes into the bridge as it is by now.
    sh(f"ip link add near-h type veth peer name near0 netns {NEAR}")
    sh(f"ip link set near-h master {BRIDGE} up && ip -n {NEAR} link set near0 up")
    sh(f"ip -n {NEAR} address add {NEAR_ADDRESS}/24 dev near0")
    sh(f"ip -n {NEAR} address add fd96::200/64 dev near0 nodad")
    four, six = (a.partition("/")[0] for a in sandbox["interfaces"][0]["addresses"])
    where = way["points"]
    assert eventually(lambda: _pings(NEAR_ADDRESS) and _pings(WEB) and _pings(four))
    return {
        "id": NAME,
        "guest": _guest(NAME),
        "netns": sandbox["netns"],
        "in": f"nsenter --net={sandbox['netns']}",
        "wan": f"ip netns exec {WAN}",
        "near": f"ip netns exec {NEAR}",
        "router": f"{sys.executable} -c {shlex.quote(_ROUTER)}",
        "tap": points["tap"]["name"],
        "peer": peer,
        "bridge": BRIDGE,
        "own": four,
        "own6": six,
        "mac": sandbox["interfaces"][0]["mac"],
        "supervisor": str(sandbox["supervisor_pid"]),
        "qemu": _qemu(sandbox["supervisor_pid"]),
        "count": str(len(where)),
        "directory": tempfile.gettempdir(),
        "serve": _served("0.0.0.0:80"),
        "serve-local": _served("127.0.0.1:80"),
        "stop": f"{_guest(NAME)} sh -c 'kill $(cat /tmp/served); rm -f /tmp/served'",
        "resolv": f"{_guest(NAME)} sh -c 'echo nameserver {DNS} > /etc/resolv.conf; echo search "
        "example.org >> /etc/resolv.conf'",
    }


def _guest(name: str) -> str:
    return f"tapwright sandbox exec {name} --"


def _served(place: str) -> str:
    """A line of a shell that has something listen in the guest until {stop}."""
    address, port = place.split(":")
    program = (
        f'import socket; s = socket.create_server((\\"{address}\\", {port})); '
        "[s.accept()[0].close() for _ in range(999)]"
    )
    listening = f'python3 -S -s -c "{program}"'
    return (
        f"{_guest(NAME)} sh -c '{listening} > /dev/null 2>&1 & echo $! > /tmp/served; "
        "until grep -q :0050 /proc/net/tcp; do sleep 0.05; done'"
    )


def _give_nft(tapwright: Tapwright) -> None:
    """Put this host's `nft` into the guest, as a container may bring one, at /host/nft."""
    program = "/usr/sbin/nft"
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    files = [program, *(word for word in listed.split() if word.startswith("/"))]
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        for file in files:
            name = file.rpartition("/")[2]
            tar.add(file, f"host/{'program' if file == program else name}")
        script = (
            '#!/bin/sh\nexec /host/ld-linux-x86-64.so.2 --library-path /host /host/program "$@"\n'
        )
        entry = tarfile.TarInfo("host/nft")
        entry.size, entry.mode = len(script), 0o755
        tar.addfile(entry, BytesIO(script.encode()))
    unpack = ("sandbox", "exec", NAME, "--", "tar", "-x", "-C", "/")
    done = tapwright.run(*unpack, input=archive.getvalue(), text=False)
    assert done.returncode == 0, done.stderr


def _pings(address: str) -> bool:
    command = ["ping", "-c1", "-W1", address]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _qemu(supervisor: int) -> str:
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return next(pid for pid in children if "qemu" in os.readlink(f"/proc/{pid}/exe"))
