"""Traffic control: what happens to the frames that an interface receives, and how fast it sends.

Equivalent to (tc-u32(8), tc-mirred(8), tc-bpf(8), tc-htb(8)):

    share_ingress       tc filter add dev A parent ffff: prio 1 protocol all bpf bytecode … \
                            action mirred egress mirror dev B pass
    redirect_ingress    tc filter add dev A parent ffff: prio 2 protocol all u32 match u8 0 0 \
                            action mirred egress redirect dev B
    drop_ingress        tc filter add dev A parent ffff: bpf bytecode '1,6 0 0 2' direct-action
    limit_egress        tc qdisc add dev A root handle 7477: htb default 1
                        tc class add dev A parent 7477: classid 7477:1 htb rate R burst 4ms

each but the last after `tc qdisc add dev A ingress`.
"""

import errno
import socket
import struct
from collections.abc import Sequence

from tapwright.linux import links, netlink
from tapwright.linux.netlink import Netlink, NetlinkError, attribute, nested

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC, RTM_NEWTCLASS, RTM_NEWTFILTER = 36, 37, 38, 40, 44
TC_H_ROOT, TC_H_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
INGRESS_HANDLE = 0xFFFF0000
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_U32_SEL, TCA_U32_ACT = 5, 7
TC_U32_TERMINAL = 1
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
TCA_MIRRED_PARMS = 2
TCA_EGRESS_REDIR, TCA_EGRESS_MIRROR = 1, 2
TC_ACT_OK, TC_ACT_SHOT, TC_ACT_STOLEN = 0, 2, 4
TCA_BPF_ACT, TCA_BPF_OPS_LEN, TCA_BPF_OPS = 1, 4, 5
TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT = 8, 1
BPF_RET = 0x06
TCA_HTB_PARMS, TCA_HTB_INIT, TCA_HTB_RATE64, TCA_HTB_CEIL64 = 1, 2, 6, 7
TC_HTB_PROTOVER = 3
TC_LINKLAYER_ETHERNET = 1
ETH_P_ALL = 3

LEAST_RATE = 8_000
"""Bits a second. htb forgets a debt of more than a minute, so it can't hold much lower rates."""

_TCMSG = struct.Struct("=BxxxiIII")
_U32_SEL = struct.Struct("=BBBxHHhhI")
_U32_KEY = struct.Struct("=IIii")
_MIRRED = struct.Struct("=IIiiiiI")
_BPF_INSTRUCTION = struct.Struct("=HBBI")

Program = Sequence[tuple[int, int, int, int]]
"""Classic BPF: (code, jump if true, jump if false, k) of each instruction (bpf(4) of the BSDs,
Documentation/networking/filter.rst). It sees a frame from its Ethernet header on."""
_HTB_INIT = struct.Struct("=5I")
_RATE = struct.Struct("=BBHhHI")
_HTB_CLASS = struct.Struct("=5I")

_SHARED, _ALL = 1, 2  # priorities: the kernel tries the lower one first
_HANDLE = 0x74770000  # not a handle that people choose: Tapwright removes only its own
_CLASS = 1
# A class may send while it is not in debt, so even a frame that costs more than the burst goes out.
# The burst only covers the time by which the kernel may be late: a tick at 250 Hz.
_BURST = 4_000_000 // 64  # ns, in ticks (PSCHED_SHIFT, include/net/pkt_sched.h)
_QUANTUM = 60_000  # bytes; shares bandwidth between classes, and there is only one


def add_ingress(nl: Netlink, index: int) -> None:
    """Give an interface its ingress qdisc. Raises NetlinkError (EEXIST: it has one)."""
    _add_qdisc(nl, index, INGRESS_HANDLE, TC_H_INGRESS, "ingress")


def has_ingress(nl: Netlink, index: int) -> bool:
    """Whether an interface has an ingress qdisc, or its like (clsact)."""
    for body in nl.dump("list qdiscs", RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
        _, device, _, parent, _ = _TCMSG.unpack_from(body)
        if (device, parent) == (index, TC_H_INGRESS):
            return True
    return False


def remove_ingress(nl: Netlink, index: int) -> None:
    """Remove the ingress qdisc with its filters. An interface without one is no error."""
    _remove_qdisc(nl, index, INGRESS_HANDLE, TC_H_INGRESS, "ingress")


def redirect_ingress(nl: Netlink, source: int, target: int) -> None:
    """Send every frame that arrives at `source` out through `target`, before any protocol of this
    host sees it. `source` needs its ingress qdisc."""
    match_all = _U32_SEL.pack(TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _U32_KEY.pack(0, 0, 0, 0)
    options = [
        attribute(TCA_U32_SEL, match_all),
        nested(TCA_U32_ACT, [_mirred(TCA_EGRESS_REDIR, TC_ACT_STOLEN, target)]),
    ]
    _add_filter(nl, f"redirect interface {source} to {target}", source, "u32", options, _ALL)


def share_ingress(nl: Netlink, source: int, target: int, program: Program) -> None:
    """Send a copy of the frames that arrive at `source`, and for which the program does not return
    0, out through `target`. The frames themselves go on to this host's protocols, whatever
    `redirect_ingress` does to other frames. `source` needs its ingress qdisc."""
    options = [*_bpf(program), nested(TCA_BPF_ACT, [_mirred(TCA_EGRESS_MIRROR, TC_ACT_OK, target)])]
    operation = f"share what interface {source} receives with {target}"
    _add_filter(nl, operation, source, "bpf", options, _SHARED)


def _mirred(what: int, then: int, target: int) -> bytes:
    """Return the action that sends a frame, or a copy of it, out through `target`."""
    parameters = _MIRRED.pack(0, 0, then, 0, 0, what, target)
    action = [
        attribute(TCA_ACT_KIND, "mirred"),
        nested(TCA_ACT_OPTIONS, [attribute(TCA_MIRRED_PARMS, parameters)]),
    ]
    return nested(1, action)


def _bpf(program: Program) -> list[bytes]:
    return [
        attribute(TCA_BPF_OPS_LEN, struct.pack("=H", len(program))),
        attribute(TCA_BPF_OPS, b"".join(_BPF_INSTRUCTION.pack(*one) for one in program)),
    ]


def drop_ingress(nl: Netlink, index: int) -> None:
    """Drop every frame that arrives at an interface, before any protocol of this host sees it.

    Raises NetlinkError (EEXIST: it has an ingress qdisc); then nothing has changed.
    `remove_ingress` undoes it.
    """
    add_ingress(nl, index)
    # By a classic BPF program, because the action `drop` needs another kernel module.
    options = [
        *_bpf([(BPF_RET, 0, 0, TC_ACT_SHOT)]),
        attribute(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT),
    ]
    try:
        _add_filter(nl, f"drop what interface {index} receives", index, "bpf", options, _ALL)
    except NetlinkError:
        remove_ingress(nl, index)
        raise


def limit_egress(nl: Netlink, index: int, bits_per_second: int) -> None:
    """Limit the rate at which an interface sends. Further frames wait in a queue of the interface's
    txqlen, and are dropped if it is full.

    Raises NetlinkError (EEXIST: it has a root qdisc already), ValueError (less than LEAST_RATE);
    then nothing has changed. `remove_root` undoes it.
    """
    if bits_per_second < LEAST_RATE:
        raise ValueError(f"{bits_per_second} bits a second is less than {LEAST_RATE}, the least")
    start = _HTB_INIT.pack(TC_HTB_PROTOVER, 10, _CLASS, 0, 0)
    _add_qdisc(nl, index, _HANDLE, TC_H_ROOT, "htb", [attribute(TCA_HTB_INIT, start)])
    try:
        _add_class(nl, index, bits_per_second // 8)
    except NetlinkError:
        remove_root(nl, index)
        raise


def remove_root(nl: Netlink, index: int) -> None:
    """Remove the limit on what an interface sends. An interface without Tapwright's limit is no
    error."""
    _remove_qdisc(nl, index, _HANDLE, TC_H_ROOT, "root")


def limit_ingress(nl: Netlink, index: int, ifb: int, bits_per_second: int) -> None:
    """Limit the rate at which an interface receives, by a detour over an ifb made for it
    (`links.add_ifb`) in the same namespace.

    The frames come back to the interface behind its ingress, so protocols, a bridge, or a macvtap
    on it see the limited stream. Raises as `limit_egress` does; then nothing is left on the
    interface. `remove_ingress`, and removing the ifb, undo it.
    """
    limit_egress(nl, ifb, bits_per_second)
    links.set_up(nl, ifb)
    add_ingress(nl, index)
    try:
        redirect_ingress(nl, index, ifb)
    except NetlinkError:
        remove_ingress(nl, index)
        raise


def _add_class(nl: Netlink, index: int, rate: int) -> None:
    """Add the one class of htb, with a rate in bytes a second (net/sched/sch_htb.c)."""
    # Kernels before 3.13 know only the field of 32 bits; the attributes hold the true rate.
    short = _RATE.pack(0, TC_LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))
    parameters = short + short + _HTB_CLASS.pack(_BURST, _BURST, _QUANTUM, 0, 0)
    options = [
        attribute(TCA_HTB_PARMS, parameters),
        attribute(TCA_HTB_RATE64, struct.pack("=Q", rate)),
        attribute(TCA_HTB_CEIL64, struct.pack("=Q", rate)),
    ]
    payload = _TCMSG.pack(0, index, _HANDLE | _CLASS, _HANDLE, 0)
    payload += attribute(TCA_KIND, "htb") + nested(TCA_OPTIONS, options)
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    nl.request(f"limit interface {index} to {rate} bytes a second", RTM_NEWTCLASS, payload, flags)


def _add_filter(
    nl: Netlink, operation: str, index: int, kind: str, options: list[bytes], priority: int
) -> None:
    """Add a filter for all protocols on the ingress qdisc."""
    info = priority << 16 | socket.htons(ETH_P_ALL)
    payload = _TCMSG.pack(0, index, 0, INGRESS_HANDLE, info)
    payload += attribute(TCA_KIND, kind) + nested(TCA_OPTIONS, options)
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    nl.request(operation, RTM_NEWTFILTER, payload, flags)


def _add_qdisc(
    nl: Netlink, index: int, handle: int, parent: int, kind: str, options: list[bytes] | None = None
) -> None:
    payload = _TCMSG.pack(0, index, handle, parent, 0) + attribute(TCA_KIND, kind)
    if options:
        payload += nested(TCA_OPTIONS, options)
    operation = f"add {kind} qdisc to interface {index}"
    try:
        # Without EXCL the kernel would change or replace an existing object.
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        nl.request(operation, RTM_NEWQDISC, payload, flags)
    except NetlinkError as error:
        link = links.at(nl, index)
        if error.errno != errno.EEXIST or not link:
            raise
        raise NetlinkError(
            errno.EEXIST,
            operation,
            f"{link.name} has traffic control that is not ours (tc qdisc show dev {link.name}); "
            "remove it first",
        ) from None


def _remove_qdisc(nl: Netlink, index: int, handle: int, parent: int, name: str) -> None:
    payload = _TCMSG.pack(0, index, handle, parent, 0)
    try:
        nl.request(f"remove {name} qdisc of interface {index}", RTM_DELQDISC, payload)
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise
