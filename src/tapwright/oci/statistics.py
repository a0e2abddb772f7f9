"""What a container uses, in the shape of runc's events (types/events.go), made of the numbers of
its control group (Documentation/admin-guide/cgroup-v2.rst)."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

_UNLIMITED = 2**64 - 1
_NS_PER_US = 1000


def of_cgroup(numbers: "Json") -> "Json":
    """The `data` of a `stats` event; `numbers` as `container_statistics` answers them."""
    return {
        "cpu": _cpu(numbers.get("cpu", {})),
        "memory": _memory(numbers.get("memory", {})),
        "pids": {
            "current": numbers.get("pids", {}).get("current") or 0,
            "limit": numbers.get("pids", {}).get("max") or 0,
        },
        "blkio": _blkio(numbers.get("io", {})),
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _cpu(found: "Json") -> "Json":
    return {
        "usage": {
            "total": found.get("usage_usec", 0) * _NS_PER_US,
            "kernel": found.get("system_usec", 0) * _NS_PER_US,
            "user": found.get("user_usec", 0) * _NS_PER_US,
        },
        "throttling": {
            "periods": found.get("nr_periods", 0),
            "throttledPeriods": found.get("nr_throttled", 0),
            "throttledTime": found.get("throttled_usec", 0) * _NS_PER_US,
        },
    }


def _memory(found: "Json") -> "Json":
    table = found.get("stat", {})
    return {
        "cache": table.get("file", 0),
        "usage": _entry(found.get("max"), found.get("current"), found.get("peak")),
        "swap": _entry(found.get("swap_max"), found.get("swap"), None),
        "kernel": _entry(None, table.get("kernel"), None),
        "kernelTCP": _entry(None, table.get("sock"), None),
        "raw": table,
    }


def _entry(limit: int | None, usage: int | None, most: int | None) -> "Json":
    return {
        "limit": _UNLIMITED if limit is None else limit,
        "usage": usage or 0,
        "max": most or 0,
        "failcnt": 0,
    }


def _blkio(devices: "Json") -> "Json":
    found: Json = {"ioServiceBytesRecursive": [], "ioServicedRecursive": []}
    for name, numbers in devices.items():
        major, _, minor = name.partition(":")
        device = {"major": int(major), "minor": int(minor)}
        for key, place, op in (
            ("rbytes", "ioServiceBytesRecursive", "Read"),
            ("wbytes", "ioServiceBytesRecursive", "Write"),
            ("rios", "ioServicedRecursive", "Read"),
            ("wios", "ioServicedRecursive", "Write"),
        ):
            found[place].append({**device, "op": op, "value": numbers.get(key, 0)})
    return found
