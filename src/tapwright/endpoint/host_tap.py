"""A TAP of the host's own namespace that a sandbox brings with it: made where there is none, and
made a port of a Linux bridge or of a bridge of Open vSwitch.

To the VM it goes as any existing TAP does (`tap`). Each step here says whether it did anything, and
can be taken back by itself.
"""

import subprocess

from tapwright.errors import NetworkError
from tapwright.linux import links, tuntap
from tapwright.linux.netlink import Netlink

_OVS_SECONDS = 20


def exists(name: str) -> bool:
    """Whether there is an interface of that name. Raises OSError."""
    with Netlink() as nl:
        return links.find(nl, name) is not None


def make(name: str) -> None:
    """Make the TAP, for a virtual machine. Raises NetworkError."""
    try:
        tuntap.make_persistent(name)
    except OSError as error:
        raise NetworkError(f"the TAP {name} can't be made: {error.strerror}") from None


def remove(name: str) -> None:
    """Raises OSError."""
    with Netlink() as nl:
        link = links.find(nl, name)
        if link and link.kind == tuntap.KIND:
            links.remove(nl, link.index)


def is_port(name: str, bridge: str, ovs: str) -> bool:
    """Whether the TAP is a port of that bridge already. Raises NetworkError where there is no such
    bridge, or the TAP is in another one."""
    if ovs:
        _ovs(
            "br-exists", ovs, otherwise=f"Open vSwitch has no bridge {ovs}; ovs-vsctl add-br {ovs}"
        )
        there = _ovs("--if-exists", "get", "Interface", name, "name")
        return bool(there) and _ovs("port-to-br", name) == ovs
    with Netlink() as nl:
        port, master = links.find(nl, name), links.find(nl, bridge)
    if master is None or master.kind != "bridge":
        raise NetworkError(f"there is no Linux bridge {bridge}; ip link add {bridge} type bridge")
    if port and port.master not in (0, master.index):
        raise NetworkError(
            f"the TAP {name} is a port of another bridge; remove it from there first"
        )
    return port is not None and port.master == master.index


def connect(name: str, bridge: str, ovs: str) -> None:
    """Make the TAP a port of the bridge. Raises NetworkError."""
    if ovs:
        _ovs("add-port", ovs, name)
        return
    with Netlink() as nl:
        port, master = links.find(nl, name), links.find(nl, bridge)
        if port is None or master is None:
            raise NetworkError(f"{bridge if port else name} has gone")
        try:
            links.set_master(nl, port.index, master.index)
        except OSError as error:
            raise NetworkError(f"the TAP {name} can't get into {bridge}: {error}") from None


def disconnect(name: str, bridge: str, ovs: str) -> None:
    """Take the TAP out of the bridge, where it still is in it. Raises OSError."""
    if ovs:
        try:
            _ovs("--if-exists", "del-port", ovs, name)
        except NetworkError as error:
            raise OSError(str(error)) from None
        return
    with Netlink() as nl:
        port, master = links.find(nl, name), links.find(nl, bridge)
        if port and master and port.master == master.index:
            links.set_master(nl, port.index, 0)


def _ovs(*words: str, otherwise: str = "") -> str:
    """Raises NetworkError, with `otherwise` in the place of what a failing ovs-vsctl says."""
    command = ["ovs-vsctl", f"--timeout={_OVS_SECONDS}", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NetworkError(
            f"ovs-vsctl can't be run: {error.strerror}; install openvswitch-switch"
        ) from None
    if done.returncode:
        raise NetworkError(otherwise or f"ovs-vsctl {words[-2]}: {done.stderr.strip()}")
    return done.stdout.strip()
