"""The frames that the host's stack gets besides the guest: programs in the namespace wait for them.

A plugin may leave a program behind for the life of the container. The reference plugin `dhcp`
renews leases; its socket is bound to a protocol (IPv4), so it comes after traffic control, and
would never get the answer. So these frames go on to the host's own stack:

- DHCP, to a client (UDP port 68; DHCPv6's 546);
- answers about neighbours (ARP replies, neighbour advertisements), which a program needs to send
  anything, and announcements by ARP, from which it learns that another host has the address;
- LLDP and EAPOL, of which the host's kernel makes nothing.

The host's stack does not get what its kernel would answer, or act upon, a second time beside the
guest's: ARP requests, neighbour solicitations, router advertisements. Sockets of all protocols
(tcpdump) see everything, because they come before. The filter does not look at fragments and IPv6
extension headers, which no client of these protocols gets. A VLAN tag makes no difference: the
kernel has taken it off by then, and an interface of that VLAN in the namespace may have a lease.
"""

from tapwright.linux import netlink
from tapwright.linux.tc import Program

# linux/bpf_common.h: LD|W|ABS, LD|H|ABS, LD|B|ABS, LD|H|IND, LDX|B|MSH, MISC|TAX, JMP|JEQ|K,
# JMP|JEQ|X, JMP|JSET|K, RET|K
_WORD, _HALF, _BYTE, _HALF_BEYOND, _IP_LENGTH, _KEEP = 0x20, 0x28, 0x30, 0x48, 0xB1, 0x07
_EQUAL, _EQUAL_KEPT, _ANY_BIT, _RETURN = 0x15, 0x1D, 0x45, 0x06

_Instruction = tuple[int, int, int, int]
_Check = tuple[list[_Instruction], int, int, bool]
"""What is loaded, how it is compared, with what, and whether that has to hold."""


def _field(size: int, offset: int, value: int) -> _Check:
    return [(size, 0, 0, offset)], _EQUAL, value, True


# Offsets are those of the frame, whose header has 14 bytes: RFC 826, 791, 8200, 768, 4861.
_ARP, _IPV4, _IPV6 = _field(_HALF, 12, 0x0806), _field(_HALF, 12, 0x0800), _field(_HALF, 12, 0x86DD)
_UDP4, _UDP6 = _field(_BYTE, 23, 17), _field(_BYTE, 20, 17)
_NO_FRAGMENT: _Check = [(_HALF, 0, 0, 20)], _ANY_BIT, 0x3FFF, False
_TO_PORT_68: _Check = [(_IP_LENGTH, 0, 0, 14), (_HALF_BEYOND, 0, 0, 16)], _EQUAL, 68, True
_OF_ITSELF: _Check = (  # the address that is asked for is the sender's
    [(_WORD, 0, 0, 28), (_KEEP, 0, 0, 0), (_WORD, 0, 0, 38)],
    _EQUAL_KEPT,
    0,
    True,
)

_KINDS: list[list[_Check]] = [
    [_IPV4, _UDP4, _NO_FRAGMENT, _TO_PORT_68],
    [_ARP, _field(_HALF, 20, 2)],
    [_ARP, _OF_ITSELF],
    [_IPV6, _UDP6, _field(_HALF, 56, 546)],
    [_IPV6, _field(_BYTE, 20, 58), _field(_BYTE, 54, 136)],
    [_field(_HALF, 12, 0x88CC)],
    [_field(_HALF, 12, 0x888E)],
]


def of_one_on_it(mac: str) -> Program:
    """For an interface that a macvlan with this MAC is on: what goes to that, and what goes to all.
    It can only be heard there when it goes on here."""
    packed = netlink.pack_mac(mac)
    first, last = int.from_bytes(packed[:4]), int.from_bytes(packed[4:])
    to_it = [_field(_WORD, 0, first), _field(_HALF, 4, last)]
    to_a_group: _Check = [(_BYTE, 0, 0, 0)], _ANY_BIT, 1, True
    return _program([to_it, [to_a_group]])


def _program(kinds: list[list[_Check]]) -> list[_Instruction]:
    """The filter, which returns 0 for a frame of none of these kinds."""
    code: list[_Instruction] = []
    for checks in kinds:
        block: list[_Instruction] = []
        # From the end: a check that fails leads past all that is there so far, and its answer.
        block.append((_RETURN, 0, 0, 0xFFFFFFFF))
        for loads, compare, value, holds in reversed(checks):
            to, fro = (0, len(block)) if holds else (len(block), 0)
            block[:0] = [*loads, (compare, to, fro, value)]
        code += block
    return [*code, (_RETURN, 0, 0, 0)]


PROGRAM: Program = _program(_KINDS)
"""It answers with 0 for a frame that is the VM's alone."""
