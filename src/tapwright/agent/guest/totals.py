"""The guest's use of processors, memory and network as a whole, from /proc (proc(5))."""

from typing import Any

from tapwright.agent.guest import counters
from tapwright.agent.guest.files import read

_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_MS_OF_TICK = 10  # USER_HZ is 100
_MEMORY = {"MemTotal": "size", "MemFree": "free", "MemAvailable": "available"}


def of_guest() -> dict[str, Any]:
    """Return `cpu` in milliseconds by mode, `memory` in bytes, the `segments` of TCP that were
    `sent`, `received` and `retransmitted`, and what `counters.of_network` has."""
    return {"cpu": _cpu(), "memory": _memory(), "segments": _segments(), **counters.of_network()}


def _cpu() -> dict[str, int]:
    words = read("/proc/stat").partition("\n")[0].split()[1:]
    return {mode: int(word) * _MS_OF_TICK for mode, word in zip(_MODES, words, strict=False)}


def _memory() -> dict[str, int]:
    found = {}
    for line in read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name in _MEMORY:
            found[_MEMORY[name]] = int(rest.split()[0]) * 1024
    return found


def _segments() -> dict[str, int]:
    """Parse a line of names, and one of numbers (net/ipv4/proc.c: snmp_seq_show)."""
    lines = [line.split() for line in read("/proc/net/snmp").splitlines() if line[:4] == "Tcp:"]
    if len(lines) < 2:
        return {}
    table = dict(zip(*lines[:2], strict=False))
    names = {"sent": "OutSegs", "received": "InSegs", "retransmitted": "RetransSegs"}
    return {name: int(table[theirs]) for name, theirs in names.items() if theirs in table}
