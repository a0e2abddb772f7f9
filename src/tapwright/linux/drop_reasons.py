"""Reports why the host's kernel drops packets: the tracepoint skb:kfree_skb, read as perf reads it
(perf_event_open(2), include/trace/events/skb.h).

Nothing is left of the reading when the process ends in any way; for that reason it uses no instance
of tracefs. The kernel reports packets of the whole host, and not whose they are.
"""

import fcntl
import mmap
import os
import re
import struct
from collections import Counter
from contextlib import ExitStack

from tapwright.linux import libc
from tapwright.linux.files import closing

# Packets end for these reasons all the time; one is a packet socket that looked at a packet.
_ROUTINE = frozenset(
    (
        *("NOT_DROPPED_YET", "CONSUMED", "NOT_SPECIFIED", "NO_SOCKET", "OTHERHOST", "TCP_OLD_DATA"),
        *("SOCKET_CLOSE", "SOCKET_FILTER", "UNHANDLED_PROTO", "QUEUE_PURGE", "PACKET_SOCK_ERROR"),
    )
)
_PERF_EVENT_OPEN = 298  # x86-64
_TRACEPOINT, _SAMPLE_RAW, _CLOEXEC = 2, 1 << 10, 8
_SET_FILTER, _RECORD_SAMPLE = 0x40082406, 9
_ATTRIBUTE_BYTES, _PAGES, _HEAD = 112, 16, 1024  # struct perf_event_attr, perf_event_mmap_page
_MOST, _LONGEST = 4000, 256
_PROTOCOLS = {4: "protocol == 0x800 || protocol == 0x806", 6: "protocol == 0x86dd"}
_REASON = re.compile(r"\{ (\d+), \"(\w+)\" \}")
_FIELD = re.compile(r"enum skb_drop_reason reason;\s+offset:(\d+);")


class DropReasons(ExitStack):
    """Counts the dropped packets of one IP version from now on, until `close`. Raises OSError if
    the kernel reports no reasons; it does since 5.17, on an x86-64."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self._rings: list[mmap.mmap] = []
        with ExitStack() as opened:
            if os.uname().machine != "x86_64":
                raise OSError("the number of perf_event_open(2) is not known")
            number, self._offset, self._names = _tracepoint()
            words = _TRACEPOINT, _ATTRIBUTE_BYTES, number, 1, _SAMPLE_RAW, 0, 0
            attributes = struct.pack("=IIQQQQQ", *words).ljust(_ATTRIBUTE_BYTES, b"\0")
            for cpu in sorted(_online()):
                fd = libc.syscall(_PERF_EVENT_OPEN, attributes, -1, cpu, -1, _CLOEXEC)
                opened.callback(os.close, fd)
                fcntl.ioctl(fd, _SET_FILTER, _PROTOCOLS[version].encode() + b"\0")
                ring = mmap.mmap(fd, (1 + _PAGES) * mmap.PAGESIZE)
                self._rings.append(opened.enter_context(ring))
            self.push(opened.pop_all())

    def counted(self) -> dict[str, int]:
        """Return how many packets were dropped so far, by the kernel's name of each reason that is
        not routine."""
        found: Counter[str] = Counter()
        for ring in self._rings:
            found.update(self._of_ring(ring))
        return {name: count for name, count in found.items() if name not in _ROUTINE}

    def _of_ring(self, ring: mmap.mmap) -> list[str]:
        head, tail = struct.unpack_from("=QQ", ring, _HEAD)
        data = ring[mmap.PAGESIZE :]
        twice = data + data[:_LONGEST]  # a record may continue at the beginning
        found: list[str] = []
        while tail < head and len(found) < _MOST:
            at = tail % len(data)
            record = twice[at : at + _LONGEST]
            kind, _, size = struct.unpack_from("=IHH", record)
            if not size:
                break
            if kind == _RECORD_SAMPLE:
                # The header is followed by the size of the tracepoint's data.
                (reason,) = struct.unpack_from("=i", record, 12 + self._offset)
                found.append(self._names.get(reason, str(reason)))
            tail += size
        return found


def _online() -> set[int]:
    with open("/sys/devices/system/cpu/online") as file:
        found = set[int]()
        for part in file.read().strip().split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
        return found


def _tracepoint() -> tuple[int, int, dict[int, str]]:
    """Return (the tracepoint's number, the offset of the reason in its data, the reasons' names).
    Raises OSError."""
    with closing(libc.detached_mount("tracefs")) as root:
        place = f"/proc/self/fd/{root}/events/skb/kfree_skb"
        with open(f"{place}/id") as file:
            number = int(file.read())
        with open(f"{place}/format") as file:
            text = file.read()
    field = _FIELD.search(text)
    if not field:
        raise OSError("this kernel reports no reasons")
    return number, int(field[1]), {int(n): name for n, name in _REASON.findall(text)}
