"""What `explain` reads of the host beyond a picture: routes, settings, packet rules, connections,
ports of bridges and of Open vSwitch, and the state of the sandbox's processes.

All of it is plain data. This module changes nothing. A fact that can't be read stays empty.
"""

import contextlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapwright.diagnosis.view import View
from tapwright.linux import lookup, netlink, netns
from tapwright.linux.lookup import Entry
from tapwright.linux.netlink import Netlink, NetlinkError, attribute, attributes

_SECONDS = 2.0
_PORT_STATE, _PORT_LEARNING, _PORT_FLOOD, _PORT_ISOLATED = 1, 8, 9, 33
_BRIDGE_FORWARD_DELAY, _BRIDGE_STP_STATE, _BRIDGE_VLAN_FILTERING = 1, 5, 7
_AF_BRIDGE, _RTM_GETLINK, _RTM_GETNEIGH = 7, 18, 30
_EXT_MASK, _AF_SPEC, _VLAN_INFO, _WITH_VLANS = 29, 26, 2, 2
_PVID = 2
_TICKS = 100  # a second: USER_HZ
_IFINFO, _NDMSG = struct.Struct("=BxHiII"), struct.Struct("=BxxxiHBB")


@dataclass
class Port:
    """A port of a bridge. `state` is 3 for forwarding; `pvid` is 0 if the port has none."""

    name: str
    index: int
    mac: str = ""
    state: int = 3
    isolated: bool = False
    learning: bool = True
    flood: bool = True
    pvid: int = 0
    vlans: tuple[int, ...] = ()


@dataclass
class Bridge:
    """`learned` has (MAC, port, is_static) of each entry of the forwarding table; a person or a
    program entered the static ones. `own_pvid` and `own_vlans` are the VLANs of the bridge's own
    interface. `forward_delay` is in seconds."""

    name: str
    index: int
    filters_vlans: bool = False
    ports: list[Port] = field(default_factory=list)
    learned: list[tuple[str, str, bool]] = field(default_factory=list)
    own_pvid: int = 0
    own_vlans: tuple[int, ...] = ()
    has_stp: bool = False
    forward_delay: float = 15.0


@dataclass
class Host:
    """`settings` are by their path below /proc/sys/net, `names` of interfaces by their index;
    `routes` are of the target's IP version. `nft` is the output of `nft -j list ruleset`.
    `legacy_before` and `legacy_after` are the rules of iptables-legacy with their counters
    (`iptables-legacy-save -c`), before and after the probes."""

    names: dict[int, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    routes: list[Entry] = field(default_factory=list)
    bridges: list[Bridge] = field(default_factory=list)
    nft: list[dict[str, Any]] = field(default_factory=list)
    legacy_before: str = ""
    legacy_after: str = ""
    connections: int = 0
    most_connections: int = 0
    listening: list[tuple[str, str, int]] = field(default_factory=list)
    ovs: dict[str, Any] = field(default_factory=dict)
    down: list[tuple[str, str]] = field(default_factory=list)
    """(interface, ADDRESS/PREFIX) of interfaces that are down."""


@dataclass
class Process:
    """`state` as in /proc/PID/stat: T for stopped, empty for gone."""

    name: str
    pid: int
    state: str


def processes(supervisor: int | None) -> list[Process]:
    """Return the supervisor and QEMU with their states in the kernel."""
    if not supervisor:
        return []
    found = [Process("the supervisor", supervisor, _state_of(supervisor))]
    with contextlib.suppress(OSError, ValueError):
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        for pid in map(int, children):
            if "qemu" in os.readlink(f"/proc/{pid}/exe"):
                found.append(Process("QEMU", pid, _state_of(pid)))
    return found


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def of_host(view: View, version: int, devices: list[str]) -> Host:
    """Read the caller's namespace, which `view` shows. `devices` names the interfaces whose
    settings are read."""
    found = Host({index: seen.link.name for index, seen in view.interfaces.items()})
    for index in view.interfaces:
        for address in view.addresses(index):
            found.addresses[address.address] = found.names[index]
            if not view.interfaces[index].link.is_up:
                found.down.append((found.names[index], str(address)))
    family = f"ipv{version}"
    paths = [f"{family}/ip_forward"] if version == 4 else ["ipv6/conf/all/forwarding"]
    for device in dict.fromkeys(["all", "default", *devices]):
        keys = ("forwarding", "rp_filter") if version == 4 else ("forwarding", "disable_ipv6")
        paths += [f"{family}/conf/{device}/{key}" for key in keys]
    paths += ["netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max"]
    for path in paths:
        with contextlib.suppress(OSError):
            found.settings[path] = Path(f"/proc/sys/net/{path}").read_text().strip()
    found.connections = int(found.settings.get("netfilter/nf_conntrack_count", 0) or 0)
    found.most_connections = int(found.settings.get("netfilter/nf_conntrack_max", 0) or 0)
    found.listening = listening()
    with Netlink() as nl:
        with contextlib.suppress(NetlinkError):
            found.routes = lookup.routes(nl, version)
        with contextlib.suppress(NetlinkError):
            found.bridges = list(_bridges(nl, view))
    return found


def listening() -> list[tuple[str, str, int]]:
    """Return (protocol, address, port) of each socket that listens in the caller's namespace."""
    found = []
    for name, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == state:
                    address, _, port = words[1].partition(":")
                    found.append((name, readable(address), int(port, 16)))
    return found


def readable(address: str) -> str:
    """Convert an address of /proc/net/tcp, which is 32 bits at a time in the host's byte order.
    Raises ValueError."""
    words = [bytes.fromhex(address[n : n + 8])[::-1] for n in range(0, len(address), 8)]
    packed = b"".join(words)
    if len(packed) not in (4, 16):
        raise ValueError(f"{address!r} is no address")
    return netlink.unpack_address(packed)


def path(target: str, source: str = "", inside: int = 0) -> lookup.Path:
    """Return the route that a packet takes in the caller's namespace. Raises OSError."""
    with Netlink() as nl:
        return lookup.path(nl, target, source, inside)


def routes_at(place: str, version: int) -> list[Entry]:
    """Return the routes of the namespace at a path; none if it can't be read."""
    with contextlib.suppress(OSError), netns.entered(place), Netlink() as nl:
        return lookup.routes(nl, version)
    return []


def rules() -> list[dict[str, Any]]:
    """Return all of nf_tables in the JSON of `nft -j`; nothing if nft is not installed."""
    try:
        return list(json.loads(_output("nft", "-j", "-a", "list", "ruleset"))["nftables"])
    except (ValueError, KeyError, TypeError):
        return []


def legacy(version: int) -> str:
    """Return the rules of iptables-legacy with their counters. It is empty if no table is loaded:
    asking would load the kernel's modules."""
    names = Path("/proc/net/ip_tables_names" if version == 4 else "/proc/net/ip6_tables_names")
    with contextlib.suppress(OSError):
        if names.read_text().split():
            return _output(f"ip{'' if version == 4 else '6'}tables-legacy-save", "-c")
    return ""


def open_vswitch(port: str, flow: str) -> dict[str, Any]:
    """Return what Open vSwitch says of a port: its `bridge`, the VLAN `tags` of all ports of that
    bridge, and what would happen to a packet of this flow from the port (`trace`, from
    ovs-appctl(8) ofproto/trace)."""
    found: dict[str, Any] = {}
    if not shutil.which("ovs-vsctl"):
        return found
    bridge = _output("ovs-vsctl", "--timeout=2", "port-to-br", port).strip()
    if not bridge:
        return found
    found["bridge"] = bridge
    tags = {}
    listed = _output("ovs-vsctl", "--timeout=2", "-f", "json", "--columns=name,tag", "list", "Port")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        for name, tag in json.loads(listed)["data"]:
            tags[str(name)] = tag if isinstance(tag, int) else 0
    here = _output("ovs-vsctl", "--timeout=2", "list-ports", bridge).split()
    found["tags"] = {name: tag for name, tag in tags.items() if name in (*here, bridge)}
    target = ovs_control()
    options = ("-t", target) if target else ()
    number = _output("ovs-vsctl", "--timeout=2", "get", "Interface", port, "ofport").strip()
    found["trace"] = _output(
        "ovs-appctl", "--timeout=2", *options, "ofproto/trace", bridge, f"in_port={number},{flow}"
    )
    return found


def ovs_control() -> str:
    """Return the control socket of ovs-vswitchd, if OVS_RUNDIR names another directory than the
    default; else an empty string."""
    directory = os.environ.get("OVS_RUNDIR", "")
    for path in Path(directory).glob("*vswitchd*.ctl") if directory else ():
        return str(path)
    return ""


def _bridges(nl: Netlink, view: View) -> Iterator[Bridge]:
    vlans = dict(_vlans(nl))
    for index, seen in view.interfaces.items():
        if seen.link.kind != "bridge":
            continue
        info = attributes(seen.link.info)
        filters = info.get(_BRIDGE_VLAN_FILTERING, b"\0")
        bridge = Bridge(seen.link.name, index, filters != b"\0")
        bridge.has_stp = netlink.u32(info, _BRIDGE_STP_STATE) != 0
        bridge.forward_delay = netlink.u32(info, _BRIDGE_FORWARD_DELAY) / _TICKS
        bridge.own_pvid, bridge.own_vlans = vlans.get(index, (0, ()))
        for number, port in view.interfaces.items():
            if port.link.master != index:
                continue
            found = attributes(port.port)

            def flag(kind: int, default: bytes, found: netlink.Attributes = found) -> bool:
                return found.get(kind, default) != b"\0"

            bridge.ports.append(
                Port(
                    port.link.name,
                    number,
                    port.link.mac,
                    found.get(_PORT_STATE, b"\3")[0],
                    flag(_PORT_ISOLATED, b"\0"),
                    flag(_PORT_LEARNING, b"\1"),
                    flag(_PORT_FLOOD, b"\1"),
                    *vlans.get(number, (0, ())),
                )
            )
        with contextlib.suppress(NetlinkError):
            bridge.learned = list(_learned(nl, index, view))
        yield bridge


def _vlans(nl: Netlink) -> Iterator[tuple[int, tuple[int, tuple[int, ...]]]]:
    """Yield (index, (PVID, VLANs)) of each port and bridge."""
    request = _IFINFO.pack(_AF_BRIDGE, 0, 0, 0, 0) + attribute(_EXT_MASK, _WITH_VLANS)
    for body in nl.dump("list VLANs", _RTM_GETLINK, request):
        _, _, index, _, _ = _IFINFO.unpack_from(body)
        spec = attributes(body, _IFINFO.size).get(_AF_SPEC, b"")
        pvid, all_of_them = 0, []
        for kind, value in netlink.each(spec):
            if kind == _VLAN_INFO:
                flags, number = struct.unpack("=HH", value)
                all_of_them.append(number)
                pvid = number if flags & _PVID else pvid
        yield index, (pvid, tuple(all_of_them))


def _learned(nl: Netlink, bridge: int, view: View) -> Iterator[tuple[str, str, bool]]:
    request = _NDMSG.pack(_AF_BRIDGE, 0, 0, 0, 0) + attribute(9, bridge)
    for body in nl.dump("list a forwarding table", _RTM_GETNEIGH, request):
        _, device, state, flags, _ = _NDMSG.unpack_from(body)
        mac = attributes(body, _NDMSG.size).get(2, b"")
        if (
            len(mac) == 6 and flags & 2 and device in view.interfaces
        ):  # NTF_SELF is the device's own
            continue
        if len(mac) == 6:
            name = view.name_of(device)
            yield (
                netlink.unpack_mac(mac),
                name,
                bool(state & 0xC0),
            )  # NUD_PERMANENT, NUD_NOARP: static


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
