"""How large a VM must be for the containers in it."""

from tapwright.linux import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapwright.state.record import Spec

MIB = 1 << 20
OVERHEAD_MIB = 112
"""What the guest needs for itself: kernel, agent, runtime."""
_SMALL_MIB = 256
UNIT_MIB = 128
"""What a guest gets at a time (`hypervisor.growth`)."""
UNLIMITED = 1 << 53
"""Platforms write numbers near 2^63 for "no limit"."""


class Claim:
    """What a container may use: bytes of `memory`, and `cpus` by its quota; 0 for no limit."""

    def __init__(self, memory: int = 0, cpus: float = 0.0) -> None:
        self.memory = memory
        self.cpus = cpus

    def changed(self, resources: object) -> "Claim":
        """This claim with the limits of an OCI `resources` object; limits that it lacks stay. An
        invalid limit is refused where it is set."""
        limit = _number(resources, "memory", "limit")
        quota = _number(resources, "cpu", "quota")
        memory, cpus = self.memory, self.cpus
        if limit:
            memory = limit if 0 < limit < UNLIMITED else 0
        if quota:
            period = _number(resources, "cpu", "period")
            cpus = quota / (period if period > 0 else cgroups.PERIOD) if quota > 0 else 0.0
        return Claim(memory, cpus)


class Size:
    """The size of a VM."""

    def __init__(self, memory_mib: int, vcpus: int) -> None:
        self.memory_mib = memory_mib
        self.vcpus = vcpus


def wanted(spec: "Spec", pod: Claim, containers: "Sequence[Claim]") -> Size:
    """How large a VM must be: for its containers, or for what their `pod` may use, whichever is
    more. It is never smaller than at its start. The result may be larger than `most`."""
    memory = max(pod.memory, sum(claim.memory for claim in containers))
    of_others = not pod.memory and not all(claim.memory for claim in containers)
    mib = spec.machine.memory_mib
    if memory:
        needed = -(-memory // MIB)
        # What the kernel keeps of each page is in the overhead of a small VM.
        needed += max(0, needed - _SMALL_MIB) // 50
        needed += max(spec.default_memory_mib, OVERHEAD_MIB) if of_others else OVERHEAD_MIB
        mib += _units(max(0, needed - mib) + UNIT_MIB - 1)
    cpus = max(pod.cpus, sum(claim.cpus for claim in containers))
    # A quota of tenths is no binary fraction.
    return Size(mib, max(spec.machine.vcpus, -int(-round(cpus, 6) // 1)))


def most(spec: "Spec") -> Size:
    """How large the VM can become."""
    machine = spec.machine
    return Size(
        machine.memory_mib + _units(machine.room_mib), max(machine.vcpus, machine.most_vcpus)
    )


def _units(mib: int) -> int:
    return mib // UNIT_MIB * UNIT_MIB


def _number(resources: object, section: str, key: str) -> int:
    """0 where there is none."""
    table = resources.get(section) if isinstance(resources, dict) else None
    value = table.get(key) if isinstance(table, dict) else None
    return value if type(value) is int else 0
