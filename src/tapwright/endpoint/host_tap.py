"""A TAP of the host's own namespace that a sandbox asks for. It is made if it does not exist, and
made a port of a Linux bridge or of an Open vSwitch bridge.

The VM gets it as any existing TAP (`tap`). Each step says whether it did anything, and can be
undone by itself.
"""

import subprocess

from tapwright.errors import NetworkError
from tapwright.linux import links, tuntap
from tapwright.linux.files import closing
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink

DEFAULT_MTU = 1500

_OVS_SECONDS = 20
_MARK = "external_ids:tapwright"


def is_connected(name: str, bridge: str, ovs: str) -> bool:
    """Check that the TAP exists or can be made, and can be a port of the bridge, if one is named.
    Return whether there is nothing to connect. Raises NetworkError."""
    with Netlink() as nl:
        link = links.find(nl, name)
    if link and tuntap.settings(link) is None:
        raise NetworkError(
            f"there is an interface {name}, which is no TAP but a {link.kind or 'NIC'}; choose "
            "another name for the TAP"
        )
    return not (bridge or ovs) or _is_port(name, bridge, ovs)


def exists(name: str) -> bool:
    """Whether an interface of this name exists. Raises OSError."""
    with Netlink() as nl:
        return links.find(nl, name) is not None


def mtu(name: str, bridge: str) -> int:
    """Return the TAP's MTU. For a TAP that does not exist yet it is the bridge's, because a bridge
    takes the least MTU of its ports. Raises OSError."""
    with Netlink() as nl:
        link = links.find(nl, name) or (links.find(nl, bridge) if bridge else None)
    return link.mtu if link else DEFAULT_MTU


def make(name: str, mtu: int, mark: str) -> None:
    """Make the TAP for a virtual machine. The mark, its alias, shows that Tapwright made it.

    Raises NetworkError.
    """
    try:
        with closing(tuntap.create(name)) as fd:
            with Netlink() as nl:
                link = links.named(nl, name)
                links.set_alias(nl, link.index, mark)
                links.set_mtu(nl, link.index, mtu)
            # This comes last, so that no persistent TAP ever lacks its mark.
            tuntap.keep(fd)
    except OSError as error:
        raise NetworkError(f"the TAP {name} can't be made: {error.strerror}") from None


def remove(name: str, mark: str) -> None:
    """Remove the TAP that was made with this mark, and no other one. Raises OSError."""
    with Netlink() as nl:
        link = links.find(nl, name)
        if link and link.alias == mark:
            links.remove(nl, link.index)


def _is_port(name: str, bridge: str, ovs: str) -> bool:
    """Whether the TAP is a port of this bridge already. Raises NetworkError if the bridge does not
    exist, or the TAP is in another one."""
    with Netlink() as nl:
        port, master = links.find(nl, name), links.find(nl, bridge or ovs)
    if ovs:
        return _is_port_of_ovs(name, port, ovs)
    if master is None:
        raise NetworkError(f"there is no Linux bridge {bridge}; ip link add {bridge} type bridge")
    if master.kind != "bridge":
        raise NetworkError(f"{bridge} is no Linux bridge; name one, or leave bridge= out")
    if port and port.master not in (0, master.index):
        raise NetworkError(
            f"the TAP {name} is a port of another bridge; remove it from there first"
        )
    return port is not None and port.master == master.index


def _is_port_of_ovs(name: str, port: Link | None, ovs: str) -> bool:
    _ovs("br-exists", ovs, none=f"Open vSwitch has no bridge {ovs}; ovs-vsctl add-br {ovs}")
    there = ovs_bridge_of(name)
    if there not in ("", ovs):
        raise NetworkError(
            f"the TAP {name} is a port of Open vSwitch's {there}; remove it from there first"
        )
    if there:
        return True
    if port and port.master:
        raise NetworkError(
            f"the TAP {name} is a port of another bridge; remove it from there first"
        )
    return False


def connect(name: str, bridge: str, ovs: str, mark: str) -> None:
    """Make the TAP a port of the bridge; in Open vSwitch's database, with the mark.

    Raises NetworkError.
    """
    if ovs:
        _ovs("add-port", ovs, name, "--", "set", "Interface", name, f"{_MARK}={mark}")
        return
    with Netlink() as nl:
        port, master = links.find(nl, name), links.find(nl, bridge)
        if port is None or master is None:
            raise NetworkError(f"{bridge if port else name} has gone")
        try:
            links.set_master(nl, port.index, master.index)
        except OSError as error:
            raise NetworkError(f"the TAP {name} can't get into {bridge}: {error}") from None


def disconnect(name: str, index: int, bridge: str, ovs: str, mark: str) -> None:
    """Remove the TAP of this index from the bridge, if it is still there as `connect` left it.
    Raises OSError."""
    if ovs:
        try:
            ours = mark in _ovs("--if-exists", "get", "Interface", name, "external_ids")
            if ours and ovs_bridge_of(name) == ovs:
                _ovs("--if-exists", "del-port", ovs, name)
        except NetworkError as error:
            raise OSError(str(error)) from None
        return
    with Netlink() as nl:
        port, master = links.find(nl, name), links.find(nl, bridge)
        if port and master and (port.index, port.master) == (index, master.index):
            links.set_master(nl, index, 0)


def ovs_bridge_of(name: str, seconds: int = _OVS_SECONDS) -> str:
    """Return the Open vSwitch bridge of which an interface is a port; empty if it is none. Raises
    NetworkError, also when Open vSwitch does not answer within so many seconds."""
    known = _ovs("--if-exists", "get", "Interface", name, "name", seconds=seconds)
    return _ovs("port-to-br", name, seconds=seconds) if known else ""


def ovs_tag_of(name: str, seconds: int = _OVS_SECONDS) -> str:
    """Return the VLAN of an Open vSwitch port; empty for none. Raises NetworkError."""
    return _ovs("--if-exists", "get", "Port", name, "tag", seconds=seconds).strip("[]")


def _ovs(*words: str, none: str = "", seconds: int = _OVS_SECONDS) -> str:
    """Raises NetworkError, with the words `none` if ovs-vsctl found nothing (its status 2)."""
    command = ["ovs-vsctl", f"--timeout={seconds}", *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=2 * seconds
        )
    except OSError as error:
        raise NetworkError(
            f"ovs-vsctl can't be run: {error.strerror}; install openvswitch-switch"
        ) from None
    except subprocess.TimeoutExpired:
        raise NetworkError(f"ovs-vsctl {' '.join(words)} does not end") from None
    if done.returncode == 2 and none:
        raise NetworkError(none)
    if done.returncode:
        if "database connection failed" in done.stderr:
            raise NetworkError(
                "Open vSwitch does not answer: start it (systemctl start openvswitch-switch), or "
                f"set OVS_RUNDIR to where its db.sock is (ovs-vsctl {' '.join(words)})"
            )
        said = done.stderr.strip().replace("\n", "; ")
        raise NetworkError(f"{said or 'ovs-vsctl failed'} (ovs-vsctl {' '.join(words)})")
    return done.stdout.strip()
