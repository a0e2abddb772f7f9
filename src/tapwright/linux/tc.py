"""Traffic control: the ingress qdisc and the filter that hands every frame to another device.

Equivalent to, for each direction (tc-u32(8), tc-mirred(8)):

    tc qdisc add dev A ingress
    tc filter add dev A parent ffff: protocol all u32 match u8 0 0 \
        action mirred egress redirect dev B
"""

import errno
import socket
import struct

from tapwright.linux import netlink
from tapwright.linux.netlink import Netlink, NetlinkError, attribute, nested

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC, RTM_NEWTFILTER = 36, 37, 38, 44
TC_H_INGRESS = 0xFFFFFFF1
INGRESS_HANDLE = 0xFFFF0000
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_U32_SEL, TCA_U32_ACT = 5, 7
TC_U32_TERMINAL = 1
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
TCA_MIRRED_PARMS = 2
TCA_EGRESS_REDIR = 1
TC_ACT_STOLEN = 4
ETH_P_ALL = 3

_TCMSG = struct.Struct("=BxxxiIII")
_U32_SEL = struct.Struct("=BBBxHHhhI")
_U32_KEY = struct.Struct("=IIii")
_MIRRED = struct.Struct("=IIiiiiI")


def add_ingress(nl: Netlink, index: int) -> None:
    """Give an interface its ingress qdisc. Raises NetlinkError (EEXIST: it has one)."""
    payload = _TCMSG.pack(0, index, INGRESS_HANDLE, TC_H_INGRESS, 0)
    payload += attribute(TCA_KIND, "ingress")
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    nl.request(f"add ingress qdisc to interface {index}", RTM_NEWQDISC, payload, flags)


def has_ingress(nl: Netlink, index: int) -> bool:
    """Whether an interface has an ingress qdisc, or its like (clsact)."""
    for body in nl.dump("list qdiscs", RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
        _, device, _, parent, _ = _TCMSG.unpack_from(body)
        if (device, parent) == (index, TC_H_INGRESS):
            return True
    return False


def remove_ingress(nl: Netlink, index: int) -> None:
    """Remove the ingress qdisc with its filters; nothing happens where there is none."""
    payload = _TCMSG.pack(0, index, INGRESS_HANDLE, TC_H_INGRESS, 0)
    try:
        nl.request(f"remove ingress qdisc of interface {index}", RTM_DELQDISC, payload)
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def redirect_ingress(nl: Netlink, source: int, target: int) -> None:
    """Send every frame that arrives at `source` out through `target`, before any protocol
    of this host sees it."""
    priority = 1
    info = priority << 16 | socket.htons(ETH_P_ALL)
    match_all = _U32_SEL.pack(TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _U32_KEY.pack(0, 0, 0, 0)
    parameters = _MIRRED.pack(0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, target)
    action = [
        attribute(TCA_ACT_KIND, "mirred"),
        nested(TCA_ACT_OPTIONS, [attribute(TCA_MIRRED_PARMS, parameters)]),
    ]
    options = [
        attribute(TCA_U32_SEL, match_all),
        nested(TCA_U32_ACT, [nested(1, action)]),
    ]
    payload = _TCMSG.pack(0, source, 0, INGRESS_HANDLE, info)
    payload += attribute(TCA_KIND, "u32") + nested(TCA_OPTIONS, options)
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    nl.request(f"redirect interface {source} to {target}", RTM_NEWTFILTER, payload, flags)
