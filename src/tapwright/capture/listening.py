"""Listens at network interfaces by packet(7) sockets: each frame with the kernel's time, its
direction, and its original length.

The module imports little, and only the standard library, because a guest gets this file and runs it
(`main`). So the capture works with guests of every version, and the agent, which runs the file as a
command, can serve other requests meanwhile.

The program in the guest reads a line of JSON: `nics` ([name, MAC address] each) and `program` (a
filter). It answers on stdout with records, each a RECORD and the content that it announces: first
READY (JSON: the names of the NICs), then PACKETs. For each byte on stdin it writes a CLOCK with the
guest's time. After the end of stdin it writes the remaining packets, and STATISTICS of each NIC.
"""

import array
import errno
import json
import os
import select
import socket
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Instruction = tuple[int, int, int, int]
    """code, jt, jf, k of classic BPF (struct sock_filter)."""

# include/uapi/asm-generic/socket.h, include/uapi/linux/if_packet.h, if_ether.h
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_AUXDATA = 263, 6, 8
_ETH_P_ALL, _TPID = 0x0003, 0x8100
_VLAN_VALID, _TPID_VALID = 1 << 4, 1 << 6
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_TIME = struct.Struct("@ll")  # struct timespec
_COUNTERS = struct.Struct("=II")  # struct tpacket_stats
_INSTRUCTION = struct.Struct("=HBBI")
_TAG = struct.Struct("!HH")
_TAG_AT = 12  # after the two MAC addresses
_ANCILLARY_BYTES = 256

HOST, BROADCAST, MULTICAST, OTHERHOST, OUTGOING = range(5)
"""The direction of a frame, seen from the interface: sll_pkttype in packet(7)."""
MOST_BYTES = 256 * 1024
"""The limit for a frame; it is the largest packet that is left to a device for segmentation."""
_AT_ONCE, _MOST_READS = 64, 1000

RECORD = struct.Struct("!BBHIIq")
"""kind, direction of a PACKET, number of the NIC, bytes that follow, original length of a PACKET,
nanoseconds since the epoch."""
READY, PACKET, CLOCK, STATISTICS = range(1, 5)
COUNTS = struct.Struct("!QQ")
"""The content of STATISTICS: received, dropped of these."""


class Listener:
    """A socket that gets a copy of each frame that passes the filter and that an interface of this
    thread's namespace receives or sends.

    Raises OSError (ENODEV: there is no such interface; EINVAL: the kernel refuses the filter).
    """

    def __init__(self, name: str, program: "Sequence[Instruction]", room: int) -> None:
        """`room`, in bytes, is the buffer for frames that were not read yet."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        # Without a protocol the socket receives nothing until it is bound, so no frame escapes the
        # filter.
        self._socket = socket.socket(socket.AF_PACKET, kind, 0)
        self._buffer = bytearray(MOST_BYTES)
        self._received = self._dropped = 0
        self.has_been_down = False
        """Whether the interface was down, or disappeared, meanwhile."""
        try:
            if program:
                _attach(self._socket, program)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._socket.bind((name, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self, most: int = _AT_ONCE) -> "list[tuple[int, int, int, bytes]]":
        """Return the waiting frames: (nanoseconds since the epoch, direction, original length,
        bytes), in the order of their arrival."""
        found: list[tuple[int, int, int, bytes]] = []
        while len(found) < most:
            try:
                size, ancillary, _, address = self._socket.recvmsg_into(
                    [self._buffer], _ANCILLARY_BYTES
                )
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                # The kernel reports it once, and the socket works again when the interface is up
                # again.
                self.has_been_down = True
                continue
            moment, length, tag = _read_ancillary(ancillary)
            data = bytes(memoryview(self._buffer)[:size])
            length = max(length, size)
            if tag and size >= _TAG_AT:
                # The kernel has removed the tag from the frame.
                data = data[:_TAG_AT] + tag + data[_TAG_AT:]
                length += len(tag)
            found.append((moment or time.time_ns(), address[2], length, data))
        return found

    def statistics(self) -> "tuple[int, int]":
        """Return (frames that passed the filter, frames dropped of these for want of room)."""
        counters = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _COUNTERS.size)
        received, dropped = _COUNTERS.unpack(counters)
        # The kernel resets its counters with each reading.
        self._received += received
        self._dropped += dropped
        return self._received, self._dropped


def _attach(listener: socket.socket, program: "Sequence[Instruction]") -> None:
    code = array.array("B", b"".join(_INSTRUCTION.pack(*one) for one in program))
    # struct sock_fprog: the number of instructions, and their address.
    what = struct.pack("@HL", len(program), code.buffer_info()[0])
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, what)


def _read_ancillary(ancillary: "Sequence[tuple[int, int, bytes]]") -> "tuple[int, int, bytes]":
    """Return (nanoseconds since the epoch, original length, the VLAN tag or nothing)."""
    moment, length, tag = 0, 0, b""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIME.unpack(data[: _TIME.size])
            moment = seconds * 1_000_000_000 + nanoseconds
        elif (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, length, _, _, _, tci, tpid = _AUXDATA.unpack(data[: _AUXDATA.size])
            if status & _VLAN_VALID:
                tag = _TAG.pack(tpid if status & _TPID_VALID else _TPID, tci)
    return moment, length, tag


def _name_of(name: str, mac: str) -> str:
    """Return the NIC with this MAC address. Of several interfaces, such as VLANs on a NIC, take the
    one with this name, or else the one that is a device. Raises LookupError."""
    folder = "/sys/class/net"
    found = []
    for each in sorted(os.listdir(folder)):
        with open(f"{folder}/{each}/address") as file:
            if file.read().strip().lower() == mac.lower():
                found.append(each)
    if name in found:
        return name
    devices = [each for each in found if os.path.exists(f"{folder}/{each}/device")]
    if not devices:
        raise LookupError(f"the guest has no NIC with the MAC address {mac}")
    return devices[0]


def main() -> None:
    """Run the program in the guest."""
    asked = b""
    while not asked.endswith(b"\n"):
        more = os.read(0, 65536)
        if not more:
            return
        asked += more
    request = json.loads(asked)
    try:
        names = [_name_of(name, mac) for name, mac in request["nics"]]
        listeners = [Listener(name, request["program"], request["room"]) for name in names]
    except (LookupError, OSError) as error:
        sys.exit(str(error))
    content = json.dumps(names).encode()
    _write(RECORD.pack(READY, 0, 0, len(content), 0, time.time_ns()) + content)
    _serve(listeners)
    for number, listener in enumerate(listeners):
        # The reads are bounded, because traffic may go on.
        for _ in range(_MOST_READS):
            if not _pass_on(listener, number):
                break
        counts = COUNTS.pack(*listener.statistics())
        _write(RECORD.pack(STATISTICS, 0, number, len(counts), 0, time.time_ns()) + counts)


def _serve(listeners: "Sequence[Listener]") -> None:
    """Serve until stdin ends."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    numbers = {}
    for number, listener in enumerate(listeners):
        numbers[listener.fileno()] = number
        poll.register(listener, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd:
                _pass_on(listeners[numbers[fd]], numbers[fd])
                continue
            questions = os.read(0, 4096)
            if not questions:
                return
            for _ in questions:
                _write(RECORD.pack(CLOCK, 0, 0, 0, 0, time.time_ns()))


def _pass_on(listener: Listener, number: int) -> bool:
    """Write the waiting packets of a NIC; return whether there were any."""
    packets = listener.read()
    for moment, where, length, data in packets:
        _write(RECORD.pack(PACKET, where, number, len(data), length, moment) + data)
    return bool(packets)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
