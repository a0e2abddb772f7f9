"""Says what is wrong, from the facts and sightings of a case. Pure.

The rules are tried in their order; the first one with a verdict wins. The order follows the packet
from the guest outwards: the host's rules do not matter for a packet that never left the guest.
Within a hop, a rule for what was seen to drop the packet comes before a rule for what may drop it.
"""

from collections.abc import Callable, Iterator

from tapwright.diagnosis.case import Case, Verdict
from tapwright.diagnosis.verdicts import (
    bridges,
    guest,
    interfaces,
    lost,
    names,
    routing,
    sandboxes,
    services,
)
from tapwright.diagnosis.verdicts.reading import arrives

Rule = Callable[[Case], Iterator[Verdict]]

_BEFORE: tuple[Rule, ...] = (
    sandboxes.of_processes,
    sandboxes.of_record,
    names.of_names,
    sandboxes.of_duplicates,
)
_RULES: tuple[Rule, ...] = (
    guest.of_nic,
    guest.of_route,
    guest.of_neighbour,
    interfaces.of_points,
    bridges.of_bridge,
    interfaces.of_queues,
    bridges.of_open_vswitch,
    interfaces.of_drops,
    interfaces.of_sizes,
    routing.of_ipv6_off,
    routing.of_host_route,
    routing.of_back_route,
    routing.of_connections,
    lost.of_echo_settings,
    services.of_service,
    lost.of_link,
    lost.of_host_neighbour,
    lost.of_nat,
    lost.of_target,
    lost.of_switched,
    lost.of_gaps,
)


def judge(case: Case) -> Verdict | None:
    """Return what keeps the packet from arriving; None when the packet arrives."""
    for rule in _BEFORE:
        for verdict in rule(case):
            return verdict
    if arrives(case):
        return None
    found = next((verdict for rule in _RULES for verdict in rule(case)), None) or lost.unknown(case)
    if case.reasons:
        counts = ", ".join(f"{name} ({count})" for name, count in sorted(case.reasons.items()))
        found.evidence.append(
            f"the host's kernel dropped packets meanwhile, of any sender: {counts}"
        )
    return found
