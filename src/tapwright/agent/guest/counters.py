"""Counters of the guest's interfaces, and its sockets by their states, from /proc/net (proc(5),
net/ipv4/tcp_ipv4.c: tcp4_seq_show, net/ipv4/udp.c: udp4_format_sock)."""

import contextlib
from collections import Counter
from typing import Any

from tapwright.agent.protocol import TCP_STATES

_NEW_SYN_RECV = 12
"""The state of a connection request (TCP_NEW_SYN_RECV); the kernel shows it as SYN_RECV."""
_DIRECTIONS = (("rx", 0), ("tx", 8))
_COUNTERS = ("bytes", "packets", "errors", "dropped")


def of_network() -> dict[str, Any]:
    """Return `interfaces`, by name, each with bytes, packets, errors and dropped packets in both
    directions; `tcp` and `tcp6`, the number of sockets in each state; `udp` and `udp6`, the number
    of sockets (`listen`), the datagrams that they dropped, and the bytes in their queues. What the
    kernel lacks is left out."""
    found: dict[str, Any] = {"interfaces": _interfaces()}
    for name, of_sockets in (("tcp", _tcp), ("tcp6", _tcp), ("udp", _udp), ("udp6", _udp)):
        with contextlib.suppress(OSError):  # the guest has no IPv6
            found[name] = of_sockets(f"/proc/net/{name}")
    return found


def _interfaces() -> dict[str, dict[str, int]]:
    found = {}
    with open("/proc/net/dev") as file:
        for line in file.readlines()[2:]:
            name, _, rest = line.rpartition(":")
            numbers = list(map(int, rest.split()))
            found[name.strip()] = {
                f"{way}_{counter}": numbers[first + place]
                for way, first in _DIRECTIONS
                for place, counter in enumerate(_COUNTERS)
            }
    return found


def _tcp(path: str) -> dict[str, int]:
    with open(path, "rb") as file:
        next(file)
        counts = Counter(line.split(None, 4)[3] for line in file)
    found = dict.fromkeys(TCP_STATES, 0)
    for state, count in counts.items():
        number = int(state, 16)
        number = 3 if number == _NEW_SYN_RECV else number
        if 1 <= number <= len(TCP_STATES):
            found[TCP_STATES[number - 1]] += count
    return found


def _udp(path: str) -> dict[str, int]:
    found = dict.fromkeys(("listen", "dropped", "rx_queued", "tx_queued"), 0)
    with open(path, "rb") as file:
        next(file)
        for line in file:
            words = line.split()
            sent, _, received = words[4].partition(b":")
            found["listen"] += 1
            found["tx_queued"] += int(sent, 16)
            found["rx_queued"] += int(received, 16)
            found["dropped"] += int(words[-1])
    return found
