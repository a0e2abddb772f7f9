"""The `tcfilter` internetworking model: a TAP beside the interface, and tc filters that send
every frame across, both ways.

The interface keeps its addresses, but its frames never reach this host's stack: the VM has taken
its place. Works for whatever carries Ethernet frames: veth, macvlan, bridge ports, …
"""

import os

from tapwright.endpoint.discovery import OUR_ALIAS
from tapwright.errors import NetworkError
from tapwright.linux import links, netns, tc, tuntap
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink, NetlinkError


def attach(nl: Netlink, netns_path: str, link: Link) -> int:
    """Make the TAP and join it with the interface; return the TAP's descriptor.

    The TAP lives as long as somebody holds its descriptor. Raises NetworkError; nothing is left
    then.
    """
    name = f"tap{link.index}_tw"
    try:
        with netns.entered(netns_path):
            fd = tuntap.create(name)
    except OSError as error:
        raise NetworkError(f"no TAP for {link.name} in {netns_path}: {error}") from None
    try:
        tap = links.find(nl, name)
        if tap is None:
            raise NetworkError(f"the TAP {name} vanished from {netns_path}")
        links.set_alias(nl, tap.index, OUR_ALIAS)
        links.set_mtu(nl, tap.index, link.mtu)
        links.leave_ipv6_alone(nl, tap.index)
        links.set_up(nl, tap.index)
        tc.add_ingress(nl, tap.index)
        tc.redirect_ingress(nl, tap.index, link.index)
        tc.add_ingress(nl, link.index)
        try:
            tc.redirect_ingress(nl, link.index, tap.index)
        except NetlinkError:
            tc.remove_ingress(nl, link.index)
            raise
    except (NetlinkError, NetworkError) as error:
        os.close(fd)
        raise NetworkError(f"{link.name} can't be joined with a TAP: {error}") from None
    return fd


def check(nl: Netlink, link: Link) -> None:
    """Whether the interface can be joined: what filters it has already are somebody else's, and
    neither we nor `detach` may touch them. Raises NetworkError."""
    if tc.has_ingress(nl, link.index):
        raise NetworkError(
            f"device: {link.name} has traffic control on its ingress already (tc qdisc show dev "
            f"{link.name}); remove it first"
        )


def detach(nl: Netlink, link: Link) -> None:
    """Take the filters off the interface; the TAP goes with its descriptor."""
    tc.remove_ingress(nl, link.index)
