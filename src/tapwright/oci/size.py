"""How large a sandbox's VM is to be, from what its container, or its pod, may use.

The guest's cgroups hold each container to its limit, so the VM need only be large enough. It is
the configured size wherever the limit fits in; above that there are few sizes, powers of two, for
each size is a template of its own. The host lends memory as it is written to.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tapwright.oci.bundle import Bundle

MIB = 1 << 20
OVERHEAD_MIB = 112
"""What the guest needs for itself: kernel, agent, runtime."""
_UNLIMITED = 1 << 53
"""Platforms write numbers near 2^63 for none."""

_POD = "io.kubernetes.cri.sandbox-"  # containerd, pkg/cri/annotations


def memory_mib(bundle: "Bundle", default: int, shared: int = 0) -> int:
    """MiB, at least `default`. So many bytes of memory that processes share were asked for; a limit
    covers them."""
    limit = _of_pod(bundle, "memory") or _number(_own(bundle, "memory").get("limit"))
    if not 0 < limit < _UNLIMITED:
        # With what the kernel keeps of each page: a guest that runs out of memory ends.
        limit = shared + shared // 32
    if not limit:
        return default
    needed = -(-limit // MIB) + OVERHEAD_MIB
    if needed <= default:
        return default
    return max(default, 1 << (needed - 1).bit_length())


def vcpus(bundle: "Bundle", default: int, most: int) -> int:
    """CPUs, at least `default`, and no more than the host's `most`."""
    cpu = _own(bundle, "cpu")
    quota = _of_pod(bundle, "cpu-quota") or _number(cpu.get("quota"))
    period = _of_pod(bundle, "cpu-period") or _number(cpu.get("period")) or 100_000
    needed = -(-quota // period) if quota > 0 else 0
    return max(default, min(needed, most))


def _own(bundle: "Bundle", kind: str) -> "dict[str, Any]":
    found: dict[str, Any] = bundle.linux.get("resources", {}).get(kind, {})
    return found


def _of_pod(bundle: "Bundle", key: str) -> int:
    text = bundle.annotations.get(f"{_POD}{key}", "")
    return int(text) if text.isdecimal() else 0


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
