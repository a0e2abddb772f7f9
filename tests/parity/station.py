"""Sends and receives at a place of a network: in a container, in a guest, or in a namespace beside
them. It runs there as a program of its own, reads requests, [what, arguments], as lines of JSON,
and answers each by a line. It does the same wherever it runs, so the network causes every
difference."""

import errno
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any

IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL, IP_MTU, IP_PKTINFO = 10, 11, 12, 14, 8
IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_RECVERR = 23, 24, 25
DO, DONT = 2, 0  # IP_PMTUDISC_*
MSG_ERRQUEUE = 0x2000
ETH_P_ARP, ETH_P_IPV6, ETH_P_ALL = 0x0806, 0x86DD, 3
ETH_P_LOCAL = 0x88B5  # "Local Experimental EtherType 1" (IEEE 802)
TENTATIVE = 0x40  # IFA_F_TENTATIVE
ECHO = {4: (8, 0), 6: (128, 129)}  # (request, reply)
HOPS = (
    (socket.IPPROTO_IP, socket.IP_TTL),
    (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT),
)
ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}

Answer = Any

SOCKETS: dict[str, socket.socket] = {}


def family(address: str) -> int:
    return 6 if ":" in address else 4


def name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def opened(version: int, kind: int, protocol: int = 0) -> socket.socket:
    return socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, kind, protocol)


def waited(one: socket.socket, seconds: float, events: int = select.POLLIN) -> bool:
    poll = select.poll()
    poll.register(one, events)
    return bool(poll.poll(max(seconds, 0) * 1000))


def fragmentation(one: socket.socket, version: int, how: int) -> None:
    if version == 6:
        one.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, how)
    else:
        one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, how)


# --- datagrams ---------------------------------------------------------------------------------


def udp(name: str, version: int, port: int = 0, address: str = "", device: str = "") -> None:
    """Open a socket of that name."""
    close(name)
    one = opened(version, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if device:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
    if version == 6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        one.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        one.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        one.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        one.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    one.bind((address, port))
    SOCKETS[name] = one


def join(name: str, group: str, device: str) -> str:
    one, index = SOCKETS[name], socket.if_nametoindex(device)
    try:
        if family(group) == 6:
            packed = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed)
        else:
            packed = socket.inet_aton(group) + bytes(4) + struct.pack("@i", index)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, packed)
    except OSError as error:
        return name_of(error)
    return "joined"


def send(
    name: str, to: str, port: int, size: int = 16, whole: bool = False, device: str = ""
) -> str:
    """A datagram, which is not to be fragmented if it shall stay `whole`."""
    one, version = SOCKETS[name], family(to)
    fragmentation(one, version, DO if whole else DONT)
    place = (to, port, 0, socket.if_nametoindex(device) if device else 0)
    for _ in range(2):  # the first may be told of the one before
        try:
            one.sendto(bytes(size), place if version == 6 else place[:2])
        except OSError as error:
            told = name_of(error)
        else:
            return "sent"
    return told


def receive(name: str, seconds: float) -> Answer:
    """What came: from where, to which address, its TTL and size; or an error, and its sender;
    None for neither."""
    one = SOCKETS[name]
    if not waited(one, seconds):
        return None
    try:
        data, extra, _, source = one.recvmsg(70000, 1024)
    except OSError as error:
        return {"error": name_of(error), **told_by(one)}
    found = {"from": source[0].partition("%")[0], "port": source[1], "size": len(data)}
    for level, kind, content in extra:
        if (level, kind) in HOPS:
            found["ttl"] = struct.unpack("@i", content[:4])[0]
        elif (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            found["to"] = socket.inet_ntoa(content[8:12])
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            found["to"] = socket.inet_ntop(socket.AF_INET6, content[:16])
    return found


def told_by(one: socket.socket) -> Answer:
    """Of the error that waits at a socket: type, code and sender (struct
    sock_extended_err)."""
    try:
        _, extra, _, _ = one.recvmsg(2048, 1024, MSG_ERRQUEUE)
    except OSError:
        return {}
    for _, _, content in extra:
        if len(content) >= 32:
            _, origin, kind, code, _, info, _ = struct.unpack_from("@IBBBBII", content)
            address = content[16:]
            told = {"origin": origin, "type": kind, "code": code}
            if info:
                told["info"] = info
            if struct.unpack_from("@H", address)[0] == socket.AF_INET:
                return {**told, "by": socket.inet_ntoa(address[4:8])}
            if struct.unpack_from("@H", address)[0] == socket.AF_INET6:
                return {**told, "by": socket.inet_ntop(socket.AF_INET6, address[8:24])}
            return told
    return {}


def close(name: str) -> None:
    if name in SOCKETS:
        SOCKETS.pop(name).close()


def source(to: str, port: int = 9) -> str:
    """The address that a socket gets which is connected there."""
    with opened(family(to), socket.SOCK_DGRAM) as one:
        try:
            one.connect((to, port))
        except OSError as error:
            return name_of(error)
        return str(one.getsockname()[0])


def path_mtu(to: str, size: int, seconds: float) -> Answer:
    """What a socket takes for the MTU of the path, after datagrams of that size that are not to be
    fragmented, until one was too large."""
    version = family(to)
    end = time.monotonic() + seconds
    with opened(version, socket.SOCK_DGRAM) as one:
        one.connect((to, 9))
        fragmentation(one, version, DO)
        told = "sent"
        while time.monotonic() < end:
            try:
                one.send(bytes(size))
            except OSError as error:
                told = name_of(error)
                if told == "EMSGSIZE":
                    break
            time.sleep(0.02)
        kind = (socket.IPPROTO_IPV6, IPV6_MTU) if version == 6 else (socket.IPPROTO_IP, IP_MTU)
        return [told, one.getsockopt(*kind)]


# --- connections -------------------------------------------------------------------------------


def listen(name: str, version: int, port: int) -> None:
    close(name)
    one = opened(version, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if version == 6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(("", port))
    one.listen(8)
    SOCKETS[name] = one


def accept(name: str, seconds: float, size: int = 0) -> Answer:
    """From where a connection came, and the size of its segments; `size` bytes are sent to it, and
    what it sends is counted."""
    if not waited(SOCKETS[name], seconds):
        return None
    one, place = SOCKETS[name].accept()
    with one:
        one.settimeout(seconds)
        segment = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        try:
            one.sendall(bytes(size))
            one.shutdown(socket.SHUT_WR)
            count = drained(one)
        except OSError as error:
            return {"from": place[0], "mss": segment, "error": name_of(error)}
        return {"from": place[0], "mss": segment, "bytes": count}


def connect(to: str, port: int, seconds: float, size: int = 0) -> Answer:
    """What became of a connection there: the address that it has here, how much came."""
    with opened(family(to), socket.SOCK_STREAM) as one:
        one.settimeout(seconds)
        try:
            one.connect((to, port))
            local = one.getsockname()[0]
            one.sendall(bytes(size))
            one.shutdown(socket.SHUT_WR)
            return {"local": local, "bytes": drained(one)}
        except TimeoutError:
            return None
        except OSError as error:
            return {"error": name_of(error)}


def connect_to_itself(name: str, to: str, port: int, seconds: float) -> Answer:
    """A connection that comes back to the socket of that name: from where."""
    with opened(family(to), socket.SOCK_STREAM) as one:
        one.settimeout(seconds)
        try:
            one.connect((to, port))
        except TimeoutError:
            return None
        except OSError as error:
            return {"error": name_of(error)}
        local = one.getsockname()[0]
        if not waited(SOCKETS[name], seconds):
            return {"local": local, "there": None}
        other, place = SOCKETS[name].accept()
        other.close()
        return {"local": local, "there": place[0]}


def drained(one: socket.socket) -> int:
    count = 0
    while data := one.recv(1 << 16):
        count += len(data)
    return count


# --- ICMP --------------------------------------------------------------------------------------


def ping(to: str, seconds: float, size: int = 16, ttl: int = 0, whole: bool = False) -> Answer:
    """The answer: from where, with which TTL; an error, and its sender; None for neither."""
    version = family(to)
    protocol = socket.IPPROTO_ICMPV6 if version == 6 else socket.IPPROTO_ICMP
    request, reply = ECHO[version]
    mark = os.urandom(8)
    message = bytearray(struct.pack(">BBHHH", request, 0, 0, 77, 1) + mark + bytes(size))
    with opened(version, socket.SOCK_RAW, protocol) as one:
        if version == 4:
            message[2:4] = struct.pack(">H", checksum(bytes(message)))
        else:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        if ttl and version == 6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        elif ttl:
            one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        fragmentation(one, version, DO if whole else DONT)
        try:
            one.sendto(bytes(message), (to, 0))
        except OSError as error:
            return {"error": name_of(error)}
        end = time.monotonic() + seconds
        while waited(one, end - time.monotonic()):
            data, extra, _, place = one.recvmsg(70000, 256)
            if mark not in data:
                continue
            hops = data[8]
            if version == 4:
                data = data[(data[0] & 15) * 4 :]
            else:
                hops = struct.unpack("@i", extra[0][2])[0]
            if data[0] == reply:
                return {"from": place[0].partition("%")[0], "ttl": hops, "size": len(data) - 16}
            if data[0] in ERRORS[version]:
                return {"type": data[0], "code": data[1], "by": place[0].partition("%")[0]}
    return None


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


# --- frames ------------------------------------------------------------------------------------


def mac_of(device: str) -> bytes:
    with open(f"/sys/class/net/{device}/address") as file:
        return bytes.fromhex(file.read().strip().replace(":", ""))


def listen_for_frames(name: str, device: str) -> None:
    """Open a socket of that name for frames of a type that nobody else sends. The interface is not
    made promiscuous."""
    close(name)
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_LOCAL))
    one.bind((device, ETH_P_LOCAL))
    SOCKETS[name] = one


def send_frame(device: str, to: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as one:
        one.bind((device, ETH_P_LOCAL))
        one.send(bytes.fromhex(to) + mac_of(device) + struct.pack(">H", ETH_P_LOCAL) + bytes(46))


def hear_frame(name: str, seconds: float) -> Answer:
    """The receiver of a frame that came, and its kind (PACKET_*, packet(7)); None for no frame."""
    if not waited(SOCKETS[name], seconds):
        return None
    frame, (_, _, kind, *_) = SOCKETS[name].recvfrom(2048)
    return {"to": frame[:6].hex(), "kind": kind}


def arp(device: str, sender: str, address: str, seconds: float) -> str | None:
    """The MAC address that answers for an IPv4 address, None for none."""
    own, index = mac_of(device), socket.htons(ETH_P_ARP)
    asked = socket.inet_aton(address)
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
    body += own + socket.inet_aton(sender) + bytes(6) + asked
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, index) as one:
        one.bind((device, ETH_P_ARP))
        one.send(b"\xff" * 6 + own + b"\x08\x06" + body)
        end = time.monotonic() + seconds
        while waited(one, end - time.monotonic()):
            frame = one.recv(2048)
            if frame[20:22] == b"\0\2" and frame[28:32] == asked and frame[:6] == own:
                return frame[22:28].hex(":")
    return None


def solicit(device: str, sender: str, address: str, seconds: float) -> Answer:
    """The same for an IPv6 address: what a neighbour solicitation is answered with, and whether it
    says that it is a router's."""
    asked = socket.inet_pton(socket.AF_INET6, address)
    group = socket.inet_ntop(
        socket.AF_INET6, bytes.fromhex("ff0200000000000000000001ff") + asked[13:]
    )
    message = struct.pack(">BBHI", 135, 0, 0, 0) + asked + b"\1\1" + mac_of(device)
    index = socket.if_nametoindex(device)
    with opened(6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as one:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        one.bind((sender, 0, 0, index if sender.startswith("fe80") else 0))
        one.sendto(message, (group, 0, 0, index))
        end = time.monotonic() + seconds
        while waited(one, end - time.monotonic()):
            data = one.recv(2048)
            if data[0] == 136 and data[8:24] == asked:
                return {"mac": data[26:32].hex(":"), "router": bool(data[4] & 0x80)}
    return None


def advertise(device: str, prefix: str, mtu: int) -> None:
    """A router advertisement: a prefix of which addresses are made, an MTU, and a default route."""
    packed = socket.inet_pton(socket.AF_INET6, prefix)
    message = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    message += struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + packed
    message += struct.pack(">BBHI", 5, 1, 0, mtu)
    message += b"\1\1" + mac_of(device)
    index = socket.if_nametoindex(device)
    with opened(6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as one:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        one.sendto(message, ("ff02::1", 0, 0, index))


def autoconfigured(device: str, prefix: str, seconds: float) -> Answer:
    """What has become of it: how many addresses of the prefix, whether there is a default route,
    and one to the prefix, the MTU of IPv6; None where there is nothing of it in that time."""
    wanted = socket.inet_pton(socket.AF_INET6, prefix)[:8].hex()
    end = time.monotonic() + seconds
    while True:
        with open("/proc/net/if_inet6") as file:
            lines = [line.split() for line in file]
        found = [line for line in lines if line[0].startswith(wanted) and line[5] == device]
        with open("/proc/net/ipv6_route") as file:
            routes = [line.split() for line in file]
        routes = [line for line in routes if line[-1] == device]
        if found or time.monotonic() > end:
            break
        time.sleep(0.02)
    default = any(line[0] == "0" * 32 and line[1] == "00" for line in routes)
    prefixed = any(line[0][:16] == wanted and line[1] == "40" for line in routes)
    with open(f"/proc/sys/net/ipv6/conf/{device}/mtu") as file:
        mtu = int(file.read())
    if not (found or prefixed):
        return None
    return {"addresses": len(found), "default": default, "prefix": prefixed, "mtu": mtu}


def settled(device: str, addresses: list[str], seconds: float) -> bool:
    """Wait until these IPv6 addresses are there, and none in doubt: kernels do that later."""
    wanted = {socket.inet_pton(socket.AF_INET6, address).hex() for address in addresses}
    end = time.monotonic() + seconds
    while True:
        with open("/proc/net/if_inet6") as file:
            lines = [line.split() for line in file]
        sure = {line[0] for line in lines if line[5] == device and not int(line[4], 16) & TENTATIVE}
        if wanted <= sure or time.monotonic() > end:
            return wanted <= sure
        time.sleep(0.02)


def discover(device: str, seconds: float) -> Answer:
    """Whether a server answers to DHCPDISCOVER: where from, and to which address."""
    own, mark = mac_of(device), os.urandom(4)
    message = struct.pack(">BBBB4sHH", 1, 1, 6, 0, mark, 0, 0x8000) + bytes(16)
    message += own.ljust(16, b"\0") + bytes(192) + bytes.fromhex("63825363350101ff")
    udp("dhcp", 4, 68, "", device)
    try:
        told = send("dhcp", "255.255.255.255", 67, 0)
        if told == "sent":
            SOCKETS["dhcp"].sendto(message, ("255.255.255.255", 67))
        end = time.monotonic() + seconds
        while waited(SOCKETS["dhcp"], end - time.monotonic()):
            data, place = SOCKETS["dhcp"].recvfrom(2048)
            if data[:1] == b"\2" and data[4:8] == mark:
                return {"from": place[0], "offered": socket.inet_ntoa(data[16:20])}
    except OSError as error:
        return name_of(error)
    finally:
        close("dhcp")
    return None


def offer(name: str, address: str, seconds: float) -> Answer:
    """Answer to one DHCPDISCOVER; return where it came from."""
    end = time.monotonic() + seconds
    while waited(SOCKETS[name], end - time.monotonic()):
        data, place = SOCKETS[name].recvfrom(2048)
        if len(data) < 240:
            continue
        message = bytearray(data[:236])
        message[0] = 2
        message[16:20] = socket.inet_aton(address)
        SOCKETS[name].sendto(
            bytes(message) + bytes.fromhex("63825363350102ff"), ("255.255.255.255", 68)
        )
        return {"from": place[0], "mac": data[28:34].hex(":")}
    return None


def main() -> None:
    known = (
        *(udp, join, send, receive, close, source, path_mtu, listen, accept, connect, ping),
        connect_to_itself,
        *(listen_for_frames, send_frame, hear_frame),
        *(arp, solicit, advertise, autoconfigured, settled, discover, offer),
    )
    operations: dict[str, Any] = {one.__name__: one for one in known}
    for line in sys.stdin:
        what, arguments = json.loads(line)
        try:
            answer = operations[what](**arguments)
        except OSError as error:
            answer = {"failed": f"{what}: {name_of(error)}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
