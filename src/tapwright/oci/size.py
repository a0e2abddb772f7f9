"""How large a sandbox's VM must be at its start, by the limits of its container or its pod.

The guest's cgroups enforce the limits, so the VM must only be large enough. It has the configured
size if the limit fits in; above that, the sizes are powers of two, because each size needs a
template of its own. A guest takes memory of the host only when it writes to it.
"""

from tapwright.linux import cgroups
from tapwright.sandbox import needs

MIB, UNLIMITED = needs.MIB, needs.UNLIMITED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from tapwright.oci.bundle import Bundle

_MOST_CPU = 8191  # NR_CPUS (arch/x86/Kconfig)
_POD = "io.kubernetes.cri.sandbox-"  # containerd, pkg/cri/annotations


def memory_mib(bundle: "Bundle", default: int, shared: int = 0) -> int:
    """MiB, at least `default`. `shared` are bytes of shared memory (`memory.asked_for`), which a
    memory limit includes."""
    limit = memory_limit(bundle)
    if not 0 < limit < UNLIMITED:
        # With the kernel's own data about each page, because a guest that runs out of memory ends.
        limit = shared + shared // 32
    if not limit:
        return default
    needed = -(-limit // MIB) + needs.OVERHEAD_MIB
    if needed <= default:
        return default
    return max(default, 1 << (needed - 1).bit_length())


def memory_limit(bundle: "Bundle") -> int:
    """Bytes that the container, or the pod that it starts, may use; 0 or less, or `UNLIMITED` or
    more, for no limit."""
    return of_pod(bundle, "memory") or number(_own(bundle, "memory").get("limit"))


def vcpus(bundle: "Bundle", default: int, usable: "Collection[int]") -> int:
    """CPUs: those of the `usable` ones of the host that the container is bound to, where it is to
    any, as `nproc` has them by runc. Else those that the quota needs, at least `default`, and no
    more than there are usable ones."""
    if bound := _numbers(_own(bundle, "cpu").get("cpus")) & set(usable):
        return len(bound)
    quota, period = cpu_quota(bundle)
    if quota > 0:
        return max(default, min(-(-quota // period), len(usable)))
    return default


def cpu_quota(bundle: "Bundle") -> tuple[int, int]:
    """(quota, period) in microseconds of the container, or the pod that it starts; a quota of 0 or
    less is none."""
    cpu = _own(bundle, "cpu")
    quota = of_pod(bundle, "cpu-quota") or number(cpu.get("quota"))
    period = of_pod(bundle, "cpu-period") or number(cpu.get("period")) or cgroups.PERIOD
    return quota, period


def claim(bundle: "Bundle") -> needs.Claim:
    """What the pod of the container may use."""
    quota, period = cpu_quota(bundle)
    limits = {"memory": {"limit": memory_limit(bundle)}, "cpu": {"quota": quota, "period": period}}
    return needs.Claim().changed(limits)


def _own(bundle: "Bundle", kind: str) -> "dict[str, Any]":
    found: dict[str, Any] = bundle.linux.get("resources", {}).get(kind, {})
    return found


def of_pod(bundle: "Bundle", key: str) -> int:
    """Return a number of the pod that the container starts, 0 if its platform passes none."""
    text = bundle.annotations.get(f"{_POD}{key}", "")
    return int(text) if text.isdecimal() else 0


def _numbers(cpus: object) -> set[int]:
    """The numbers in a list of CPUs such as 0-2,4 (cpuset(7)). Invalid parts count nothing; the
    kernel refuses them later."""
    found = set[int]()
    for part in cpus.split(",") if isinstance(cpus, str) else ():
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), min(int(last or first), _MOST_CPU) + 1))
    return found


def number(value: object) -> int:
    """A number of a configuration, 0 where there is none."""
    return value if isinstance(value, int) else 0
