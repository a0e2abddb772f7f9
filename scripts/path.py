"""The way of packets to a program in a guest, and of its answers: what each device on it counts.

Run by scripts/demo, in the network namespace of the host: path.py BRIDGE SANDBOX ADDRESS TAPWRIGHT…
"""

import json
import re
import socket
import subprocess
import sys
from typing import Any, NamedTuple

PACKETS = 100
_PORT = 7  # echo (RFC 862)
_SECONDS = 5.0
_PROGRAM = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", {_PORT}))
print("bound", flush=True)
for n in range({PACKETS}):
    data, who = s.recvfrom(64)
    s.sendto(data, who)
print(n + 1, flush=True)
"""


class Count(NamedTuple):
    """Packets on their way to the guest, and back."""

    there: int
    back: int


class Place(NamedTuple):
    """Where packets come by: in which kernel, and what it is called there."""

    kernel: str
    device: str


def output(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def links(netns: str, *which: str) -> list[dict[str, Any]]:
    inside = ["nsenter", f"--net={netns}"] if netns else []
    found: list[dict[str, Any]] = json.loads(
        output(*inside, "ip", "-json", "-stats", "-details", "link", "show", *which)
    )
    return found


def _of(link: dict[str, Any], incoming: str, outgoing: str) -> Count:
    counted = link["stats64"]
    return Count(counted[incoming]["packets"], counted[outgoing]["packets"])


def _redirected(netns: str, device: str) -> int:
    """What the filter at the entrance of a device has handed on."""
    shown = output(
        "nsenter", f"--net={netns}", "tc", "-statistics", "filter", "show", "dev", device, "ingress"
    )
    return sum(int(found) for found in re.findall(r"Sent \d+ bytes (\d+) pkt", shown))


def _received_by_stack(netns: str) -> int:
    """IP packets that the namespace's own stack was given."""
    lines = output("nsenter", f"--net={netns}", "cat", "/proc/net/snmp").splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    return int(values[names.index("InReceives")])


def counts(bridge: str, netns: str, tapwright: list[str], sandbox: str) -> dict[Place, Count]:
    """Of each place, in the order in which packets come by."""
    (host,) = links("", bridge)
    inside = links(netns)
    (eth0,) = (link for link in inside if link["ifname"] == "eth0")
    (tap,) = (link for link in inside if link.get("linkinfo", {}).get("info_kind") == "tun")
    # Of the two ends of a veth, each knows the other's index.
    (veth,) = (
        link for link in links("", "master", bridge) if link["ifindex"] == eth0["link_index"]
    )
    directory = "/sys/class/net/eth0/statistics"
    guest = output(
        *tapwright, *("sandbox", "exec", sandbox, "--", "cat"),
        *(f"{directory}/{way}_packets" for way in ("rx", "tx")),
    ).split()  # fmt: skip
    return {
        Place("host", f"{bridge}, the bridge"): _of(host, "tx", "rx"),
        Place("host", f"{veth['ifname']}, its port"): _of(veth, "tx", "rx"),
        Place("sandbox's namespace", "eth0, by the plugin"): _of(eth0, "rx", "tx"),
        Place("sandbox's namespace", f"tc, eth0 to {tap['ifname']} and back"): Count(
            _redirected(netns, "eth0"), _redirected(netns, tap["ifname"])
        ),
        Place("sandbox's namespace", f"{tap['ifname']}, QEMU's"): _of(tap, "tx", "rx"),
        Place("guest", "eth0, virtio-net"): Count(int(guest[0]), int(guest[1])),
    }


def exchange(address: str, tapwright: list[str], sandbox: str) -> Count:
    """Have a program in the guest answer to packets; how many it got, how many came back."""
    program = subprocess.Popen(
        [*tapwright, "sandbox", "exec", sandbox, "--", "python3", "-c", _PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
    )
    with program, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        if program.stdout is None or program.stdout.readline() != "bound\n":
            sys.exit("the program in the guest did not begin")
        ours.settimeout(_SECONDS)
        ours.connect((address, _PORT))
        back = 0
        for number in range(PACKETS):
            ours.send(b"packet %d" % number)
            back += ours.recv(64) == b"packet %d" % number
        return Count(int(program.stdout.readline()), back)


def main(bridge: str, sandbox: str, address: str, *tapwright: str) -> None:
    command = list(tapwright)
    netns = json.loads(output(*command, "sandbox", "inspect", sandbox, "--json"))["netns"]
    before = counts(bridge, netns, command, sandbox)
    of_stack = _received_by_stack(netns)
    of_program = exchange(address, command, sandbox)
    of_stack = _received_by_stack(netns) - of_stack
    after = counts(bridge, netns, command, sandbox)
    rows = [
        (
            place.kernel,
            place.device,
            count.there - before[place].there,
            count.back - before[place].back,
        )
        for place, count in after.items()
    ]
    rows.append(("guest", "a program, over UDP", *of_program))
    print(f"{'':20}  {'':34}  there  back")
    last = ""
    for kernel, device, there, back in rows:
        print(f"{kernel if kernel != last else '':20}  {device:34}  {there:5}  {back:4}")
        last = kernel
    print("What is more than that is ARP, and what IPv6 says by itself.")
    print(f"IP packets that reached the stack of the sandbox's namespace: {of_stack}")


if __name__ == "__main__":
    main(*sys.argv[1:])
