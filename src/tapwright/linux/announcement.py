"""Announces to a network at which MAC address an IP address is, so that no neighbour keeps sending
to the old one: gratuitous ARP (RFC 5227, section 3), unsolicited neighbour advertisement (RFC 4861,
section 7.2.6)."""

import socket
import struct

from tapwright.linux.netlink import pack_address, pack_mac

_ETH_P_ARP = 0x0806
_BROADCAST = b"\xff" * 6
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET, _IPV4, _REQUEST = 1, 0x0800, 1

_ALL_NODES = "ff02::1"
_ADVERTISEMENT = struct.Struct("!BBHI16sBB6s")
_ND_NEIGHBOR_ADVERT, _OVERRIDE = 136, 0x20000000
_TARGET_LINK_LAYER_ADDRESS, _OPTION_LENGTH = 2, 1
_HOPS = 255  # receivers require it
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, section 2.5.5.2


def announce(ifname: str, mac: str, address: str) -> None:
    """Announce an address of an interface that is up, unless no packet can come from it: a group's,
    or an IPv4 address that is written as one of IPv6. Raises OSError."""
    packed = pack_address(address)
    if len(packed) == 4 and packed[0] >> 4 != 0xE:
        _broadcast_arp(ifname, mac, address)
    elif len(packed) == 16 and not packed.startswith(_MAPPED):
        _advertise(ifname, mac, address)


def _broadcast_arp(ifname: str, mac: str, address: str) -> None:
    sender, ip = pack_mac(mac), pack_address(address)
    body = _ARP.pack(_ETHERNET, _IPV4, 6, 4, _REQUEST, sender, ip, bytes(6), ip)
    frame = _BROADCAST + sender + struct.pack("!H", _ETH_P_ARP) + body
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((ifname, _ETH_P_ARP))
        raw.send(frame)


def _advertise(ifname: str, mac: str, address: str) -> None:
    # The kernel fills in the checksum (RFC 3542, section 3.1).
    message = _ADVERTISEMENT.pack(
        *(_ND_NEIGHBOR_ADVERT, 0, 0, _OVERRIDE, pack_address(address)),
        *(_TARGET_LINK_LAYER_ADDRESS, _OPTION_LENGTH, pack_mac(mac)),
    )
    index = socket.if_nametoindex(ifname)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        raw.bind((address, 0, 0, index))
        raw.sendto(message, (_ALL_NODES, 0, 0, index))
