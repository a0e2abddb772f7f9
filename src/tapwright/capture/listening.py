"""Listens at network interfaces by packet(7) sockets: each frame with the kernel's time, its
direction, and the length that it had.

It imports the standard library alone, and little of that: a guest is sent this file and runs it
(`main`). So guests of every version can be listened to, and the agent, which runs it as a command,
serves others meanwhile.

The program for the guest reads a line of JSON, `nics` ([name, MAC address] each) and `program` (a
filter), then answers on stdout with records, RECORD and what it says follows: READY (JSON: the
names of the NICs), then PACKETs, for each byte on stdin a CLOCK with the guest's time, and when
stdin has ended the rest of the packets, and STATISTICS of each NIC.
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
_TAG_AT = 12  # after the two addresses
_ANCILLARY_BYTES = 256

HOST, BROADCAST, MULTICAST, OTHERHOST, OUTGOING = range(5)
"""Where a frame goes, seen from the interface: sll_pkttype in packet(7)."""
MOST_BYTES = 256 * 1024
"""Of a frame; as large as the largest that segmentation is left to a device for."""
_AT_ONCE, _MOST_READS = 64, 1000

RECORD = struct.Struct("!BBHIIq")
"""kind, where a PACKET goes, number of the NIC, bytes that follow, the length that a PACKET had,
nanoseconds since the epoch."""
READY, PACKET, CLOCK, STATISTICS = range(1, 5)
COUNTS = struct.Struct("!QQ")
"""What follows STATISTICS: received, of those dropped."""


class Listener:
    """A socket that gets a copy of each frame which an interface of this thread's namespace
    receives or sends, and which the filter lets through.

    Raises OSError (ENODEV: there is no such interface; EINVAL: the kernel refuses the filter).
    """

    def __init__(self, name: str, program: "Sequence[Instruction]", room: int) -> None:
        """`room` in bytes is what the kernel keeps of frames that are not read yet."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        # Without a protocol nothing arrives, until it is bound: no frame escapes the filter.
        self._socket = socket.socket(socket.AF_PACKET, kind, 0)
        self._buffer = bytearray(MOST_BYTES)
        self._received = self._dropped = 0
        self.has_been_down = False
        """Whether the interface was down, or went, meanwhile."""
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
        """Frames that wait, none where there is none: (nanoseconds since the epoch, where it goes,
        the length that it had, its bytes), in the order in which they came."""
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
                # The kernel says it once, and goes on when the interface is up again.
                self.has_been_down = True
                continue
            moment, length, tag = _read_ancillary(ancillary)
            data = bytes(memoryview(self._buffer)[:size])
            length = max(length, size)
            if tag and size >= _TAG_AT:
                # The kernel has taken it out of the frame.
                data = data[:_TAG_AT] + tag + data[_TAG_AT:]
                length += len(tag)
            found.append((moment or time.time_ns(), address[2], length, data))
        return found

    def statistics(self) -> "tuple[int, int]":
        """(frames that passed the filter, those of them for which there was no room)."""
        counters = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _COUNTERS.size)
        received, dropped = _COUNTERS.unpack(counters)
        # The kernel begins anew with each question.
        self._received += received
        self._dropped += dropped
        return self._received, self._dropped


def _attach(listener: socket.socket, program: "Sequence[Instruction]") -> None:
    code = array.array("B", b"".join(_INSTRUCTION.pack(*one) for one in program))
    # struct sock_fprog: how many instructions there are, and where.
    what = struct.pack("@HL", len(program), code.buffer_info()[0])
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, what)


def _read_ancillary(ancillary: "Sequence[tuple[int, int, bytes]]") -> "tuple[int, int, bytes]":
    """(nanoseconds since the epoch, original length, the VLAN tag or nothing)."""
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
    """The NIC with that MAC address; of several interfaces, such as VLANs on it, that which has the
    name, or else is a device. Raises LookupError."""
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
    """The program for the guest."""
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
    told = json.dumps(names).encode()
    _write(RECORD.pack(READY, 0, 0, len(told), 0, time.time_ns()) + told)
    _serve(listeners)
    for number, listener in enumerate(listeners):
        # Others may go on to send.
        for _ in range(_MOST_READS):
            if not _pass_on(listener, number):
                break
        counts = COUNTS.pack(*listener.statistics())
        _write(RECORD.pack(STATISTICS, 0, number, len(counts), 0, time.time_ns()) + counts)


def _serve(listeners: "Sequence[Listener]") -> None:
    """Until stdin ends."""
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
    """Whether there was something."""
    packets = listener.read()
    for moment, where, length, data in packets:
        _write(RECORD.pack(PACKET, where, number, len(data), length, moment) + data)
    return bool(packets)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
