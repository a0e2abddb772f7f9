"""Limits the rate of a NIC, in each direction.

rx and tx are the VM's, as Kata names them. The root qdisc of a device limits what leaves it. What
arrives at a device is sent through an ifb, limited there, and comes back.
"""

from typing import NamedTuple

from tapwright.endpoint.discovery import OUR_ALIAS
from tapwright.errors import NetworkError
from tapwright.linux import links, tc
from tapwright.linux.netlink import Netlink


class Limits(NamedTuple):
    """Bits a second; 0 is no limit."""

    rx: int = 0
    tx: int = 0


def check_name(nl: Netlink, number: int) -> None:
    """Raise NetworkError if another device has the ifb's name."""
    if links.find(nl, _ifb(number)):
        raise NetworkError(
            f"device: there is an {_ifb(number)} already, which is not ours; remove it first"
        )


def check_ingress(nl: Netlink, index: int, device: str) -> None:
    """Raise NetworkError if the device has filters already: Tapwright's own would affect them."""
    check_name(nl, index)
    if tc.has_ingress(nl, index):
        raise NetworkError(
            f"device: {device} has traffic control on its ingress already (tc qdisc show dev "
            f"{device}); remove it first"
        )


def limit_egress(nl: Netlink, index: int, rate: int) -> None:
    """Limit the rate of what leaves the device. Raises NetlinkError (EEXIST: it has other traffic
    control)."""
    if rate:
        tc.limit_egress(nl, index, rate)


def lift_egress(nl: Netlink, index: int, rate: int) -> None:
    """Raises NetlinkError."""
    if rate:
        tc.remove_root(nl, index)


def limit_ingress(nl: Netlink, index: int, rate: int, number: int) -> None:
    """Limit the rate of what arrives at the device, through an ifb with this number. Raises as
    `limit_egress`."""
    if rate:
        name = _ifb(number)
        links.add_ifb(nl, name)
        ifb = links.named(nl, name)
        links.set_alias(nl, ifb.index, OUR_ALIAS)
        tc.limit_ingress(nl, index, ifb.index, rate)


def lift_ingress(nl: Netlink, index: int, rate: int, number: int) -> None:
    """Remove the limit and its ifb; the device may be gone. Raises NetlinkError."""
    if rate:
        tc.remove_ingress(nl, index)
        if ifb := links.find(nl, _ifb(number)):
            links.remove(nl, ifb.index)


def _ifb(number: int) -> str:
    return f"ifb{number}_kata" if number < 10**7 else f"i{number:x}_kata"
