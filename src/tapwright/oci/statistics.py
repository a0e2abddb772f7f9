"""A container's statistics in the form of runc's events (types/events.go), from the numbers of its
control group (Documentation/admin-guide/cgroup-v2.rst). openEuler's runtime adds the network of the
guest, which all containers of a sandbox share."""

from tapwright.agent.protocol import TCP_STATES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.shapes import Json

_UNLIMITED = 2**64 - 1
_NS_PER_US = 1000

_OF_INTERFACE = tuple(
    f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")
)
_OF_UDP = ("listen", "dropped", "rx_queued", "tx_queued")


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
        **_network(numbers),
    }


def _network(numbers: "Json") -> "Json":
    return {
        "interfaces": [
            {"name": name, **_counts(found, _OF_INTERFACE)}
            for name, found in _table(numbers.get("interfaces")).items()
        ],
        **{name: _counts(numbers.get(name), TCP_STATES) for name in ("tcp", "tcp6")},
        **{name: _counts(numbers.get(name), _OF_UDP) for name in ("udp", "udp6")},
    }


def _counts(found: object, names: tuple[str, ...]) -> "Json":
    """All counters; 0 for those that the guest lacks, such as IPv6 sockets without IPv6."""
    table = _table(found)
    return {name: table.get(name) or 0 for name in names}


def _table(found: object) -> "Json":
    """A table from the guest, which is hostile; empty for anything else."""
    return found if isinstance(found, dict) else {}


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
